"""Upsample images in front of a trunk: networks for CIFAR-10 take 32x32 images and enlarge them inside."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.jit import is_tracing  # type: ignore[attr-defined]  # torch does not list it as an export

from sqzoo.errors import ArgumentError

SOURCE_SIZE = 32  # CIFAR-10's image size, in pixels
_MAX_SIZE = 4096


def reduce_to(x: torch.Tensor, size: int) -> torch.Tensor:
    """Reduce images with a side above `size` to size x size, antialiased, as CIFAR-10 was made."""
    if x.shape[2] > size or x.shape[3] > size:
        # Antialiasing has no half-precision kernel on every device.
        return F.interpolate(x.float(), size=[size, size], mode="bilinear", antialias=True).to(x.dtype)
    return x


def enlarge_to(x: torch.Tensor, size: int) -> torch.Tensor:
    """Enlarge sides below `size` to it, bilinearly."""
    # Traced sizes are tensors, and comparing them warns.
    if not is_tracing() and (x.shape[2] < size or x.shape[3] < size):
        return F.interpolate(x, size=[max(x.shape[2], size), max(x.shape[3], size)], mode="bilinear")
    return x


torch.fx.wrap("reduce_to")  # symbolic tracing would trip over its comparison


class Upsample(nn.Module):
    """Enlarge images bilinearly to the size that a trunk was trained at: (N, C, H, W) to (N, C, crop, crop).

    Interpolation commutes with normalisation, so it takes normalised images. Nothing is rounded in between, so that
    every runtime computes the same.

    Args:
        resize: image size in pixels that 32x32 images are enlarged to.
        crop: size of the centre crop; None keeps all. The paper has 256 and 224.
    """

    def __init__(self, resize: int, crop: int | None = None) -> None:
        super().__init__()
        self.source_size = SOURCE_SIZE
        self.resize = resize
        self.crop = resize if crop is None else crop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(reduce_to(x, self.source_size), size=[self.resize, self.resize], mode="bilinear")
        low = (self.resize - self.crop) // 2
        return x[:, :, low : low + self.crop, low : low + self.crop] if self.crop < self.resize else x

    def extra_repr(self) -> str:
        return f"resize={self.resize}, crop={self.crop}"


def tuned_input(upsample: int | Sequence[int]) -> dict[str, Any]:
    """Return the fields of `pretrained_cfg` for images of the upsampled size."""
    resize, crop = _sizes(upsample)
    return {"input_size": (3, crop, crop), "crop_pct": crop / resize}


def _sizes(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def make_upsample(value: object) -> nn.Module:
    """Build the module for an architecture's argument `upsample`.

    Args:
        value: None, an image size, or a pair (resize, crop).

    Raises:
        ArgumentError: it is anything else.
    """
    if value is None:
        return nn.Identity()
    sizes = _sizes(value)
    if len(sizes) != 2 or any(type(v) is not int or not SOURCE_SIZE <= v <= _MAX_SIZE for v in sizes):
        raise ArgumentError(
            f"upsample must be None, a size from {SOURCE_SIZE} to {_MAX_SIZE} pixels or a (resize, crop) pair of "
            f"such sizes, not {value!r}."
        )
    if sizes[1] > sizes[0]:
        raise ArgumentError(f"upsample={value!r} crops {sizes[1]} of {sizes[0]} pixels; give the larger one first.")
    return Upsample(*sizes)
