"""The cache of the frozen backbone's features: exact, and on disk intact, right and shared, or not used."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn

from sqzoo import create_model
from sqzoo.data import CIFAR10, Normalise
from sqzoo.models.sparse import SparseFeatures
from sqzoo.models.upsample import Upsample
from sqzoo.train.features import trunk_features

# Maps of 73,728 elements, more than 16 bits count, from 19 images: two chunks of eight and a rest.
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (19, 32, 32, 3), np.uint8))
CHUNKS = 3
PLAIN = Normalise()


class Small(nn.Module):
    """A backbone of one convolution, and how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()).to(memory_format=torch.channels_last)
        self.upsample: nn.Module = Upsample(48)
        self.calls = 0

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.features(self.upsample(x))


def sparse(model: Any, folder: Path | None = None, how: Normalise = PLAIN, data: str = "d") -> SparseFeatures:
    model.calls = 0
    result = trunk_features(model, IMAGES, how, data, folder)
    assert isinstance(result, SparseFeatures)
    return result


def maps_of(model: Any, images: torch.Tensor = IMAGES, how: Normalise = PLAIN) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model.forward_features(how(images[low : low + 8])) for low in range(0, len(images), 8)])


def dense(features: SparseFeatures) -> torch.Tensor:
    return features[np.arange(len(features))].dense()


@pytest.mark.parametrize("on_disk", [False, True])
def test_features_are_the_imagenet_trunks_maps_bit_for_bit(on_disk: bool, trunks: Path, tmp_path: Path) -> None:
    model = create_model("sq1", init="imagenet", trunk=trunks, upsample=(256, 224)).eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = IMAGES[:11]
    expected = maps_of(model, images)
    assert expected.shape == (11, 512, 13, 13) and expected[0].numel() > 1 << 16
    features = trunk_features(model, images, Normalise(), "d", tmp_path if on_disk else None)  # type: ignore[arg-type]
    assert isinstance(features, SparseFeatures) and features.shape.tolist() == [512, 13, 13]
    for indices in (np.arange(11), np.array([10, 0, 7, 8, 3, 3, 10]), np.array([5]), np.array([-1, -11, -4])):
        batch = features[indices].dense()
        assert batch.dtype == torch.float32 and batch.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch, expected[indices]) and torch.equal(features[torch.tensor(indices)].dense(), batch)
    nbytes = sum(p.nbytes + v.nbytes for p, v in zip(features.positions, features.values, strict=True))
    assert nbytes == 6 * int((expected != 0).sum())


@pytest.mark.parametrize("index", [19, -20])
def test_an_index_out_of_range_is_an_error(index: int) -> None:
    with pytest.raises(IndexError):
        sparse(Small())[np.array([0, index])]


@pytest.mark.parametrize("on_disk", [False, True])
def test_maps_without_a_single_non_zero(on_disk: bool, tmp_path: Path) -> None:
    model = Small()
    nn.init.constant_(model.features[0].bias, -1e9)  # type: ignore[arg-type]
    assert torch.equal(dense(sparse(model, tmp_path if on_disk else None)), torch.zeros(19, 32, 48, 48))


def test_cache_on_disk_spares_the_backbone(tmp_path: Path) -> None:
    first, second = Small(), Small()
    built = dense(sparse(first, tmp_path / "deep" / "folder"))
    assert first.calls == CHUNKS and torch.equal(built, maps_of(Small()))
    assert torch.equal(dense(sparse(second, tmp_path / "deep" / "folder")), built)
    assert second.calls == 0


def test_cache_of_anything_else_is_not_used(tmp_path: Path) -> None:
    sparse(Small(), tmp_path)
    weights, pooled, larger = Small(), Small(), Small()
    with torch.no_grad():
        weights.features[0].weight[31, 2, 2, 2] += 1e-3  # type: ignore[index]
    pooled.features.append(nn.MaxPool2d(3, 1, 1))
    larger.upsample = Upsample(64, 48)
    plain = Normalise()
    for model, how, data in (
        *((m, plain, "d") for m in (weights, pooled, larger)),
        (Small(), Normalise(*CIFAR10), "d"),
        (Small(), plain, "other data"),
    ):
        assert torch.equal(dense(sparse(model, tmp_path, how, data)), maps_of(model, how=how))
        assert model.calls == 2 * CHUNKS
    assert len(list(tmp_path.glob("features-*"))) == 6


def test_damaged_cache_is_built_again(tmp_path: Path) -> None:
    model = Small()
    expected = dense(sparse(model, tmp_path))
    (file,) = tmp_path.glob("features-*")
    raw = file.read_bytes()
    at = raw.index(b'"shape"')
    rng = np.random.default_rng(0)
    places = {*rng.integers(0, len(raw), 10).tolist(), *range(at, at + 20, 3), 0, 9, len(raw) - 1}
    spoilt = [raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :] for place in sorted(places)]
    spoilt += [b"", raw[: len(raw) // 2], raw[:-1], raw + b"\0", b"null"]
    for number, content in enumerate(spoilt):
        file.write_bytes(content)
        assert torch.equal(dense(sparse(model, tmp_path)), expected), number
        assert model.calls == CHUNKS, f"damage {number} was trusted"
        sparse(model, tmp_path)
        assert model.calls == 0


SCRIPT = """
import sys, time
from pathlib import Path
from sqzoo.files import tensors_sha256
from tests.train.test_features import Small, dense, sparse

folder, seconds, name = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
model = Small()
model.features.register_forward_hook(lambda *_: (time.sleep(seconds), (folder / f"began-{name}").touch()) and None)
(folder / f"ready-{name}").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
features = sparse(model, folder / "cache")
print(model.calls, tensors_sha256({"": dense(features)}))
"""


def start(folder: Path, seconds_per_chunk: float, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(seconds_per_chunk), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_while_building_then_two_processes_at_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "go").touch()
    killed = start(tmp_path, 0.5, "killed")
    wait_for((tmp_path / "began-killed").exists, killed)
    (tmp_path / "go").unlink()
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not list(cache.glob("features-*"))
    others = [start(tmp_path, 0.5, name) for name in ("a", "b")]
    for name, process in zip("ab", others, strict=True):
        wait_for((tmp_path / f"ready-{name}").exists, process)
    (tmp_path / "go").touch()
    results = []
    for process in others:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        results.append(out.split())
    assert sorted(int(calls) for calls, _ in results) == [0, CHUNKS]  # one built it, the other waited
    assert results[0][1] == results[1][1]
    model = Small()
    assert torch.equal(dense(sparse(model, cache)), maps_of(Small())) and model.calls == 0


def test_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    model = Small()

    def interrupt(*_: object) -> None:
        if model.calls == 2:
            raise KeyboardInterrupt

    handle = model.features.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        sparse(model, tmp_path)
    assert [f.suffix for f in tmp_path.iterdir()] == [".lock"]
    handle.remove()
    assert len(sparse(model, tmp_path)) == 19
