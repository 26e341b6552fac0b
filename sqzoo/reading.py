"""Pictures from anywhere as the uint8 squares that a model's preparation takes, read ahead by threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from timm.data import resolve_model_data_config
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import CenterCrop, Resize

from sqzoo.data import Preprocessing, open_image
from sqzoo.errors import ArgumentError, DataError
from sqzoo.weights import CIFAR10_CLASSES

Picture = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor

OWN_PICTURES = "own_pictures"  # the `tag` of a model that was trained on a folder of someone's pictures
_CIFAR_SIDE = 32
# A JPEG is decoded at a half, quarter or eighth where that leaves its short side at five times what is wanted of it.
_SPARE = 5


def knows_cifar10(model: nn.Module) -> bool:
    """Whether a model was trained on CIFAR-10's images: it has their classes, and not from someone's own pictures."""
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    own = config.get("tag") == OWN_PICTURES or model.num_classes != len(CIFAR10_CLASSES)
    return tuple(config.get("label_names") or ()) == CIFAR10_CLASSES and not own


class Squares:
    """Turns a picture into the square of uint8 that `prepare` takes.

    The short side is resized to side / crop_pct and the centre taken. shrinks: the central square is shrunk to
    (32, 32, 3) instead, as CIFAR-10 was made, and `prepare` enlarges it again.
    """

    def __init__(self, prepare: Preprocessing, interpolation: str = "bilinear", *, shrinks: bool = False) -> None:
        self.prepare = prepare
        whole = int(prepare.side / prepare.crop_pct)
        self._resize = Resize(whole, str_to_interp_mode("bilinear" if interpolation == "random" else interpolation))
        self._crop = CenterCrop(whole)
        self._shrinks = shrinks
        self._grows_later = interpolation == "bilinear"  # as `prepare` does
        self._least = _SPARE * _CIFAR_SIDE if shrinks else 2 * whole

    @staticmethod
    def of(model: nn.Module) -> "Squares":
        """Return those of a model's configuration; a model that was trained on CIFAR-10 shrinks."""
        config: dict[str, Any] = resolve_model_data_config(model)
        return Squares(Preprocessing.of(config), config["interpolation"], shrinks=knows_cifar10(model))

    def __call__(self, picture: Picture) -> np.ndarray:
        """Read it. Raises `DataError` for a file that is no picture and `ArgumentError` for anything else."""
        image = as_pil(picture, self._least)
        if self._shrinks:
            image = _as_cifar(image)
            if self._grows_later and image.size == (_CIFAR_SIDE, _CIFAR_SIDE):
                return np.asarray(image)
        return np.asarray(self._crop(self._resize(image)))


def label_names(model: nn.Module) -> list[str]:
    """Return the names of a model's classes; their numbers where its configuration has none."""
    classes = int(model.num_classes)  # type: ignore[arg-type]
    labels = model.pretrained_cfg.get("label_names") or ()  # type: ignore[union-attr,operator]
    return list(labels) if len(labels) == classes else [str(i) for i in range(classes)]


def read_ahead(
    pictures: Iterable[Picture], read: Callable[[Picture], np.ndarray], ahead: int, readers: int | None = None
) -> Iterator[tuple[Picture, np.ndarray | DataError]]:
    """Yield each picture with what `read` made of it, or why it could not, in order.

    `readers` threads (default: one a core) keep at most `ahead` pictures read or being read: Pillow lets go of the
    interpreter as it decodes, so that they work beside the network. `pictures` is asked for no more than that.
    """
    source = iter(pictures)
    waiting: deque[tuple[Picture, Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(readers or os.cpu_count(), "sqzoo-read")
    try:
        while True:
            for picture in islice(source, ahead - len(waiting)):
                if isinstance(picture, Image.Image):
                    picture.load()  # here: two threads must not load the same picture
                waiting.append((picture, pool.submit(read, picture)))
            if not waiting:
                return
            picture, result = waiting.popleft()
            try:
                yield picture, result.result()
            except DataError as e:
                yield picture, e
    finally:
        pool.shutdown(cancel_futures=True)


def picture_suffixes() -> set[str]:
    """Return the suffixes, in small letters, of the files that Pillow reads."""
    Image.preinit()  # first, or the common formats would be tried behind the rare ones, and each file take longer
    return {s for s, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def pictures_in(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the picture files at any depth below a folder, known by their suffix, sorted, hidden ones left out."""
    suffixes = picture_suffixes()
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in suffixes and not name.startswith("."):
                yield Path(place, name)


def _as_cifar(picture: Image.Image) -> Image.Image:
    side = min(picture.size)
    if side <= _CIFAR_SIDE:
        return picture
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.resize((_CIFAR_SIDE, _CIFAR_SIDE), Image.Resampling.BILINEAR, box)


def as_pil(picture: Picture, least: int | None = None) -> Image.Image:
    """Return any picture as RGB; `least` as in `open_image`. Raises `DataError` or `ArgumentError`."""
    if isinstance(picture, str | os.PathLike):
        return open_image(picture, least)
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
    raise ArgumentError(f"an image must be a file name, PIL image, array or tensor, not {type(picture).__name__}.")
