"""Logits, loss and accuracy of a model on labelled images."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from sqzoo.data import Dataset, Normalise
from sqzoo.models.base import evaluation_mode


@dataclass(frozen=True)
class Metrics:
    """Mean cross-entropy (nats), top-1 accuracy (percent) and the number of images."""

    loss: float
    top1: float
    images: int


def metrics(logits: torch.Tensor, labels: torch.Tensor | np.ndarray) -> Metrics:
    """Compute loss and accuracy on the CPU; the mean is taken in float64, by NumPy, since MPS has none.

    Args:
        logits: (N, classes).
        labels: (N,).
    """
    rows, target = logits.cpu().float(), torch.as_tensor(labels)
    losses, right = F.cross_entropy(rows, target, reduction="none").numpy(), int((rows.argmax(1) == target).sum())
    return Metrics(float(losses.mean(dtype=np.float64)), 100.0 * right / len(rows), len(rows))


def evaluate(model: nn.Module, data: Dataset, batch_size: int | None = None) -> Metrics:
    """Compute a model's loss and accuracy, one centre view per image; arguments as for `logits`."""
    return metrics(logits(model, data, batch_size), data.labels)


def logits(model: nn.Module, data: Dataset, batch_size: int | None = None) -> torch.Tensor:
    """Compute a model's logits in evaluation mode, one centre view per image.

    Args:
        model: keeps its mode.
        data: labelled images of the size that the model takes.
        batch_size: None is 8 on a CPU, whose cache then holds the activations (twice as fast as 64), else 512.

    Returns:
        (N, classes), on the CPU.
    """
    prepare = Normalise.of(model)
    device = next(model.parameters()).device
    size = batch_size or (8 if device.type == "cpu" else 512)
    model.to(memory_format=torch.channels_last)
    with evaluation_mode(model), torch.inference_mode(), exact_arithmetic():
        starts = range(0, len(data), size)
        results = [model(prepare(torch.from_numpy(data[i : i + size].images).to(device))) for i in starts]
    return torch.cat(results).cpu()


def exact_arithmetic() -> AbstractContextManager[None]:
    """Return a context in which cuDNN computes deterministically, and float32 as float32, not TF32."""
    context: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return context
