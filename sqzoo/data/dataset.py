"""Hold labelled images in memory, with a digest of their pixels and a fixed validation split."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sqzoo.errors import ArgumentError


@dataclass(frozen=True)
class Dataset:
    """Labelled images in memory.

    Args:
        images: (N, H, W, 3) uint8.
        labels: (N,) int64.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.shape != (len(self.images),) or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
            raise ArgumentError(
                f"labels must be whole numbers from 0, one for each of the {len(self.images)} images; leave out images "
                "without a label (-1)."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: np.ndarray | slice) -> "Dataset":
        return Dataset(self.images[index], self.labels[index])

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Split off the last `count` images, equally many of each class, for validation.

        Only the labels decide, so every run, seed and machine validates on the same images.

        Returns:
            Train indices and validation indices, both sorted.

        Raises:
            ArgumentError: `count` is no multiple of the number of classes, or a class would have no image left.
        """
        classes, per_class = np.unique(self.labels, return_counts=True)
        if count == 0:
            return np.arange(len(self)), np.arange(0)
        if count < 0 or count % len(classes) or count // len(classes) >= per_class.min():
            raise ArgumentError(
                f"hold_out must be a multiple of {len(classes)}, the number of classes, below "
                f"{len(classes) * per_class.min()}, not {count}."
            )
        last = [np.flatnonzero(self.labels == c)[-(count // len(classes)) :] for c in classes]
        val_idx = np.sort(np.concatenate(last))
        return np.setdiff1d(np.arange(len(self)), val_idx), val_idx

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels, then of the labels as uint8, in order."""
        pixels = hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()
        labels = hashlib.sha256(self.labels.astype(np.uint8).data).hexdigest()
        return hashlib.sha256(f"{pixels} {labels}".encode()).hexdigest()
