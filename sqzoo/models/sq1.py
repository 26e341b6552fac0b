"""Define sq1: SqueezeNet 1.1's trunk with a 1x1 convolution and two linear layers (paper, Tables 1 and 3)."""

from typing import Any

import torch
import torch.nn as nn
from timm.models import register_model

from sqzoo.models.arguments import count, rate
from sqzoo.models.base import ZooModel
from sqzoo.models.blocks import GlobalPool, squeeze_trunk
from sqzoo.models.build import build, configs

__all__ = ["Sq1"]


class Sq1(ZooModel):
    """Trunk, 1x1 convolution, ReLU, global pool, linear, dropout, linear, dropout: 792,618 parameters.

    Dropout on the logits is odd, but it is what the paper describes and sweeps (figure 5). Defaults are Table 3's.

    Args:
        num_classes: 0 gives the mid layer's output (N, mid).
        in_chans: channels of the images.
        global_pool: "avg" or "max" (figure 7), or "" with num_classes=0 for the map before the pool.
        width: channels of the 1x1 convolution.
        mid: size of the mid layer (figure 10); 64 gives 797,066 parameters.
        drop_rate: the paper's p1, dropout after the mid layer.
        logit_drop_rate: its p2, dropout after the last layer.
        conv_drop_rate: dropout before the 1x1 convolution. SqueezeNet has 0.5; the paper does not say.
        mid_relu: ReLU between the two linear layers; the paper does not say.
        pool2: "max" or "avg", the paper's Pooling_2.
        pool3: the same, Pooling_3.
        upsample: see `ZooModel`.
        temperature: see `ZooModel`.
    """

    stages = ((1, 64, 2), (4, 128, 4), (7, 256, 8), (12, 512, 16))
    classifier_name = "fc2"
    hidden_layers = ("conv", "act", "fc1")
    linear_head = True

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        width: int = 128,
        mid: int = 32,
        drop_rate: float = 0.1,
        logit_drop_rate: float = 0.1,
        conv_drop_rate: float = 0.0,
        mid_relu: bool = False,
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
        self.drop = nn.Dropout(rate("conv_drop_rate", conv_drop_rate))
        self.conv = nn.Conv2d(512, count("width", width), 1, **dd)
        self.act = nn.ReLU(inplace=True)
        self.fc1 = nn.Linear(width, count("mid", mid), **dd)
        self.mid_act = nn.ReLU(inplace=True) if mid_relu else nn.Identity()
        self.drop1 = nn.Dropout(rate("drop_rate", drop_rate))
        self.drop2 = nn.Dropout(rate("logit_drop_rate", logit_drop_rate))
        self.fc2 = self.last_layer(mid, num_classes, **dd)
        self.global_pool = GlobalPool(global_pool)
        self.head_hidden_size = mid

    def _head(self, x: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        x = self.global_pool(self.act(self.conv(self.drop(x))))
        if self.global_pool.pool_type == "":
            return x
        x = self.mid_act(self.fc1(x))
        if pre_logits or self.num_classes == 0:
            return x
        return self.drop2(self.fc2(self.drop1(x)))


default_cfgs = configs(Sq1, "sq1")


@register_model
def sq1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Sq-1 with Table 3's setting (mid 32): 792,618 parameters; paper, Tables 2 and 3."""
    return build(Sq1, "sq1", pretrained, **kwargs)
