"""Loss and accuracy of a model on labelled images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from sqzoo.data import Dataset, Preprocessing


@dataclass(frozen=True)
class Metrics:
    """Mean cross-entropy (nats), top-1 accuracy in percent, and the number of images."""

    loss: float
    top1: float
    images: int


def score(forward: Callable[[Any], torch.Tensor], batches: Iterator[tuple[Any, torch.Tensor]]) -> Metrics:
    """Run `forward` on (inputs, labels) batches and return the metrics; the sums are in float64.

    Where `forward` gives several heads' logits, one after another, the metrics are the heads' mean.
    """
    return scores([forward], batches)[0]


def scores(
    forwards: Sequence[Callable[[Any], torch.Tensor]], batches: Iterator[tuple[Any, torch.Tensor]]
) -> list[Metrics]:
    """Return the metrics of each of several networks, from one pass over the batches."""
    loss, right, images = [0.0] * len(forwards), [0] * len(forwards), [0] * len(forwards)
    with torch.inference_mode():
        for inputs, labels in batches:
            for i, forward in enumerate(forwards):
                logits = forward(inputs)
                wanted = labels.repeat(len(logits) // len(labels))
                loss[i] += F.cross_entropy(logits.double(), wanted, reduction="sum").item()
                right[i] += int((logits.argmax(1) == wanted).sum())
                images[i] += len(wanted)
    return [Metrics(lo / n, 100.0 * r / n, n) for lo, r, n in zip(loss, right, images, strict=True)]


def evaluate(
    model: nn.Module, data: Dataset, preprocessing: Preprocessing | None = None, batch_size: int = 8
) -> Metrics:
    """Return the metrics of a model in evaluation mode, one centre view an image; arguments as in `logits`."""
    return metrics(logits(model, data, preprocessing, batch_size), torch.from_numpy(data.labels))


def metrics(found: torch.Tensor, labels: torch.Tensor) -> Metrics:
    """Return the metrics of logits (N, classes)."""
    return score(lambda x: x, iter([(found, labels)]))


def logits(
    model: nn.Module, data: Dataset, preprocessing: Preprocessing | None = None, batch_size: int = 8
) -> torch.Tensor:
    """Return a model's logits (N, classes) in evaluation mode, one centre view an image, on the CPU.

    preprocessing: by default the one in the model's `pretrained_cfg`. The small default batch keeps the activations in
    the processor's cache, twice as fast on a CPU as batches of 64.
    """
    prepare = preprocessing or Preprocessing.of(model.pretrained_cfg)  # type: ignore[arg-type]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval().to(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            starts = range(0, len(data), batch_size)
            found = [model(prepare(data[i : i + batch_size].images).to(device)).cpu() for i in starts]
    finally:
        model.train(was_training)
    return torch.cat(found)
