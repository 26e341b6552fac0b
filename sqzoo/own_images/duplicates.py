"""Find near-duplicates across the split: an image in training and its copy in validation flatter the accuracy."""

import numpy as np
from PIL import Image

from sqzoo.own_images.pixels import ImageSet

_SIDE = 8  # pixels of the thumbnails that are compared
_SAME = 6.0  # of 255, root mean square: recompressed and resized copies differ by 1 or 2, other photos by 20 or more
_FLAT = 8.0  # of 255, standard deviation: thumbnails below it are of one colour and cannot be compared


def near_duplicates(images: ImageSet) -> list[list[str]]:
    """Return pairs (training image, validation image), by name, that look the same but for size and compression."""
    train_idx, val_idx = images.split(0)
    train, val = (_thumbnails(images.images, idx) for idx in (train_idx, val_idx))
    pairs = []
    for low in range(0, len(val), 256):
        few = val[low : low + 256]
        distances = np.square(few).sum(1)[:, None] + np.square(train).sum(1) - 2 * few @ train.T  # squared
        nearest = distances.argmin(1)
        for i, j in enumerate(nearest):
            textured = few[i].reshape(_SIDE**2, 3).std(0).max() > _FLAT
            if textured and distances[i, j] / few.shape[1] < _SAME**2:
                pairs.append([images.names[train_idx[j]], images.names[val_idx[low + i]]])
    return pairs


def _thumbnails(images: np.ndarray, idx: np.ndarray) -> np.ndarray:
    """Return (len(idx), 192) float32: each image reduced to 8x8 pixels."""
    small = [Image.fromarray(images[i]).resize((_SIDE, _SIDE), Image.Resampling.BOX) for i in idx]
    return np.stack([np.asarray(image, np.float32).ravel() for image in small])
