"""Labelled images in memory, with a digest of their pixels and a fixed validation split."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sqzoo.errors import ArgumentError


@dataclass(frozen=True)
class Dataset:
    """Labelled images in memory: `images` (N, H, W, 3) uint8, `labels` (N,) int64."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: np.ndarray | slice) -> "Dataset":
        return Dataset(self.images[index], self.labels[index])

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (training indices, indices of the `count` held-out images); see `hold_out`."""
        return hold_out(self.labels, count)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels, then of the labels as uint8, in order."""
        pixels = hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()
        labels = hashlib.sha256(self.labels.astype(np.uint8).data).hexdigest()
        return hashlib.sha256(f"{pixels} {labels}".encode()).hexdigest()


def hold_out(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (training indices, held-out indices): `count` images, the last of each class in equal parts.

    The choice depends on the labels alone, so that every run, seed and machine holds out the same images. Raises
    `ArgumentError` unless each class can give its part and keep an image.
    """
    classes, per_class = np.unique(labels, return_counts=True)
    if count == 0:
        return np.arange(len(labels)), np.arange(0)
    if count < 0 or count % len(classes) or count // len(classes) >= per_class.min():
        raise ArgumentError(
            f"hold_out must be a multiple of {len(classes)}, the number of classes, below "
            f"{len(classes) * per_class.min()}, not {count}."
        )
    held = np.sort(np.concatenate([np.flatnonzero(labels == c)[-(count // len(classes)) :] for c in classes]))
    return np.setdiff1d(np.arange(len(labels)), held), held
