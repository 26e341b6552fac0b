"""Parts used by more than one architecture: the SqueezeNet 1.1 trunk, its pools, the SqueezeNext block."""

from typing import Any

import torch
import torch.nn as nn

from sqzoo.models.arguments import BYPASSES, POOLS, one_of


class Fire(nn.Module):
    """Fire module: 1x1 squeeze, then 1x1 and 3x3 expands side by side; (N, C, H, W) to (N, 2 * expand, H, W).

    Key names and arithmetic are those of torchvision's SqueezeNet, so that its ImageNet weights load. `bypass` adds
    the input to the output, SqueezeNet's future work in the paper: "simple" where the channels are equal, "complex"
    also where they differ, through a 1x1 convolution that starts at zero and so leaves an ImageNet trunk as it is.
    """

    def __init__(self, in_chs: int, squeeze: int, expand: int, bypass: str = "none", **dd: Any) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_chs, squeeze, 1, **dd)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1, **dd)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1, **dd)
        self.expand3x3_activation = nn.ReLU(inplace=True)
        if one_of("bypass", bypass, BYPASSES) != "none" and in_chs == 2 * expand:
            self.bypass: nn.Module | None = nn.Identity()
        else:
            self.bypass = nn.Conv2d(in_chs, 2 * expand, 1, **dd) if bypass == "complex" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.squeeze_activation(self.squeeze(x))
        y = torch.cat([self.expand1x1_activation(self.expand1x1(y)), self.expand3x3_activation(self.expand3x3(y))], 1)
        return y if self.bypass is None else y + self.bypass(x)


def trunk_pool(name: str, kind: str) -> nn.Module:
    """Return the 3x3, stride 2 pool that stands between the Fire modules; `kind` is "max" or "avg"."""
    if one_of(name, kind, POOLS) == "max":
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return nn.AvgPool2d(3, stride=2, ceil_mode=True)


def squeeze_trunk(in_chans: int, pool2: str, pool3: str, bypass: str = "none", **dd: Any) -> nn.Sequential:
    """Return SqueezeNet 1.1's `features` (722,496 parameters): (N, 3, 224, 224) to (N, 512, 13, 13).

    `pool2` and `pool3` are the paper's Pooling_2 and Pooling_3 (figure 7): `features.5` and `features.8`. `bypass` is
    that of every Fire module.
    """
    features = nn.Sequential(
        nn.Conv2d(in_chans, 64, 3, stride=2, **dd),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(64, 16, 64, bypass, **dd),
        Fire(128, 16, 64, bypass, **dd),
        trunk_pool("pool2", pool2),
        Fire(128, 32, 128, bypass, **dd),
        Fire(256, 32, 128, bypass, **dd),
        trunk_pool("pool3", pool3),
        Fire(256, 48, 192, bypass, **dd),
        Fire(384, 48, 192, bypass, **dd),
        Fire(384, 64, 256, bypass, **dd),
        Fire(512, 64, 256, bypass, **dd),
    )
    for name, module in features.named_modules():
        if isinstance(module, nn.Conv2d):
            if name.endswith(".bypass"):
                nn.init.zeros_(module.weight)
            else:
                nn.init.kaiming_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return features


class GlobalPool(nn.Module):
    """Pool (N, C, H, W) to (N, C * side * side) by "avg" or "max"; "" returns the map as it is."""

    def __init__(self, kind: str, side: int = 1) -> None:
        super().__init__()
        self.pool_type = one_of("global_pool", kind, (*POOLS, ""))  # timm reads this name when it saves a model
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool_type == "avg" and self.side == 1:
            # The mean alone: its gradient lies in memory as a channels-last map does, adaptive_avg_pool2d's does not,
            # which makes the ReLU before it 10 times slower in the backward pass.
            return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
        if self.pool_type == "avg":
            return torch.flatten(nn.functional.adaptive_avg_pool2d(x, (self.side, self.side)), 1)
        if self.pool_type == "max":
            return torch.flatten(nn.functional.adaptive_max_pool2d(x, (self.side, self.side)), 1)
        return x

    def extra_repr(self) -> str:
        return f"{self.pool_type!r}, side={self.side}"


def _conv(
    in_chs: int, out_chs: int, kernel: tuple[int, int], batch_norm: bool, separable: bool = False, **dd: Any
) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2)
    if separable:  # a filter for each channel, then a 1x1 convolution over them
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
    """SqueezeNext block: 1x1, 1x1 (two halving squeezes), 1x3, 3x1, 1x1, each with a bias and a ReLU.

    The first squeeze has `in_chs * reduction` channels, the second half of that. With `add` (figure 11, left) the
    input joins the output by addition, through a 1x1 convolution where the channels differ, and a last ReLU follows;
    without (figure 11, right; the paper's choice) it does not. `separable` makes the 1x3 and the 3x1 depthwise
    separable. (N, in_chs, H, W) to (N, out_chs, H, W).
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
