"""Decode the images of a folder once, into a memory-mapped file, as a dataset with train and validation indices."""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from sqzoo.data import Dataset
from sqzoo.errors import ArgumentError, DataError, shown
from sqzoo.files import atomic_file, open_regular, read_json, write_bytes
from sqzoo.images.opener import formats
from sqzoo.images.reader import ImageReader, read_ahead
from sqzoo.own_images.folder import ImageFolder, printable_path

_PROBED = 200  # images whose sizes decide the size to train at
_SIZES = ((64, 128), (144, 160))  # (median of the shorter side up to, size to train at); else 224, ImageNet's


@dataclass(frozen=True)
class ImageSet(Dataset):
    """A `Dataset` of square images (N, size, size, 3) with class names, file names and its own validation indices.

    `left_out` has the reason why a file was not taken, by its path.
    """

    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    val_idx: np.ndarray = field(default_factory=lambda: np.arange(0))
    left_out: dict[str, str] = field(default_factory=dict)

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (train_idx, val_idx); `count` is not used."""
        return np.setdiff1d(np.arange(len(self)), self.val_idx), self.val_idx

    @cached_property
    def digest(self) -> str:
        """SHA-256 of labels, class names, validation indices and pixels."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        digest.update(self.labels.astype("<i8").tobytes() + self.val_idx.astype("<i8").tobytes())
        for low in range(0, len(self), 1024):
            digest.update(np.ascontiguousarray(self.images[low : low + 1024]).data)
        return digest.hexdigest()


def read_images(
    folder: ImageFolder,
    size: int,
    store: str | os.PathLike[str],
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    show: bool = False,
) -> ImageSet:
    """Decode a folder's images as `sqzoo.predict` does: short side to `size` pixels, bilinear, then the centre.

    Args:
        folder: where the images are. Unreadable ones are left out.
        size: of the decoded images, in pixels.
        store: folder for the decoded pixels; those of an earlier call for the same files are used again.
        val_fraction: of each class, at least one image and not all, unless the folder says which are for validation.
        seed: of the validation images' choice.
        show: show a progress bar on a terminal.

    Raises:
        DataError: a class has fewer than two readable images.
    """
    if not 0 < val_fraction < 1:
        raise ArgumentError(f"val_fraction must be between 0 and 1, not {val_fraction!r}.")
    names = [printable_path(file, folder.root) for file in folder.files]
    listing = [(name, _stat(file)) for name, file in zip(names, folder.files, strict=True)]
    key = hashlib.sha256(json.dumps([listing, size, PIL.__version__]).encode()).hexdigest()[:16]
    pixels, errors_file = (Path(store) / f"images-{key}.{kind}" for kind in ("u8", "json"))
    errors = _read_errors(errors_file, pixels, names, size)
    if errors is None:
        _decode(folder.files, names, size, pixels, errors_file, show)
        errors = _read_errors(errors_file, pixels, names, size)
        if errors is None:
            raise DataError(f"{shown(pixels)} changed while it was written; name another cache folder.")
    readable = np.array([name not in errors for name in names])
    if not readable.any():
        raise DataError(f"No image in {shown(folder.root)} can be read; the first: {next(iter(errors.values()))}")
    labels = folder.labels[readable]
    if folder.is_val is None:
        val_idx = _choose_val(labels, val_fraction, seed)
    else:
        val_idx = np.flatnonzero(folder.is_val[readable])
    for label, name in enumerate(folder.classes):
        count, val = int((labels == label).sum()), int((labels[val_idx] == label).sum())
        if not 0 < val < count:
            raise DataError(
                f"Class {name!r} has {count - val} readable images to train on and {val} to validate on; add images, "
                "it needs one of each at least."
            )
    images = np.memmap(pixels, np.uint8, "r", shape=(len(labels), size, size, 3))
    read = tuple(name for name in names if name not in errors)
    return ImageSet(images, labels, folder.classes, read, val_idx, folder.left_out | errors)


def image_size(folder: ImageFolder) -> int:
    """Return the size to train at: enlarging small photos further costs time and adds no information."""
    shorter: list[float] = []
    for file in folder.files[:_PROBED]:
        with contextlib.suppress(Exception), open_regular(file) as stream, Image.open(stream, formats=formats()) as i:
            shorter.append(min(i.size))  # from the header; unreadable files are reported when they are decoded
    return next((size for limit, size in _SIZES if np.median(shorter or [256]) <= limit), 224)


def _stat(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _read_errors(file: Path, pixels: Path, names: list[str], size: int) -> dict[str, str] | None:
    """Return the unreadable files of an earlier call; None unless all its pixels are there."""
    try:
        errors = read_json(file)
        with open_regular(pixels) as stream:
            stored = os.fstat(stream.fileno()).st_size
    except (OSError, DataError):
        return None
    return errors if stored == 3 * size**2 * sum(name not in errors for name in names) else None


def _decode(files: list[Path], names: list[str], size: int, pixels: Path, errors_file: Path, show: bool) -> None:
    errors: dict[str, str] = {}
    decoded = read_ahead(files, ImageReader(size), ahead=64)
    bar = tqdm(decoded, "images", len(files), leave=False, disable=None if show else True)
    with atomic_file(pixels) as stream:
        for name, (_, image) in zip(names, bar, strict=True):
            if isinstance(image, DataError):
                errors[name] = str(image)
            else:
                stream.write(image.tobytes())
    write_bytes(errors_file, json.dumps(errors).encode())


def _choose_val(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose a fraction of each class at random."""
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen.append(np.random.default_rng([seed, int(label)]).permutation(members)[:count])
    return np.sort(np.concatenate(chosen))
