"""Small data sets and recipes that the trainer's tests share."""

from typing import Any

import numpy as np

from sqzoo.data import Dataset
from sqzoo.train import Recipe

FROZEN = Recipe("sq1", sizes=((32, 3),), crop_pct=1.0, hold_out=20, select="val", batch_size=16)
# At 32 pixels the last map is a single point: 64 lets the 3x3 convolutions of the last layers learn at their edges.
ALL: dict[str, Any] = {
    "layers": "all",
    "crop_pct": 1.0,
    "schedule": "cosine",
    "weight_decay": 0.05,
    "flip": True,
    "pad": 4,
}
TRAINED = Recipe("sq1", sizes=((32, 1), (64, 2)), hold_out=20, select="val", batch_size=16, lr=5e-4, **ALL)


def coloured(count: int, seed: int) -> Dataset:
    """Noise around a colour for each of ten classes, which can be learnt."""
    colours = np.random.default_rng(99).integers(40, 216, (10, 1, 1, 3))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10)
    noise = rng.integers(-40, 41, (count, 32, 32, 3))
    return Dataset((colours[labels] + noise).astype(np.uint8), labels)


TRAIN, TEST = coloured(100, 1), coloured(40, 2)
