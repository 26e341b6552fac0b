"""Define squeezenet_cifar: torchvision's SqueezeNet 1.1, last layer for CIFAR-10 (paper, Table 2, row 2)."""

from typing import Any

import torch
import torch.nn as nn
from timm.models import register_model

from sqzoo.models.arguments import rate
from sqzoo.models.base import ZooModel
from sqzoo.models.blocks import GlobalPool, squeeze_trunk
from sqzoo.models.build import build, configs

__all__ = ["SqueezeNetCifar"]


class SqueezeNetCifar(ZooModel):
    """SqueezeNet 1.1 trunk, dropout, 1x1 convolution to the classes, ReLU, global pool: 727,626 parameters.

    Parameter names are torchvision's (`classifier.1` is the last layer).

    Args:
        num_classes: 0 gives pooled features (N, 512).
        in_chans: channels of the images.
        global_pool: "avg", "max" or "".
        drop_rate: dropout before the last layer; torchvision's is 0.5.
        logit_relu: ReLU after the last layer, as torchvision has.
        pool2: "max" or "avg", the paper's Pooling_2.
        pool3: the same, Pooling_3.
        upsample: see `ZooModel`.
        temperature: see `ZooModel`.
    """

    stages = ((1, 64, 2), (4, 128, 4), (7, 256, 8), (12, 512, 16))
    classifier_name = "classifier.1"

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.5,
        logit_relu: bool = True,
        pool2: str = "max",
        pool3: str = "max",
        upsample: int | tuple[int, int] | None = None,
        temperature: float = 1.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, upsample, temperature)
        dd = {"device": device, "dtype": dtype}
        self.features = squeeze_trunk(self.in_chans, pool2, pool3, **dd)
        self.classifier = nn.Sequential(
            nn.Dropout(rate("drop_rate", drop_rate)),
            self.last_layer(512, num_classes, **dd),
            nn.ReLU(inplace=True) if logit_relu else nn.Identity(),
        )
        self.global_pool = GlobalPool(global_pool)

    def _head(self, x: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        if not pre_logits and self.num_classes > 0:
            x = self.classifier(x)
        return self.global_pool(x)


default_cfgs = configs(SqueezeNetCifar, "squeezenet_cifar")


@register_model
def squeezenet_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SqueezeNet 1.1 with a 10-way last layer: 727,626 parameters; paper, Table 2."""
    return build(SqueezeNetCifar, "squeezenet_cifar", pretrained, **kwargs)
