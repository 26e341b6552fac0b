"""Loss and accuracy of a model on labelled images."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

from sqzoo.data import Dataset, Preprocessing


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
    return Metrics(float(loss.mean()), 100.0 * float((rows.argmax(1) == right).mean()), len(rows))


def evaluate(
    model: nn.Module, data: Dataset, preprocessing: Preprocessing | None = None, batch_size: int | None = None
) -> Metrics:
    """Evaluate a model, one centre view per image; arguments as in `logits`."""
    return metrics(logits(model, data, preprocessing, batch_size), data.labels)


def logits(
    model: nn.Module, data: Dataset, preprocessing: Preprocessing | None = None, batch_size: int | None = None
) -> torch.Tensor:
    """Compute a model's logits (N, classes) in evaluation mode, one centre view per image, on the CPU.

    Args:
        model: its mode is left as it was.
        data: labelled images.
        preprocessing: by default the one in the model's `pretrained_cfg`.
        batch_size: by default 8 on a CPU, whose cache then holds the activations (twice as fast as 64), else 512.
    """
    prepare = preprocessing or Preprocessing.of(model.pretrained_cfg)  # type: ignore[arg-type]
    device = next(model.parameters()).device
    size = batch_size or (8 if device.type == "cpu" else 512)
    was_training = model.training
    model.eval().to(memory_format=torch.channels_last)
    try:
        with torch.inference_mode(), exact_arithmetic():
            starts: Iterable[int] = range(0, len(data), size)
            found = [model(prepare(data[i : i + size].images).to(device)) for i in starts]
    finally:
        model.train(was_training)
    return torch.cat(found).cpu()


def exact_arithmetic() -> "torch.backends.ContextProp | object":
    """Return a context in which cuDNN computes deterministically and float32 is float32, not TF32."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
