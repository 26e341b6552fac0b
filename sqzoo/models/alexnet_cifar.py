"""Define alexnet_cifar: torchvision's AlexNet, last layer for CIFAR-10: the baseline (paper, Table 2, row 1)."""

from typing import Any

import torch
import torch.nn as nn
from timm.models import register_model

from sqzoo.models.arguments import rate
from sqzoo.models.base import ZooModel
from sqzoo.models.blocks import GlobalPool
from sqzoo.models.build import build, configs

__all__ = ["AlexNetCifar"]


class AlexNetCifar(ZooModel):
    """Five convolutions, a 6x6 average pool, three linear layers: 57,044,810 parameters. Images from 63 pixels up.

    Parameter names are torchvision's: `features`, and `classifier.1`, `.4`, `.6` (the last layer).

    Args:
        num_classes: 0 gives the second linear layer's output (N, 4096).
        in_chans: channels of the images.
        global_pool: "avg" or "max", to 6x6; "" with num_classes=0 gives the trunk's map.
        drop_rate: dropout before each of the first two linear layers.
        upsample: see `ZooModel`.
        temperature: see `ZooModel`.
    """

    min_input_size = 63
    stages = ((1, 64, 4), (4, 192, 8), (11, 256, 16))
    classifier_name = "classifier.6"
    hidden_layers = ("classifier.1", "classifier.4")
    linear_head = True

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.5,
        upsample: int | tuple[int, int] | None = None,
        temperature: float = 1.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, upsample, temperature)
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
        self.global_pool = GlobalPool(global_pool, side=6)
        self.classifier = nn.Sequential(
            nn.Dropout(drop),
            nn.Linear(256 * 6 * 6, 4096, **dd),
            nn.ReLU(inplace=True),
            nn.Dropout(drop),
            nn.Linear(4096, 4096, **dd),
            nn.ReLU(inplace=True),
            self.last_layer(4096, num_classes, **dd),
        )
        self.head_hidden_size = 4096

    def _head(self, x: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        x = self.global_pool(x)
        if self.global_pool.pool_type == "":
            return x
        for i, layer in enumerate(self.classifier):  # TorchScript cannot call a slice
            if i < 6 or not pre_logits:
                x = layer(x)
        return x


default_cfgs = configs(AlexNetCifar, "alexnet_cifar")


@register_model
def alexnet_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AlexNet with a 10-way last layer: 57,044,810 parameters; paper, Table 2."""
    return build(AlexNetCifar, "alexnet_cifar", pretrained, **kwargs)
