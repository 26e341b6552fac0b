"""Find near-duplicates across the split: an image in training and its copy in validation flatter the accuracy."""

from collections.abc import Iterable

import numpy as np
from PIL import Image

from sqzoo.own_images.pixels import ImageSet

_SIDE = 8  # pixels of the thumbnails that are compared
_SAME = 6.0  # of 255, root mean square: recompressed and resized copies differ by 1 or 2, other photos by 20 or more
_FLAT = 8.0  # of 255, standard deviation: thumbnails below it are of one colour and cannot be compared


def near_duplicates(images: ImageSet, others: np.ndarray, names: list[str]) -> list[list[str]]:
    """Return pairs (training image, other image), by name, that look the same but for size and compression.

    Args:
        images: whose training images are compared.
        others: validation or test images, (N, H, W, 3) uint8.
        names: of the others.
    """
    train_idx = images.split(0)[0]
    train, val = _thumbnails(images.images, train_idx), _thumbnails(others, range(len(others)))
    pairs = []
    for low in range(0, len(val), 256):
        few = val[low : low + 256]
        distances = np.square(few).sum(1)[:, None] + np.square(train).sum(1) - 2 * few @ train.T  # squared
        nearest = distances.argmin(1)
        for i, j in enumerate(nearest):
            textured = few[i].reshape(_SIDE**2, 3).std(0).max() > _FLAT
            if textured and distances[i, j] / few.shape[1] < _SAME**2:
                pairs.append([images.names[train_idx[j]], names[low + i]])
    return pairs


def _thumbnails(images: np.ndarray, idx: Iterable[int]) -> np.ndarray:
    """Return (N, 192) float32: each image reduced to 8x8 pixels."""
    small = [Image.fromarray(images[i]).resize((_SIDE, _SIDE), Image.Resampling.BOX) for i in idx]
    return np.stack([np.asarray(image, np.float32).ravel() for image in small])
