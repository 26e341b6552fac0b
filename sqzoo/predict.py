"""Pictures in, labelled probabilities out."""

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
from sqzoo.images.reader import ImageReader, Picture, label_names, read_ahead
from sqzoo.models.base import evaluation_mode
from sqzoo.uncertainty import score


@dataclass(frozen=True)
class Prediction:
    """A class, its index, and its probability in 0...1 (softmax of the model's logits)."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Answer:
    """What a model says of one picture: its classes, the likeliest first, or the error that kept it from reading it.

    score: that of `sqzoo.uncertainty`, low for what is unlike the training pictures. unsure: it is below the
    threshold of the weights, "none of the classes, perhaps"; None where the model has no threshold.
    """

    picture: Picture
    predictions: list[Prediction]
    score: float | None = None
    unsure: bool | None = None
    error: DataError | None = None


def predict(
    model: nn.Module,
    images: Picture | Iterable[Picture],
    *,
    top_k: int = 1,
    batch_size: int = 16,
) -> list[list[Prediction]]:
    """Return the `top_k` classes of each image, the likeliest first.

    They are prepared as the model's `pretrained_cfg` says, by the steps of timm's own transform. A model that was
    trained on CIFAR-10 asks for 32x32 and so sees a sharp photo as CIFAR-10 was made, reduced to 32 pixels; large JPEGs
    are decoded at a half, quarter or eighth of their size first.

    Args:
        model: a model that `sqzoo.create_model` or `timm.create_model` made; it keeps its mode.
        images: one or several of: file name, PIL image, uint8 array (H, W, 3), uint8 tensor (3, H, W); several arrays
            or tensors may come as one batch.
        top_k: classes to return per image.
        batch_size: images per forward pass.

    Returns:
        A list of predictions for each image.

    Raises:
        DataError: a file is no picture.
        ArgumentError: anything else is not as above, or the model's weights have NaN or infinity.
    """
    results = []
    for answer in classify(model, images, top_k=top_k, batch_size=batch_size):
        if answer.error:
            raise answer.error
        results.append(answer.predictions)
    return results


def classify(
    model: nn.Module,
    images: Picture | Iterable[Picture],
    *,
    top_k: int = 1,
    batch_size: int = 16,
    readers: int | None = None,
) -> Iterator[Answer]:
    """Yield an `Answer` for each image, in order; a file that is no picture becomes an answer with its error.

    Arguments as in `predict`. `readers` threads (default: one a core) decode ahead of the network by two batches, so
    that any number of images takes the same memory: `images` may be a generator.
    """
    labels = label_names(model)
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= len(labels):
        raise ArgumentError(f"top_k must be a whole number from 1 to {len(labels)}, not {top_k!r}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ArgumentError(f"batch_size must be a whole number from 1, not {batch_size!r}.")
    pictures = read_ahead(_each(images), ImageReader.of(model), 3 * batch_size, readers)
    return _answers(model, Normalise.of(model), pictures, labels, top_k, batch_size)


def _answers(
    model: nn.Module,
    normalise: Normalise,
    pictures: Iterator[tuple[Picture, np.ndarray | DataError]],
    labels: list[str],
    top_k: int,
    batch_size: int,
) -> Iterator[Answer]:
    weight, threshold = next(model.parameters()), getattr(model, "ood_threshold", None)
    while batch := list(islice(pictures, batch_size)):
        squares = [square for _, square in batch if not isinstance(square, DataError)]
        found: Iterator[tuple[list[float], list[int], float]] = iter(())
        if squares:
            with evaluation_mode(model), torch.inference_mode():
                inputs = normalise(np.stack(squares)).to(weight.device, weight.dtype)
                # float32 rounds the largest to 1 where the score still tells: what is left to the others counts.
                probabilities = model(inputs).cpu().double().softmax(1)  # not every device has float64
                check_finite(model, probabilities)
                top, scores = probabilities.topk(top_k), score(probabilities)
            found = zip(top.values.tolist(), top.indices.tolist(), scores.tolist(), strict=True)
        for picture, square in batch:
            if isinstance(square, DataError):
                yield Answer(picture, [], error=square)
            else:
                values, indices, value = next(found)
                predictions = [Prediction(labels[i], i, v) for v, i in zip(values, indices, strict=True)]
                yield Answer(picture, predictions, value, None if threshold is None else value < threshold)


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


def _each(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    single = isinstance(images, str | os.PathLike | Image.Image)
    if isinstance(images, np.ndarray | torch.Tensor):
        single = images.ndim == 3
    return [images] if single else images  # type: ignore[list-item,return-value]
