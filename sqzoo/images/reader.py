"""Read pictures from anywhere as the uint8 images that a model's `pretrained_cfg` asks for, ahead by threads."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from timm.data import resolve_model_data_config
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import CenterCrop, Resize

from sqzoo.errors import ArgumentError, DataError
from sqzoo.images.opener import as_rgb, open_image, opened
from sqzoo.weights import CIFAR10_CLASSES

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor

OWN_IMAGES_TAG = "own_pictures"  # the `tag` of a model that was trained on a folder of someone's pictures
# A JPEG is decoded at a half, quarter or eighth of its size where that leaves twice the wanted size, and this many
# pixels: photos of a phone three times as fast, and those of ordinary size as every other reader decodes them.
_LEAST = 512


def has_cifar10_classes(model: nn.Module) -> bool:
    """Whether a model's classes are CIFAR-10's."""
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return tuple(config.get("label_names") or ()) == CIFAR10_CLASSES


class ImageReader:
    """Reads a picture as what a model's `pretrained_cfg` asks for: uint8 (H, W, channels), before normalisation.

    The short side is resized to the input size over crop_pct and the centre taken, by the same steps as the transform
    of `timm.data.create_transform`.

    Args:
        size: input size in pixels.
        crop_pct: what part of the resized picture the centre is, in (0, 1].
        interpolation: timm's name of it.
        channels: 3, or 1 for networks that take grey images.
    """

    def __init__(self, size: int, crop_pct: float = 1.0, interpolation: str = "bilinear", channels: int = 3) -> None:
        if channels not in (1, 3):
            raise ArgumentError(
                f"pictures have 3 channels, or 1 in grey, and this model takes {channels} (in_chans); call it with "
                "tensors of your own."
            )
        resize = math.floor(size / crop_pct)
        self._resize = Resize(resize, str_to_interp_mode("bilinear" if interpolation == "random" else interpolation))
        self._crop = CenterCrop(size)
        self._least = max(2 * resize, _LEAST)
        self._mode = "RGB" if channels == 3 else "L"

    @staticmethod
    def of(model: nn.Module) -> "ImageReader":
        """Return that of a model."""
        model = getattr(model, "_orig_mod", model)  # behind torch.compile, which timm asks for its truth value
        config: dict[str, Any] = resolve_model_data_config(model)
        channels = getattr(model, "in_chans", config["input_size"][0])
        return ImageReader(config["input_size"][1], config["crop_pct"], config["interpolation"], channels)

    def __call__(self, picture: ImageInput) -> np.ndarray:
        """Read it. Raises `DataError` for a file that is no picture and `ArgumentError` for anything else."""
        if isinstance(picture, str | os.PathLike):
            with opened(picture, self._least) as image:  # made small while its part of the memory budget is held
                return self._pixels(image)
        return self._pixels(as_pil(picture))

    def _pixels(self, image: Image.Image) -> np.ndarray:
        image = self._crop(self._resize(image)).convert(self._mode)
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]


def label_names(model: nn.Module) -> list[str]:
    """Return the names of a model's classes; their numbers where its configuration has none."""
    classes = int(model.num_classes)  # type: ignore[arg-type]
    labels = model.pretrained_cfg.get("label_names") or ()  # type: ignore[union-attr,operator]
    return list(labels) if len(labels) == classes else [str(i) for i in range(classes)]


def read_ahead(
    pictures: Iterable[ImageInput], read: Callable[[ImageInput], np.ndarray], ahead: int, readers: int | None = None
) -> Iterator[tuple[ImageInput, np.ndarray | DataError]]:
    """Yield each picture with what `read` made of it, or why it could not, in order.

    `readers` threads (default: one a core) keep at most `ahead` pictures read or being read: Pillow lets go of the
    interpreter as it decodes, so that they work beside the network. `pictures` is asked for no more than that.
    """
    source = iter(pictures)
    waiting: deque[tuple[ImageInput, Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(readers or os.cpu_count(), "sqzoo-read")
    try:
        while True:
            for picture in islice(source, ahead - len(waiting)):
                given = picture
                if isinstance(picture, Image.Image):
                    given = as_pil(picture)  # here: two threads must not load the same picture
                waiting.append((picture, pool.submit(read, given)))
            if not waiting:
                return
            picture, result = waiting.popleft()
            try:
                yield picture, result.result()
            except DataError as e:
                yield picture, e
    finally:
        pool.shutdown(cancel_futures=True)


def as_pil(picture: ImageInput, least: int | None = None) -> Image.Image:
    """Return any picture as RGB, the same for a file and for the image that `PIL.Image.open` makes of it.

    Args:
        picture: a file name, PIL image, uint8 array (H, W, 3) or (H, W), or uint8 tensor (3, H, W) or (1, H, W).
        least: as in `open_image`.

    Raises:
        DataError: a file that is no picture.
        ArgumentError: anything else.
    """
    if isinstance(picture, str | os.PathLike):
        return open_image(picture, least)
    if isinstance(picture, Image.Image):
        try:
            return as_rgb(picture)
        except (ValueError, OSError, SyntaxError) as e:  # a file that was opened and is read only now
            raise DataError(f"the {type(picture).__name__} is not a readable image ({e}).") from e
    if isinstance(picture, torch.Tensor):
        picture = picture.permute(1, 2, 0).cpu().numpy() if picture.ndim == 3 else picture.cpu().numpy()
    if isinstance(picture, np.ndarray):
        if picture.ndim == 3 and picture.shape[2] == 1:
            picture = picture[:, :, 0]
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)):
            raise ArgumentError(
                f"an image array must be uint8 of shape (H, W, 3), a tensor uint8 of (3, H, W), not {picture.dtype} "
                f"{list(picture.shape)}; scale it to 0...255 or give a file name."
            )
        return Image.fromarray(picture).convert("RGB")
    raise ArgumentError(f"an image must be a file name, PIL image, array or tensor, not {type(picture).__name__}.")
