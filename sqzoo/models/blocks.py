"""Build the parts of the architectures: the SqueezeNet 1.1 trunk, its pools, the SqueezeNext block."""

from typing import Any

import torch
import torch.nn as nn

from sqzoo.models.arguments import POOLS, one_of


class Fire(nn.Module):
    """Fire module: 1x1 squeeze, then parallel 1x1 and 3x3 expands; (N, C, H, W) to (N, 2 * expand, H, W).

    Parameter names and arithmetic are those of torchvision's SqueezeNet, so that its ImageNet weights load.
    """

    def __init__(self, in_chs: int, squeeze: int, expand: int, **dd: Any) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_chs, squeeze, 1, **dd)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1, **dd)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1, **dd)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1
        )


def trunk_pool(name: str, kind: str) -> nn.Module:
    """Return the 3x3 pool of stride 2 between Fire modules; `kind` is "max" or "avg"."""
    if one_of(name, kind, POOLS) == "max":
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return nn.AvgPool2d(3, stride=2, ceil_mode=True)


def squeeze_trunk(in_chans: int, pool2: str, pool3: str, **dd: Any) -> nn.Sequential:
    """Build SqueezeNet 1.1's `features` (722,496 parameters): (N, 3, 224, 224) to (N, 512, 13, 13).

    Args:
        in_chans: channels of the images.
        pool2: "max" or "avg": the paper's Pooling_2 (figure 7), `features.5`.
        pool3: its Pooling_3, `features.8`.
        dd: device and dtype.
    """
    features = nn.Sequential(
        nn.Conv2d(in_chans, 64, 3, stride=2, **dd),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(64, 16, 64, **dd),
        Fire(128, 16, 64, **dd),
        trunk_pool("pool2", pool2),
        Fire(128, 32, 128, **dd),
        Fire(256, 32, 128, **dd),
        trunk_pool("pool3", pool3),
        Fire(256, 48, 192, **dd),
        Fire(384, 48, 192, **dd),
        Fire(384, 64, 256, **dd),
        Fire(512, 64, 256, **dd),
    )
    for module in features.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return features


class GlobalPool(nn.Module):
    """Pool (N, C, H, W) to (N, C * side * side) by "avg" or "max"; "" returns the map unchanged."""

    def __init__(self, kind: str, side: int = 1) -> None:
        super().__init__()
        self.pool_type = one_of("global_pool", kind, (*POOLS, ""))  # timm reads this name when it saves a model
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool_type == "avg" and self.side == 1:
            # Its gradient is channels-last; that of adaptive_avg_pool2d is not, which makes the backward pass of the
            # ReLU before it 10 times slower.
            return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
        if self.pool_type == "":
            return x
        size = (self.side, self.side)
        if self.pool_type == "avg":
            return torch.flatten(nn.functional.adaptive_avg_pool2d(x, size), 1)
        return torch.flatten(nn.functional.adaptive_max_pool2d(x, size), 1)

    def extra_repr(self) -> str:
        return f"{self.pool_type!r}, side={self.side}"


def _conv(
    in_chs: int, out_chs: int, kernel: tuple[int, int], batch_norm: bool, separable: bool = False, **dd: Any
) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2)
    if separable:  # a filter per channel, then a 1x1 convolution
        layers: list[nn.Module] = [
            nn.Conv2d(in_chs, in_chs, kernel, padding=padding, groups=in_chs, **dd),
            nn.Conv2d(in_chs, out_chs, 1, **dd),
        ]
    else:
        layers = [nn.Conv2d(in_chs, out_chs, kernel, padding=padding, **dd)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(out_chs, **dd))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


class SqNxtBlock(nn.Module):
    """SqueezeNext block: two 1x1 squeezes, 1x3, 3x1 and 1x1 convolutions, each with bias and ReLU.

    (N, in_chs, H, W) to (N, out_chs, H, W).

    Args:
        in_chs: channels of the input.
        out_chs: channels of the output.
        reduction: channels of the first squeeze over `in_chs`; the second has half as many.
        add: add the input to the output (figure 11, left), by a 1x1 convolution where the channels differ, and a last
            ReLU; the paper's choice (right) does not.
        batch_norm: batch norm after each convolution.
        separable: depthwise separable 1x3 and 3x1 convolutions.
        dd: device and dtype.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        reduction: float,
        add: bool = False,
        batch_norm: bool = False,
        separable: bool = False,
        **dd: Any,
    ) -> None:
        super().__init__()
        first = max(2, round(in_chs * reduction))
        self.squeeze1 = _conv(in_chs, first, (1, 1), batch_norm, **dd)
        self.squeeze2 = _conv(first, first // 2, (1, 1), batch_norm, **dd)
        self.conv1x3 = _conv(first // 2, first, (1, 3), batch_norm, separable, **dd)
        self.conv3x1 = _conv(first, first, (3, 1), batch_norm, separable, **dd)
        self.expand = _conv(first, out_chs, (1, 1), batch_norm, **dd)
        self.add = add
        self.shortcut: nn.Module = nn.Identity()
        if add and in_chs != out_chs:
            self.shortcut = _conv(in_chs, out_chs, (1, 1), batch_norm, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.expand(self.conv3x1(self.conv1x3(self.squeeze2(self.squeeze1(x)))))
        if self.add:
            y = torch.relu(y + self.shortcut(x))
        return y
