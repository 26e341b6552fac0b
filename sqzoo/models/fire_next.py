"""Define fire_next: SqueezeNet 1.1 with a SqueezeNext block for its last Fire module (paper, Table 2)."""

from typing import Any

import torch
import torch.nn as nn
from timm.models import register_model

from sqzoo.errors import ArgumentError
from sqzoo.models.arguments import count, rate
from sqzoo.models.base import ZooModel
from sqzoo.models.blocks import GlobalPool, SqNxtBlock, squeeze_trunk
from sqzoo.models.build import build, configs

__all__ = ["FireNext"]


class FireNext(ZooModel):
    """Trunk without fire 9, SqueezeNext block 512 to 128, 1x1 convolution, global pool: 691,018 parameters.

    Args:
        num_classes: 0 gives the block's pooled output (N, width).
        in_chans: channels of the images.
        global_pool: "avg", "max" or "".
        width: output channels of the block (figure 9).
        reduction: first squeeze of the block over its input, in (0, 1].
        add: the addition of figure 11, left; the paper's own block (right) has none.
        batch_norm: batch norm in the block: 692,170 parameters.
        separable: depthwise separable 1x3 and 3x1 convolutions in the block.
        pool2: "max" or "avg", the paper's Pooling_2.
        pool3: the same, Pooling_3.
        drop_rate: dropout before the last layer. SqueezeNet has 0.5; the paper does not say.
        logit_relu: ReLU after the last layer, as in SqueezeNet; the paper does not say.
        upsample: see `ZooModel`.
        temperature: see `ZooModel`.
    """

    stages = ((1, 64, 2), (4, 128, 4), (7, 256, 8), (11, 512, 16))
    classifier_name = "classifier"
    hidden_layers = ("block",)

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        width: int = 128,
        reduction: float = 0.25,
        add: bool = False,
        batch_norm: bool = False,
        separable: bool = False,
        pool2: str = "max",
        pool3: str = "max",
        drop_rate: float = 0.0,
        logit_relu: bool = False,
        upsample: int | tuple[int, int] | None = None,
        temperature: float = 1.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_classes, in_chans, global_pool, upsample, temperature)
        if isinstance(reduction, bool) or not isinstance(reduction, int | float) or not 0.0 < reduction <= 1.0:
            raise ArgumentError(f"reduction must be a number above 0 and at most 1, not {reduction!r}.")
        dd = {"device": device, "dtype": dtype}
        self.features = squeeze_trunk(self.in_chans, pool2, pool3, **dd)[:12]
        self.block = SqNxtBlock(512, count("width", width), reduction, add, batch_norm, separable, **dd)
        self.drop = nn.Dropout(rate("drop_rate", drop_rate))
        self.classifier = self.last_layer(width, num_classes, **dd)
        self.logit_act = nn.ReLU(inplace=True) if logit_relu else nn.Identity()
        self.global_pool = GlobalPool(global_pool)
        self.head_hidden_size = width

    def _head(self, x: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        x = self.block(x)
        if not pre_logits and self.num_classes > 0:
            x = self.logit_act(self.classifier(self.drop(x)))
        return self.global_pool(x)


default_cfgs = configs(FireNext, "fire_next")


@register_model
def fire_next(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Fire-Next: 691,018 parameters; paper, Table 2."""
    return build(FireNext, "fire_next", pretrained, **kwargs)
