"""Pictures in, labelled probabilities out."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from sqzoo.data import Preprocessing
from sqzoo.errors import ArgumentError, DataError
from sqzoo.reading import Picture, Squares, label_names, read_ahead
from sqzoo.unsure import score


@dataclass(frozen=True)
class Prediction:
    """A class, its index, and its probability in 0...1 (softmax, at the temperature of the weights' calibration)."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Answer:
    """What a model says of one picture: its classes, the likeliest first, or the error that kept it from reading it.

    score: that of `sqzoo.unsure`, low for what is unlike the training pictures. unsure: it is below the threshold of
    the weights' calibration, "none of the classes, perhaps"; None where the model has no calibration.
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

    images: one or several of: file name, PIL image, uint8 array (H, W, 3), uint8 tensor (3, H, W); several arrays or
    tensors may come as one batch. They are prepared as the model's `pretrained_cfg` says, but a model that was trained
    on CIFAR-10 sees them as CIFAR-10 was made: the central square, shrunk to 32 pixels. It has never seen a sharp
    picture: of the one in `examples/` it is surer that way. Large JPEGs are decoded at a half, quarter or eighth of
    their size, which moves the shrunk pixels by about a level of 255.
    Raises `DataError` for a file that is no picture and `ArgumentError` for anything else.
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
    read = Squares.of(model)
    pictures = read_ahead(_each(images), read, 3 * batch_size, readers)
    return _answers(model.eval(), read.prepare, pictures, labels, top_k, batch_size)


def _answers(
    model: nn.Module,
    prepare: Preprocessing,
    pictures: Iterator[tuple[Picture, np.ndarray | DataError]],
    labels: list[str],
    top_k: int,
    batch_size: int,
) -> Iterator[Answer]:
    weight = next(model.parameters())
    calibration = getattr(model, "calibration", None) or {}
    temperature, threshold = calibration.get("temperature", 1.0), calibration.get("threshold")
    while batch := list(islice(pictures, batch_size)):
        squares = [square for _, square in batch if not isinstance(square, DataError)]
        found: Iterator[tuple[list[float], list[int], float]] = iter(())
        if squares:
            with torch.inference_mode():
                inputs = _inputs(squares, prepare).to(weight.device, weight.dtype)
                # float32 rounds the largest to 1 where the score still tells: what is left to the others counts.
                logits = model(inputs).cpu().double()  # not every device has float64
                probabilities = (logits / temperature).softmax(1)
                top, scores = probabilities.topk(top_k), score(probabilities)
            found = zip(top.values.tolist(), top.indices.tolist(), scores.tolist(), strict=True)
        for picture, square in batch:
            if isinstance(square, DataError):
                yield Answer(picture, [], error=square)
            else:
                values, indices, value = next(found)
                predictions = [Prediction(labels[i], i, v) for v, i in zip(values, indices, strict=True)]
                yield Answer(picture, predictions, value, None if threshold is None else value < threshold)


def _inputs(squares: list[np.ndarray], prepare: Preprocessing) -> torch.Tensor:
    if len({square.shape for square in squares}) == 1:
        return prepare(np.stack(squares))
    return torch.cat([prepare(square[None]) for square in squares])  # a picture below 32 pixels is among them


def _each(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    single = isinstance(images, str | os.PathLike | Image.Image)
    if isinstance(images, np.ndarray | torch.Tensor):
        single = images.ndim == 3
    return [images] if single else images  # type: ignore[list-item,return-value]
