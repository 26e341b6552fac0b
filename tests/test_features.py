"""The cache of the frozen trunk's features: exact, and on disk whole, right and shared, or not used."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

from sqzoo import create_model
from sqzoo.data import Preprocessing
from sqzoo.train.features import FeatureCache, cache_key, trunk_features

# Maps of 73,728 elements, more than 16 bits count, from 19 images: two chunks of eight and a rest.
images = np.random.default_rng(0).integers(0, 256, (19, 32, 32, 3), np.uint8)
preprocessing = Preprocessing(48, 1.0)
CHUNKS = 3


def small_trunk() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU())


def maps_of(trunk: nn.Module, images: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    trunk.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return torch.cat([trunk(preprocessing(images[low : low + 8])) for low in range(0, len(images), 8)])


class Counted:
    """A trunk, and how often it ran."""

    def __init__(self, trunk: nn.Module) -> None:
        self.trunk, self.calls = trunk, 0
        trunk.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.calls += 1

    def features(
        self, folder: Path | None, preprocessing: Preprocessing = preprocessing, data: str = "d"
    ) -> FeatureCache:
        self.calls = 0
        return trunk_features(self.trunk, images, preprocessing, data, folder)


def whole(cache: FeatureCache) -> torch.Tensor:
    return cache.batch(np.arange(len(cache))).dense()


# Exactness


@pytest.mark.parametrize("on_disk", [False, True])
def test_features_are_the_imagenet_trunks_maps_bit_for_bit(on_disk: bool, trunks: Path, tmp_path: Path) -> None:
    trunk = create_model("sq1", init="imagenet", trunk=trunks).features
    pictures = images[:11]
    expected = maps_of(trunk.eval(), pictures, Preprocessing())
    assert expected.shape == (11, 512, 13, 13) and expected[0].numel() > 1 << 16
    cache = trunk_features(trunk, pictures, Preprocessing(), "d", tmp_path if on_disk else None)
    assert cache.shape == (512, 13, 13)
    for indices in (np.arange(11), np.array([10, 0, 7, 8, 3, 3, 10]), np.array([5]), np.array([-1, -11, -4])):
        batch = cache.batch(indices).dense()
        assert batch.dtype == torch.float32 and batch.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch, expected[indices])
    assert cache.nbytes == 6 * int((expected != 0).sum())


@pytest.mark.parametrize("index", [19, -20])
def test_an_index_out_of_range_is_an_error(index: int) -> None:
    cache = trunk_features(small_trunk(), images, preprocessing, "d")
    with pytest.raises(IndexError):
        cache.batch(np.array([0, index]))


@pytest.mark.parametrize("on_disk", [False, True])
def test_maps_without_a_single_non_zero(on_disk: bool, tmp_path: Path) -> None:
    trunk = small_trunk()
    nn.init.constant_(trunk[0].bias, -1e9)
    cache = trunk_features(trunk, images, preprocessing, "d", tmp_path if on_disk else None)
    assert torch.equal(whole(cache), torch.zeros(19, 32, 48, 48))


def test_progress_counts_every_image() -> None:
    seen: list[tuple[int, int]] = []
    trunk_features(small_trunk(), images, preprocessing, "d", progress=lambda done, of: seen.append((done, of)))
    assert seen == [(8, 19), (16, 19), (19, 19)]


# Which cache is used


def test_cache_on_disk_spares_the_trunk(tmp_path: Path) -> None:
    first = Counted(small_trunk())
    built = whole(first.features(tmp_path / "deep" / "folder"))
    assert first.calls == CHUNKS
    second = Counted(small_trunk())
    assert torch.equal(whole(second.features(tmp_path / "deep" / "folder")), built)
    assert second.calls == 0


def test_cache_of_anything_else_is_not_used(tmp_path: Path) -> None:
    Counted(small_trunk()).features(tmp_path)
    other_weights = small_trunk()
    with torch.no_grad():
        other_weights[0].weight[31, 2, 2, 2] += 1e-3
    other_layers = small_trunk().append(nn.MaxPool2d(3, 1, 1)), small_trunk().append(nn.AvgPool2d(3, 1, 1))
    cases = [
        (other_weights, preprocessing, "d"),
        (other_layers[0], preprocessing, "d"),
        (other_layers[1], preprocessing, "d"),
        (small_trunk(), replace(preprocessing, mean=(0.5, 0.5, 0.5)), "d"),
        (small_trunk(), replace(preprocessing, crop_pct=0.875), "d"),
        (small_trunk(), preprocessing, "other data"),
    ]
    for trunk, how, data in cases:
        expected = maps_of(trunk, images, how)
        counted = Counted(trunk)
        assert torch.equal(whole(counted.features(tmp_path, how, data)), expected)
        assert counted.calls == CHUNKS
    assert len(list(tmp_path.glob("[!.]*"))) == 7


def test_cache_under_anothers_name_is_not_used(tmp_path: Path) -> None:
    """Names are the first 16 digits of the key: the whole key is compared."""
    trunk = small_trunk()
    Counted(trunk).features(tmp_path, data="one")
    one, two = (tmp_path / cache_key(trunk, preprocessing, data)[:16] for data in ("one", "two"))
    one.rename(two)
    counted = Counted(trunk)
    counted.features(tmp_path, data="two")
    assert counted.calls == CHUNKS


def test_damaged_cache_is_built_again(tmp_path: Path) -> None:
    counted = Counted(small_trunk())
    expected = whole(counted.features(tmp_path))
    (final,) = tmp_path.glob("[!.]*")
    good = tmp_path / ".good"
    shutil.copytree(final, good)
    names = sorted(f.name for f in good.iterdir())
    assert names == ["about.json", "counts.npy", "positions.u16", "values.f32"]
    rng = np.random.default_rng(0)

    def check(what: str) -> None:
        assert torch.equal(whole(counted.features(tmp_path)), expected), what
        assert counted.calls == CHUNKS, f"{what} was trusted"
        counted.features(tmp_path)
        assert counted.calls == 0

    for name in names:
        raw = (good / name).read_bytes()
        places = set(rng.integers(0, len(raw), 5).tolist())
        if name == "about.json":  # a digit of the shape, and one bit anywhere
            at = raw.index(b"shape")
            places = {*range(at, at + 22), *rng.integers(0, len(raw), 20).tolist()}
        for place in places:
            bad = bytearray(raw)
            bad[place] ^= 1
            (final / name).write_bytes(bad)
            check(f"{name} with bit 0 of byte {place} flipped")
        for length in (0, len(raw) // 2, len(raw) - 1):
            (final / name).write_bytes(raw[:length])
            check(f"{name} cut to {length} bytes")
        (final / name).write_bytes(raw + b"\0")
        check(f"{name} with a byte more")
        (final / name).unlink()
        check(f"a cache without {name}")
    for text in ("null", "[]", '"x"', json.dumps({"key": "x"})):
        (final / "about.json").write_text(text)
        check(f"about.json that holds {text}")


# Processes

SCRIPT = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from sqzoo.hashing import tensors_sha256
from test_features import Counted, small_trunk, whole

folder, seconds, name = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
counted = Counted(small_trunk())
counted.trunk.register_forward_hook(lambda *_: time.sleep(seconds))
(folder / f"ready-{{name}}").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
cache = counted.features(folder / "cache")
print(counted.calls, tensors_sha256({{"": whole(cache)}}))
"""


def start(folder: Path, seconds_a_chunk: float, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(seconds_a_chunk), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)


def test_killed_while_writing_then_two_processes_at_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "go").touch()
    killed = start(tmp_path, 600, "killed")
    wait_for(lambda: any(cache.glob(".writing-*/positions.u16")), killed)
    (tmp_path / "go").unlink()
    others = [start(tmp_path, 0.5, name) for name in ("a", "b")]
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    (left,) = cache.glob(".writing-*")
    assert not list(cache.glob("[!.]*"))  # nothing under a final name
    (left / "values.f32").write_bytes(b"half")

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
    assert not list(cache.glob(".writing-*"))
    counted = Counted(small_trunk())
    assert torch.equal(whole(counted.features(cache)), maps_of(small_trunk(), images, preprocessing))
    assert counted.calls == 0


def test_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, of: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trunk_features(small_trunk(), images, preprocessing, "d", tmp_path, interrupt)
    assert [f.suffix for f in tmp_path.iterdir()] == [".lock"]
    assert len(trunk_features(small_trunk(), images, preprocessing, "d", tmp_path)) == 19
