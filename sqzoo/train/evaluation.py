"""Loss and accuracy of a model on labelled images."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

from sqzoo.data import Dataset, Normalise
from sqzoo.models.base import evaluation_mode


@dataclass(frozen=True)
class Metrics:
    """Mean cross-entropy (nats), top-1 accuracy in percent, and the number of images."""

    loss: float
    top1: float
    images: int


def metrics(logits: torch.Tensor, labels: torch.Tensor | np.ndarray) -> Metrics:
    """Return the metrics of logits (N, classes) for labels (N,); the sums are in NumPy's float64, which MPS lacks."""
    rows, right = logits.cpu().numpy().astype(np.float64), np.asarray(labels)
    rows -= rows.max(1, keepdims=True)
    loss = np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), right]
    return Metrics(float(loss.mean()), 100.0 * int((rows.argmax(1) == right).sum()) / len(rows), len(rows))


def evaluate(model: nn.Module, data: Dataset, batch_size: int | None = None) -> Metrics:
    """Evaluate a model, one centre view per image; arguments as in `logits`."""
    return metrics(logits(model, data, batch_size), data.labels)


def logits(model: nn.Module, data: Dataset, batch_size: int | None = None) -> torch.Tensor:
    """Compute a model's logits (N, classes) in evaluation mode, one centre view per image, on the CPU.

    Args:
        model: its mode is left as it was.
        data: labelled images, of the size that the model takes.
        batch_size: by default 8 on a CPU, whose cache then holds the activations (twice as fast as 64), else 512.
    """
    prepare = Normalise.of(model)
    device = next(model.parameters()).device
    size = batch_size or (8 if device.type == "cpu" else 512)
    model.to(memory_format=torch.channels_last)
    with evaluation_mode(model), torch.inference_mode(), exact_arithmetic():
        starts = range(0, len(data), size)
        found = [model(prepare(torch.from_numpy(data[i : i + size].images).to(device))) for i in starts]
    return torch.cat(found).cpu()


def exact_arithmetic() -> AbstractContextManager[None]:
    """Return a context in which cuDNN computes deterministically and float32 is float32, not TF32."""
    context: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return context
