"""Fixtures: pictures, and the data that only some machines hold; a test that needs what is absent is skipped."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import CAT

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: processes that share the cores and have a thread for each of them wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.support.hub import files as files  # fixtures for all: after the threads are set
from tests.support.hub import model as model
from tests.support.hub import server as server


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist keep the files' order: by number of tests, those with few and long ones would come last."""
    config.option.loadscopereorder = False


BESIDE = Path(__file__).parents[2] / "shared" / "data"


def _folder(variable: str, name: str) -> Path:
    for folder in (os.environ.get(variable), BESIDE / name):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip(f"needs {variable}, or a folder {name} in {BESIDE}")


@pytest.fixture(scope="session")
def trunks() -> Path:
    """Folder with the ImageNet trunks, `squeezenet1_1_features.safetensors` and `alexnet_features.safetensors`."""
    return _folder("SQZOO_TRUNKS", "weights")


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """Folder with CIFAR-10, as `sqzoo.data.cifar.cifar10` takes it."""
    return _folder("SQZOO_CIFAR10", "cifar10")


@pytest.fixture(scope="session")
def photo_squares() -> np.ndarray:
    """1,400 squares of a photo at 32 pixels: of noise a network is unsure, and int8's steps are large beside that."""
    draw = np.random.default_rng(0)
    with Image.open(CAT) as photo:
        squares = []
        for _ in range(1400):
            side = int(draw.integers(min(photo.size) // 3, min(photo.size) + 1))
            left, top = (int(draw.integers(length - side + 1)) for length in photo.size)
            squares.append(np.asarray(photo.resize((32, 32), box=(left, top, left + side, top + side))))
    return np.stack(squares)
