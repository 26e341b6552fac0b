"""Whether another runtime gives what PyTorch gives."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn as nn

from sqzoo.errors import ExportError

TOLERANCE = 1e-4  # largest difference of an output, as a part of the largest output where that is above 1
BF16_TOLERANCE, INT8_TOLERANCE = 0.03, 0.15  # root mean square difference, as a part of the outputs' own spread

Run = Callable[[torch.Tensor], torch.Tensor]


def compare(module: nn.Module, run: Run, images: torch.Tensor, name: str, spread: float | None = None) -> None:
    """Raise `ExportError` unless `run` gives what `module` gives for the images, one at a time and all at once.

    spread: allow this root mean square difference, as a part of the outputs' standard deviation, instead of
    `TOLERANCE`. One image alone is then not judged by its numbers, but by its shape.
    """
    with torch.inference_mode():
        wanted = module(images).double().numpy()
        for count in sorted({1, len(images)}):
            found, expected = run(images[:count]).double().numpy(), wanted[:count]
            if found.shape != expected.shape or not np.isfinite(found).all():
                raise ExportError(
                    f"{name} gives outputs of shape {list(found.shape)}, not finite {list(expected.shape)}."
                )
            error = float(np.abs(found - expected).max() / max(1.0, np.abs(wanted).max()))
            if spread is not None:
                error = float(np.sqrt(np.mean((found - expected) ** 2)) / (wanted.std() or 1.0)) if count > 1 else 0.0
            if error > (spread or TOLERANCE):
                raise ExportError(
                    f"{name} gives other outputs than PyTorch for {count} images: they differ by {error:.2g}, and "
                    f"{spread or TOLERANCE:g} is allowed; use another format, backend, or version of its packages."
                )
