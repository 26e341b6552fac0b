"""From uint8 images to a network's input: the normalisation constants, resizing and cropping."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
NORMALISATIONS = {"imagenet": IMAGENET, "cifar10": CIFAR10}


@dataclass(frozen=True)
class Preprocessing:
    """What stands between uint8 images and the network: resize to side / crop_pct, centre crop, normalise.

    The defaults are the paper's: 256, then the central 224. With crop_pct 1 all of the picture is seen.
    """

    side: int = 224
    crop_pct: float = 0.875
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]

    @staticmethod
    def of(config: Mapping[str, Any]) -> "Preprocessing":
        """Take it from a model's `pretrained_cfg`."""
        return Preprocessing(config["input_size"][1], config["crop_pct"], tuple(config["mean"]), tuple(config["std"]))

    def __call__(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Turn square (N, H, W, 3) uint8 images into (N, 3, side, side) float32, channels last.

        Bit for bit what torchvision's Resize, CenterCrop, ToTensor and Normalize give for PIL images, where 32 pixels
        grow by a whole factor, as in all recipes; at other sizes PyTorch's fixed-point weights are shorter than
        Pillow's, and a few pixels are a level or two of 255 apart.
        """
        x = torch.as_tensor(images if isinstance(images, torch.Tensor) else np.require(images, requirements="W"))
        x = x.permute(0, 3, 1, 2)
        whole = int(self.side / self.crop_pct)
        if x.shape[-1] != whole or x.shape[-2] != whole:
            x = F.interpolate(x, size=(whole, whole), mode="bilinear", antialias=True)
        low = round((whole - self.side) / 2)
        x = x[:, :, low : low + self.side, low : low + self.side]
        return normalise(x, self.mean, self.std)


@dataclass(frozen=True)
class Normalise:
    """Normalise uint8 images: over 255, minus the mean, over the standard deviation.

    Args:
        mean, std: of each channel, in 0...1.
    """

    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]

    @staticmethod
    def of(model: nn.Module) -> "Normalise":
        """Return that of a model's `pretrained_cfg`; grey images take the mean of the three channels' constants."""
        config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        mean, std = tuple(config["mean"]), tuple(config["std"])
        if getattr(model, "in_chans", len(mean)) == 1 < len(mean):
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        return Normalise(mean, std)

    def __call__(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Turn uint8 images (N, H, W, C) into float32 (N, C, H, W), channels last."""
        x = torch.as_tensor(images if isinstance(images, torch.Tensor) else np.require(images, requirements="W"))
        return normalise(x.permute(0, 3, 1, 2), self.mean, self.std)


def normalise(x: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Turn (N, 3, H, W) uint8 in 0...255 into float32, minus `mean`, over `std` (both in 0...1), channels last."""
    x = x.to(torch.float32, memory_format=torch.channels_last).div_(255)
    # Whole rows of pixels at a time: by single pixels, of three values each, it takes four times as long.
    rows = x.permute(0, 2, 3, 1).view(-1, x.shape[3] * x.shape[1])
    rows.sub_(_row(mean, x.shape[3], x.device)).div_(_row(std, x.shape[3], x.device))
    return x


@lru_cache(maxsize=32)
def _row(values: tuple[float, ...], width: int, device: torch.device) -> torch.Tensor:
    """Return the constants of a row of pixels, put on the device once: in a training step a copy there would block."""
    return torch.tensor(values, dtype=torch.float32).repeat(width).to(device)
