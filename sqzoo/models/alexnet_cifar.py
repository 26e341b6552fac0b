"""alexnet_cifar: torchvision's AlexNet with its last layer sized for CIFAR-10, the paper's baseline (Table 2, row 1)."""

from typing import Any

import torch
import torch.nn as nn
from timm.models import register_model

from sqzoo.models._arguments import one_of, rate
from sqzoo.models._base import ZooModel
from sqzoo.models._build import build, configs

__all__ = ["AlexNetCifar"]


class AlexNetCifar(ZooModel):
    """Five convolutions, a 6x6 average pool, three linear layers: 57,044,810 parameters. Images from 63 pixels up.

    Key names are torchvision's: `features`, and `classifier.1`, `.4`, `.6` (the last layer).

    num_classes: number of classes; 0 gives the second linear layer's output (N, 4096).
    global_pool: "avg", the pool to 6x6; "" with num_classes=0 gives the trunk's map. drop_rate: before each of the
    first two linear layers.
    """

    min_input_size = 63
    head_layers = ("classifier",)
    taps = ((1, 64, 4), (4, 192, 8), (11, 256, 16))

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool)
        self._check_pool(num_classes, global_pool)
        dd = {"device": device, "dtype": dtype}
        self.features = nn.Sequential(
            nn.Conv2d(self.in_chans, 64, 11, stride=4, padding=2, **dd),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2, **dd),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1, **dd),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1, **dd),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1, **dd),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        drop = rate("drop_rate", drop_rate)
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier: nn.Module = nn.Sequential(
            nn.Dropout(drop),
            nn.Linear(256 * 6 * 6, 4096, **dd),
            nn.ReLU(inplace=True),
            nn.Dropout(drop),
            nn.Linear(4096, 4096, **dd),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes, **dd) if num_classes else nn.Identity(),
        )
        self.head_hidden_size = 4096

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        if self.pool_kind == "":
            return x
        x = torch.flatten(self.avgpool(x), 1)
        if pre_logits:
            return self.classifier[:6](x)  # type: ignore[index]
        return self.classifier(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        kind = self.pool_kind if global_pool is None else global_pool
        self._check_pool(num_classes, kind)
        layer = nn.Linear(4096, num_classes, **self._like_weights()) if num_classes else nn.Identity()
        self.classifier[6] = layer.train(self.training)  # type: ignore[index]
        self.num_classes, self.pool_kind = num_classes, kind

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.classifier[6]  # type: ignore[index]

    @staticmethod
    def _check_pool(num_classes: int, kind: str) -> None:
        one_of("alexnet_cifar's global_pool", kind, ("avg", "") if num_classes == 0 else ("avg",))

    @torch.jit.ignore
    def input_dropout(self) -> nn.Dropout:
        return self.classifier[0]  # type: ignore[index,no-any-return]


default_cfgs = configs("alexnet_cifar", classifier="classifier.6", min_input_size=(3, 63, 63))


@register_model
def alexnet_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AlexNet with a 10-way last layer: 57,044,810 parameters; paper, Table 2."""
    return build(AlexNetCifar, "alexnet_cifar", pretrained, **kwargs)
