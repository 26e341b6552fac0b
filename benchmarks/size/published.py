"""Published CIFAR-10 networks under a million parameters: their figures as quoted, their architecture to time here.

No weights of theirs are used: the time and the multiply-adds of a network do not hang on its weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn

_OSMR = "github.com/osmr/imgclsmob at f2993d3c, pytorch/README.md"
_CHENYAOFO = "github.com/chenyaofo/pytorch-cifar-models at 786c162, README.md"
_CONDENSE = "github.com/ShichenLiu/CondenseNet, README.md"


class _Squeeze(nn.Module):
    """Squeeze-and-excitation: each channel times a gate made of all channels' means."""

    def __init__(self, chs: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(chs, chs // 16, 1), nn.ReLU(), nn.Conv2d(chs // 16, chs, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


def _conv(in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chs))


class _Unit(nn.Module):
    def __init__(self, in_chs: int, out_chs: int, stride: int, se: bool) -> None:
        super().__init__()
        body = [_conv(in_chs, out_chs, 3, stride), nn.ReLU(), _conv(out_chs, out_chs, 3)]
        self.body = nn.Sequential(*body, *([_Squeeze(out_chs)] if se else []))
        self.shortcut = nn.Identity() if in_chs == out_chs else _conv(in_chs, out_chs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(depth: int, se: bool = False) -> nn.Module:
    """Return the CIFAR ResNet of 6n + 2 layers, with projections: (N, 3, 32, 32) to (N, 10)."""
    layers: list[nn.Module] = [_conv(3, 16, 3), nn.ReLU()]
    in_chs = 16
    for chs in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            layers.append(_Unit(in_chs, chs, 1 if in_chs == chs else 2, se))
            in_chs = chs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class _Dense(nn.Module):
    def __init__(self, in_chs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.BatchNorm2d(in_chs), nn.ReLU(), nn.Conv2d(in_chs, 4 * growth, 1, bias=False)),
            *(nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet_bc(depth: int, growth: int) -> nn.Module:
    """Return the CIFAR DenseNet-BC, three blocks, compression one half: (N, 3, 32, 32) to (N, 10)."""
    chs = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(3, chs, 3, padding=1, bias=False)]
    for block in range(3):
        if block:
            layers += [nn.BatchNorm2d(chs), nn.ReLU(), nn.Conv2d(chs, chs // 2, 1, bias=False), nn.AvgPool2d(2)]
            chs //= 2
        for _ in range((depth - 4) // 6):
            layers.append(_Dense(chs, growth))
            chs += growth
    layers += [nn.BatchNorm2d(chs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(chs, 10)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Published:
    """A network with its published top-1 accuracy in percent, parameters and multiply-adds (both in millions)."""

    name: str
    top1: float
    params: float
    macs: float
    source: str
    build: Callable[[], nn.Module] | None = None  # None: its architecture is not written here, so not timed


PUBLISHED = (
    Published("SE-ResNet-56", 95.87, 0.863, 127, f"{_OSMR} l.516", lambda: resnet(56, se=True)),
    Published("DenseNet-BC-100 k=12", 95.84, 0.769, 298, f"{_OSMR} l.540", lambda: densenet_bc(100, 12)),
    Published("CondenseNet-122", 95.52, 0.95, 117, f"{_CONDENSE} l.114-121"),
    Published("ResNet-56", 95.48, 0.856, 127, f"{_OSMR} l.496", lambda: resnet(56)),
    Published("ResNet-56 (another training)", 94.37, 0.86, 126, _CHENYAOFO, lambda: resnet(56)),
    Published("ResNet-20", 94.03, 0.272, 41, f"{_OSMR} l.495", lambda: resnet(20)),
    Published("DenseNet-BC-40 k=12", 93.57, 0.176, 75, f"{_OSMR} l.535", lambda: densenet_bc(40, 12)),
    Published("ResNet-20 (another training)", 92.60, 0.27, 41, _CHENYAOFO, lambda: resnet(20)),
)
