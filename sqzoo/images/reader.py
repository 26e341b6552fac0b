"""Read images of any kind into the uint8 arrays that a model's `pretrained_cfg` asks for, on threads, ahead of use."""

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

from sqzoo.errors import ArgumentError, DataError, describe
from sqzoo.images.opener import as_rgb, open_image, opened
from sqzoo.weights import CIFAR10_CLASSES

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor

OWN_IMAGES_TAG = "own_images"  # the `tag` of a model that was trained on a custom dataset
# JPEGs are decoded at 1/2, 1/4 or 1/8 of their size down to twice the target size and this many pixels: photos of a
# phone three times as fast, and images of ordinary size as every other reader decodes them.
_MIN_DECODED = 512


def has_cifar10_classes(model: nn.Module) -> bool:
    """Whether a model's classes are CIFAR-10's."""
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return tuple(config.get("label_names") or ()) == CIFAR10_CLASSES


class ImageReader:
    """Read an image as uint8 (H, W, channels): resize the short side, take the centre crop.

    The steps are those of `timm.data.create_transform`, before normalisation.

    Args:
        size: input size in pixels.
        crop_pct: fraction of the resized image that the centre crop keeps, in (0, 1].
        interpolation: timm's name of it.
        channels: 3, or 1 for grey images.
    """

    def __init__(self, size: int, crop_pct: float = 1.0, interpolation: str = "bilinear", channels: int = 3) -> None:
        if channels not in (1, 3):
            raise ArgumentError(
                f"images have 3 channels, or 1 in grey, and this model takes {channels} (in_chans); call it with "
                "tensors of your own."
            )
        resize = math.floor(size / crop_pct)
        self._resize = Resize(resize, str_to_interp_mode("bilinear" if interpolation == "random" else interpolation))
        self._crop = CenterCrop(size)
        self._min_size = max(2 * resize, _MIN_DECODED)
        self._mode = "RGB" if channels == 3 else "L"

    @staticmethod
    def of(model: nn.Module) -> "ImageReader":
        """Return the reader for a model's `pretrained_cfg`."""
        model = getattr(model, "_orig_mod", model)  # of torch.compile, whose wrapper has no truth value for timm
        config: dict[str, Any] = resolve_model_data_config(model)
        channels = getattr(model, "in_chans", config["input_size"][0])
        return ImageReader(config["input_size"][1], config["crop_pct"], config["interpolation"], channels)

    def __call__(self, image: ImageInput) -> np.ndarray:
        """Read an image; raise `DataError` for a file that is not one, `ArgumentError` for other wrong input."""
        if isinstance(image, str | os.PathLike):
            with opened(image, self._min_size) as decoded:  # reduced while it holds its part of the memory budget
                return self._pixels(decoded)
        return self._pixels(as_pil(image))

    def _pixels(self, image: Image.Image) -> np.ndarray:
        pixels = np.asarray(self._crop(self._resize(image)).convert(self._mode))
        return pixels if pixels.ndim == 3 else pixels[:, :, None]


def label_names(model: nn.Module) -> list[str]:
    """Return the names of a model's classes; their indices where its configuration has none."""
    classes = int(model.num_classes)  # type: ignore[arg-type]
    labels = model.pretrained_cfg.get("label_names") or ()  # type: ignore[union-attr,operator]
    return list(labels) if len(labels) == classes else [str(i) for i in range(classes)]


def read_ahead(
    images: Iterable[ImageInput], read: Callable[[ImageInput], np.ndarray], ahead: int
) -> Iterator[tuple[ImageInput, np.ndarray | DataError]]:
    """Yield each image with what `read` returns for it, or the `DataError` that it raises, in order.

    Args:
        images: any iterable; only `ahead` images are taken from it in advance.
        read: reads one image; Pillow releases the interpreter while it decodes, so threads help.
        ahead: most images that are read, or being read, at one time.
    """
    source = iter(images)
    waiting: deque[tuple[ImageInput, Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(os.cpu_count(), "sqzoo-read")
    try:
        while True:
            for image in islice(source, ahead - len(waiting)):
                # Here, since two threads must not load the same PIL image.
                given = as_pil(image) if isinstance(image, Image.Image) else image
                waiting.append((image, pool.submit(read, given)))
            if not waiting:
                return
            image, result = waiting.popleft()
            try:
                yield image, result.result()
            except DataError as e:
                yield image, e
    finally:
        pool.shutdown(cancel_futures=True)


def as_pil(image: ImageInput, min_size: int | None = None) -> Image.Image:
    """Convert any image input to RGB; a file and the image that `PIL.Image.open` makes of it give the same pixels.

    Args:
        image: file name, PIL image, uint8 array (H, W, 3) or (H, W), or uint8 tensor (3, H, W) or (1, H, W).
        min_size: as in `open_image`.

    Raises:
        DataError: the file is not an image.
        ArgumentError: the input is none of the above.
    """
    if isinstance(image, str | os.PathLike):
        return open_image(image, min_size)
    if isinstance(image, Image.Image):
        try:
            return as_rgb(image)
        except (ValueError, OSError, SyntaxError) as e:  # a file that was opened and is read only now
            raise DataError(f"the {type(image).__name__} is not a readable image ({describe(e)}).") from e
    if isinstance(image, torch.Tensor):
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise ArgumentError(f"an image must be a file name, PIL image, array or tensor, not {type(image).__name__}.")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.dtype != np.uint8 or not image.size or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ArgumentError(
            f"an image array must be uint8 of shape (H, W, 3), a tensor uint8 of (3, H, W), not {image.dtype} "
            f"{list(image.shape)}; scale it to 0...255 or give a file name."
        )
    return Image.fromarray(image).convert("RGB")
