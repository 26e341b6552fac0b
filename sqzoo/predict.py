"""Classify images: labelled probabilities, and an out-of-distribution score for each image."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from sqzoo.data import Normalise
from sqzoo.errors import ArgumentError, DataError
from sqzoo.images.reader import ImageInput, ImageReader, label_names, read_ahead
from sqzoo.models.base import evaluation_mode
from sqzoo.uncertainty import ood_score


@dataclass(frozen=True)
class Prediction:
    """A class: its label, index, and probability in 0...1 (softmax of the model's logits)."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Classification:
    """The result for one image.

    Args:
        image: the input.
        predictions: classes, most probable first.
        ood_score: see `sqzoo.uncertainty`; low for images unlike the training images.
        abstain: whether the score is below the weights' threshold: probably none of the classes. None where the model
            has no threshold.
        error: why the image could not be read; then there are no predictions.
    """

    image: ImageInput
    predictions: list[Prediction]
    ood_score: float | None = None
    abstain: bool | None = None
    error: DataError | None = None


def predict(
    model: nn.Module, images: ImageInput | Iterable[ImageInput], *, top_k: int = 1, batch_size: int = 16
) -> list[list[Prediction]]:
    """Return the `top_k` most probable classes of each image.

    Images are prepared by the steps of timm's transform for the model's `pretrained_cfg`. Models trained on CIFAR-10
    take 32x32 pixels, so photos are reduced to that, as CIFAR-10 was made.

    Args:
        model: a model of `sqzoo.create_model` or `timm.create_model`; its mode is restored.
        images: one or several file names, PIL images, uint8 arrays (H, W, 3) or uint8 tensors (3, H, W); several
            arrays or tensors may come as one batch.
        top_k: classes per image.
        batch_size: images per forward pass.

    Returns:
        A list of predictions for each image.

    Raises:
        DataError: a file is not an image.
        ArgumentError: anything else is not as above, or the model's weights have NaN or infinity.
    """
    results = []
    for result in classify(model, images, top_k=top_k, batch_size=batch_size):
        if result.error:
            raise result.error
        results.append(result.predictions)
    return results


def classify(
    model: nn.Module,
    images: ImageInput | Iterable[ImageInput],
    *,
    top_k: int = 1,
    batch_size: int = 16,
) -> Iterator[Classification]:
    """Yield a `Classification` for each image, in order, in constant memory; unreadable files become results too.

    Threads decode two batches ahead of the network.

    Args:
        model: as in `predict`.
        images: as in `predict`; may be a generator.
        top_k: classes per image.
        batch_size: images per forward pass.

    Raises:
        ArgumentError: an argument is not as above.
    """
    labels = label_names(model)
    if type(top_k) is not int or not 1 <= top_k <= len(labels):
        raise ArgumentError(f"top_k must be a whole number from 1 to {len(labels)}, not {top_k!r}.")
    if type(batch_size) is not int or batch_size < 1:
        raise ArgumentError(f"batch_size must be a whole number from 1, not {batch_size!r}.")
    pixels = read_ahead(_as_iterable(images), ImageReader.of(model), 3 * batch_size)
    return _classify(model, pixels, labels, top_k, batch_size)


def _classify(
    model: nn.Module,
    pixels: Iterator[tuple[ImageInput, np.ndarray | DataError]],
    labels: list[str],
    top_k: int,
    batch_size: int,
) -> Iterator[Classification]:
    normalise, weight = Normalise.of(model), next(model.parameters())
    threshold = getattr(model, "ood_threshold", None)
    while batch := list(islice(pixels, batch_size)):
        readable = [x for _, x in batch if not isinstance(x, DataError)]
        rows: Iterator[tuple[list[float], list[int], float]] = iter(())
        if readable:
            with evaluation_mode(model), torch.inference_mode():
                inputs = normalise(np.stack(readable)).to(weight.device, weight.dtype)
                # float32 rounds the largest probability to 1 while the score still depends on the small ones.
                probabilities = model(inputs).cpu().double().softmax(1)  # on the CPU: not every device has float64
                check_finite(model, probabilities)
                top, scores = probabilities.topk(top_k), ood_score(probabilities)
            rows = zip(top.values.tolist(), top.indices.tolist(), scores.tolist(), strict=True)
        for image, x in batch:
            if isinstance(x, DataError):
                yield Classification(image, [], error=x)
                continue
            values, indices, score = next(rows)
            predictions = [Prediction(labels[i], i, v) for v, i in zip(values, indices, strict=True)]
            yield Classification(image, predictions, score, None if threshold is None else score < threshold)


def check_finite(model: nn.Module, probabilities: torch.Tensor) -> None:
    """Raise ArgumentError where a model's probabilities are NaN; it names the weights that have NaN or infinity."""
    if bool(probabilities.isfinite().all()):
        return
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    odd = [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if odd:
        raise ArgumentError(
            f"The model's {odd[0]} has NaN or infinity, as a failed training leaves it; load its weights again."
        )
    raise ArgumentError("The model answers with NaN, though its weights are finite; try it in float32: model.float().")


def _as_iterable(images: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput]:
    single = isinstance(images, str | os.PathLike | Image.Image)
    if isinstance(images, np.ndarray | torch.Tensor):
        single = images.ndim == 3
    if not single and not isinstance(images, Iterable):
        raise ArgumentError(f"images must be one image or several, not {images!r}; give file names, for example.")
    return [images] if single else images  # type: ignore[list-item,return-value]
