"""Pictures in, labelled probabilities out."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from sqzoo.data import open_image
from sqzoo.errors import ArgumentError
from sqzoo.pictures import OWN_PICTURES
from sqzoo.weights import CIFAR10_CLASSES

_CIFAR_SIDE = 32
Picture = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Prediction:
    """A class, its index, and its probability in 0...1 (softmax)."""

    label: str
    index: int
    probability: float


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
    picture: of the one in `examples/` it is surer that way.
    Raises `DataError` for a file that is no picture and `ArgumentError` for anything else.
    """
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    classes = int(model.num_classes)  # type: ignore[arg-type]
    labels = config.get("label_names") or ()
    if len(labels) != classes:
        labels = [str(i) for i in range(classes)]
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= len(labels):
        raise ArgumentError(f"top_k must be a whole number from 1 to {len(labels)}, not {top_k!r}.")
    transform = create_transform(**resolve_model_data_config(model))
    own = config.get("tag") == OWN_PICTURES
    shrinks = tuple(labels) == CIFAR10_CLASSES and not own
    least = 2 * int(config["input_size"][1] / config["crop_pct"]) if own else None
    weight = next(model.parameters())
    model.eval()
    results: list[list[Prediction]] = []
    pictures = _each(images)
    while chosen := [_as_pil(p, least) for p in islice(pictures, batch_size)]:
        batch = [transform(_as_cifar(p) if shrinks else p) for p in chosen]
        inputs = torch.stack(batch).to(weight.device, weight.dtype, memory_format=torch.channels_last)
        with torch.inference_mode():
            top = model(inputs).float().softmax(1).topk(top_k)
        for values, indices in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            results.append([Prediction(labels[i], i, v) for v, i in zip(values, indices, strict=True)])
    return results


def _each(images: Picture | Iterable[Picture]) -> Iterator[Picture]:
    single = isinstance(images, str | os.PathLike | Image.Image)
    if isinstance(images, np.ndarray | torch.Tensor):
        single = images.ndim == 3
    return iter([images] if single else images)  # type: ignore[list-item,arg-type]


def _as_cifar(picture: Image.Image) -> Image.Image:
    side = min(picture.size)
    if side <= _CIFAR_SIDE:
        return picture
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.resize((_CIFAR_SIDE, _CIFAR_SIDE), Image.Resampling.BILINEAR, box)


def _as_pil(picture: Picture, least: int | None) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if isinstance(picture, torch.Tensor):
        picture = picture.permute(1, 2, 0).cpu().numpy() if picture.ndim == 3 else picture.cpu().numpy()
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ArgumentError(
                f"an image array must be uint8 of shape (H, W, 3), a tensor uint8 of (3, H, W), not {picture.dtype} "
                f"{list(picture.shape)}; scale it to 0...255 or give a file name."
            )
        return Image.fromarray(picture)
    if isinstance(picture, str | os.PathLike):
        return open_image(picture, least)
    raise ArgumentError(f"an image must be a file name, PIL image, array or tensor, not {type(picture).__name__}.")
