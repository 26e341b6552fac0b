"""Compare another runtime's outputs with PyTorch's."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

from sqzoo.errors import ExportError
from sqzoo.images import SAMPLE

TOLERANCE = 1e-4  # largest difference of an output, relative to the largest output where that is above 1
BF16_TOLERANCE, INT8_TOLERANCE = 0.03, 0.15  # root mean square difference, relative to the outputs' standard deviation

Runtime = Callable[[torch.Tensor], torch.Tensor]  # from a batch of images to outputs


def photo_crops(count: int, size: tuple[int, ...]) -> torch.Tensor:
    """Return square crops of the package's photo, resized to `size` (H, W): (count, 3, H, W) uint8, always the same.

    Of noise, a network that ends in a ReLU has 0 for every class: any runtime would give the same.
    """
    photo = torch.from_numpy(np.array(Image.open(SAMPLE).convert("RGB"))).permute(2, 0, 1)
    generator = torch.Generator("cpu").manual_seed(0)
    crops = []
    for _ in range(count):
        side = int(torch.randint(96, min(photo.shape[1:]) + 1, (), generator=generator))
        top, left = (int(torch.randint(0, full - side + 1, (), generator=generator)) for full in photo.shape[1:])
        crop = photo[None, :, top : top + side, left : left + side]
        crops.append(F.interpolate(crop, size, mode="bilinear", antialias=True))
    return torch.cat(crops)


def compare(
    module: nn.Module, runtime: Runtime, batches: Sequence[torch.Tensor], name: str, tolerance: float | None = None
) -> None:
    """Compare a runtime's outputs with PyTorch's.

    Args:
        module: the network in PyTorch, in evaluation mode.
        runtime: what runs the same network.
        batches: inputs, each given to both as one batch.
        name: what is compared, the beginning of the error's sentence.
        tolerance: allowed root mean square difference over all batches, relative to the outputs' standard deviation;
            None allows no output to differ by more than `TOLERANCE`.

    Raises:
        ExportError: the outputs differ by more, have another shape, or are not finite.
    """
    expected, results = [], []
    with torch.inference_mode():
        for images in batches:
            expected.append(module(images).double())
            results.append(runtime(images).double())
            if results[-1].shape != expected[-1].shape or not results[-1].isfinite().all():
                raise ExportError(
                    f"{name} gives outputs of shape {list(results[-1].shape)}, not finite {list(expected[-1].shape)}."
                )
        target, result = torch.cat(expected), torch.cat(results)
        if tolerance is None:
            error = float((result - target).abs().max() / target.abs().max().clamp_min(1))
        else:
            error = float((result - target).square().mean().sqrt() / (target.std(correction=0) or 1))
    if not error <= (tolerance or TOLERANCE):
        raise ExportError(
            f"{name} gives other outputs than PyTorch: they differ by {error:.2g}, and {tolerance or TOLERANCE:g} is "
            "allowed; use another format, backend, or version of its packages."
        )
