"""Normalise uint8 images into a network's input."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn as nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, std
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
NORMALISATIONS = {"imagenet": IMAGENET, "cifar10": CIFAR10}


@dataclass(frozen=True)
class Normalise:
    """Normalise uint8 images: divide by 255, subtract the mean, divide by the standard deviation.

    Args:
        mean: of each channel, in 0...1.
        std: of each channel, in 0...1.
    """

    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]

    @staticmethod
    def of(model: nn.Module) -> "Normalise":
        """Take mean and std from a model's `pretrained_cfg`; for grey images, averaged over the three channels."""
        config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        mean, std = tuple(config["mean"]), tuple(config["std"])
        if getattr(model, "in_chans", len(mean)) == 1 < len(mean):
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        return Normalise(mean, std)

    def __call__(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Turn uint8 images (N, H, W, C) into float32 (N, C, H, W), channels last."""
        x = torch.as_tensor(images if isinstance(images, torch.Tensor) else np.require(images, requirements="W"))
        x = x.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).div_(255)
        # A row of pixels at a time: by single pixels, of three values each, it takes four times as long.
        rows = x.permute(0, 2, 3, 1).view(-1, x.shape[3] * x.shape[1])
        rows.sub_(_row(self.mean, x.shape[3], x.device)).div_(_row(self.std, x.shape[3], x.device))
        return x


@lru_cache(maxsize=32)
def _row(values: tuple[float, ...], width: int, device: torch.device) -> torch.Tensor:
    """Repeat constants over a row of pixels, on the device once: in a training step a copy there would block."""
    return torch.tensor(values, dtype=torch.float32).repeat(width).to(device)
