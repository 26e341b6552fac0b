"""Loss and accuracy of a model on labelled images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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


def score(
    forward: Callable[[torch.Tensor], torch.Tensor], batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
) -> Metrics:
    """Run `forward` on (inputs, labels) batches and return the metrics; the sums are in float64.

    Where `forward` gives several heads' logits, one after another, the metrics are the heads' mean.
    """
    loss, right, images = 0.0, 0, 0
    with torch.inference_mode():
        for inputs, labels in batches:
            logits = forward(inputs)
            labels = labels.repeat(len(logits) // len(labels))
            loss += F.cross_entropy(logits.double(), labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
            images += len(labels)
    return Metrics(loss / images, 100.0 * right / images, images)


def evaluate(
    model: nn.Module, data: Dataset, preprocessing: Preprocessing | None = None, batch_size: int = 8
) -> Metrics:
    """Return the metrics of a model in evaluation mode, one centre view an image.

    preprocessing: by default the one in the model's `pretrained_cfg`. The small default batch keeps the activations in
    the processor's cache, twice as fast on a CPU as batches of 64.
    """
    prepare = preprocessing or Preprocessing.of(model.pretrained_cfg)  # type: ignore[arg-type]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval().to(memory_format=torch.channels_last)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for low in range(0, len(data), batch_size):
            part = data[low : low + batch_size]
            yield prepare(part.images).to(device), torch.from_numpy(part.labels).to(device)

    try:
        return score(model, batches())
    finally:
        model.train(was_training)
