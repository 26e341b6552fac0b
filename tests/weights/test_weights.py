"""Weights files: verified byte for byte, compared tensor by tensor, loaded strictly."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

from sqzoo import create_model
from sqzoo.weights import Entry, trunk_source
from sqzoo.weights.loading import load_state, load_strict, read_verified
from tests.support.sentences import refusal

Tensors = dict[str, torch.Tensor]


class Tiny(nn.Module):
    def __init__(self, num_classes: int = 10, in_chans: int = 3, width: int = 4, batch_norm: bool = False) -> None:
        super().__init__()
        norm = [nn.BatchNorm2d(width)] if batch_norm else []
        self.features = nn.Sequential(nn.Conv2d(in_chans, width, 3), *norm)
        self.classifier = nn.Linear(width, num_classes) if num_classes else nn.Identity()


def seeded(seed: int, **arguments: int) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(**arguments)


def entry_of(file: Path, tag: str = "tiny.made_up", holds: str = "complete", trunk: str = "squeezenet1_1") -> Entry:
    raw = file.read_bytes()
    return Entry(
        tag=tag,
        file=str(file),  # absolute, so that it lies where it lies and not in the package
        sha256=hashlib.sha256(raw).hexdigest(),
        size=len(raw),
        dtype="float32",
        holds=holds,
        trunk=trunk,
        num_classes=10,
        input_size=(3, 224, 224),
        crop_pct=0.875,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bilinear",
        params=162,
        macs=1,
        licence="MIT",
        provenance="made up",
    )


@pytest.fixture()
def entry(tmp_path: Path) -> Entry:
    file = tmp_path / "tiny.safetensors"
    save_file(seeded(0).state_dict(), file, {"format": "pt", "tag": "tiny.made_up"})
    return entry_of(file)


def load_into(model: Tiny, tensors: Tensors) -> None:
    load_strict(model, tensors, "tiny.made_up", "classifier", "features.0")


def equal(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


# Bytes


def test_a_good_file_is_read_and_loaded(entry: Entry) -> None:
    expected = seeded(0).state_dict()
    tensors = read_verified(entry)
    assert equal(tensors, expected)
    model = seeded(1)
    load_into(model, tensors)
    assert equal(model.state_dict(), expected)


def test_a_flipped_bit_anywhere_is_refused(entry: Entry) -> None:
    raw = entry.path.read_bytes()
    rng = np.random.default_rng(0)
    places = {0, 7, 8, len(raw) - 1, *rng.choice(len(raw), 200, replace=False).tolist()}
    for place in places:
        bad = bytearray(raw)
        bad[place] ^= 1 << int(rng.integers(8))
        entry.path.write_bytes(bad)
        with refusal(str(entry.path), entry.tag, entry.sha256, hashlib.sha256(bad).hexdigest(), "is damaged"):
            read_verified(entry)


def test_another_length_is_refused(entry: Entry) -> None:
    raw = entry.path.read_bytes()
    for bad in (b"", raw[:7], raw[: len(raw) // 2], raw[:-1], raw + b"\0"):
        entry.path.write_bytes(bad)
        with refusal(str(entry.path), f"expected {len(raw)} bytes", f"found {len(bad)} bytes", entry.sha256):
            read_verified(entry)


def test_a_missing_file_is_named(entry: Entry) -> None:
    entry.path.unlink()
    with refusal(str(entry.path), "No such file", entry.tag):
        read_verified(entry)


def test_a_pinned_file_that_is_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\x80\x04N.")
    with refusal(str(tmp_path / "weights.bin"), "safetensors"):
        read_verified(entry_of(tmp_path / "weights.bin"))


# Tensors


def lacking(tensors: Tensors, key: str) -> Tensors:
    return {k: v for k, v in tensors.items() if k != key}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t | {"features.1.weight": torch.ones(2)}, ("features.1.weight",)),
        (lambda t: lacking(t, "features.0.bias"), ("features.0.bias",)),
        # A file that lost its head, or half of it, is not one of another number of classes.
        (lambda t: lacking(t, "classifier.weight"), ("classifier.weight",)),
        (lambda t: lacking(t, "classifier.bias"), ("classifier.bias",)),
        (lambda t: {k: v for k, v in t.items() if k.startswith("features.")}, ("classifier.weight", "classifier.bias")),
        (lambda t: t | {"classifier.bias": torch.ones(9)}, ("classifier.bias", "[9]", "[10]")),
        (lambda t: t | {"classifier.weight": torch.tensor(1.0)}, ("classifier.weight", "[]", "[10, 4]")),
        (lambda t: t | {"classifier.weight": torch.ones(10, 5)}, ("classifier.weight", "[10, 5]", "[10, 4]")),
        (lambda t: t | {"features.0.weight": torch.ones(4, 3, 3, 1)}, ("features.0.weight", "[4, 3, 3, 1]")),
        (lambda t: t | {"features.0.weight": torch.ones(4)}, ("features.0.weight", "[4]")),
        (lambda t: t | {"features.0.weight": torch.ones(4, 2, 3, 3)}, ("features.0.weight", "[4, 2, 3, 3]")),
        (lambda t: t | {"features.0.weight": t["features.0.weight"].int()}, ("features.0.weight", "torch.int32")),
        (lambda t: t | {"classifier.bias": t["classifier.bias"].bool()}, ("classifier.bias", "torch.bool")),
    ],
)
def test_a_file_that_differs_in_one_tensor_is_refused(
    change: Callable[[Tensors], Tensors], parts: tuple[str, ...], tmp_path: Path
) -> None:
    save_file(change(seeded(0).state_dict()), tmp_path / "tiny.safetensors")
    tensors = read_verified(entry_of(tmp_path / "tiny.safetensors"))
    model = seeded(1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with refusal("tiny.made_up", *parts):
        load_into(model, tensors)
    assert equal(model.state_dict(), before)  # nothing of it was loaded


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(create_model("fire_next").state_dict(), tmp_path / "other.safetensors")
    other = read_verified(entry_of(tmp_path / "other.safetensors"))
    with refusal("block.conv1x3.0.bias", "more"):
        load_into(seeded(0), other)
    with refusal("features.0.weight", "[4, 3, 3, 3]", "[5, 3, 3, 3]"):
        load_into(seeded(0, width=5), seeded(0).state_dict())


def test_half_precision_is_taken(entry: Entry) -> None:
    model = seeded(1)
    half = {k: v.half() for k, v in read_verified(entry).items()}
    load_into(model, half)
    assert equal(model.state_dict(), {k: v.float() for k, v in half.items()})


def test_counters_of_batch_norm_are_no_wrong_dtype() -> None:
    expected = seeded(0, batch_norm=True).state_dict()
    expected["features.1.num_batches_tracked"] += 7
    model = seeded(1, batch_norm=True)
    load_into(model, expected)
    assert equal(model.state_dict(), expected)


# Another head, other channels


@pytest.mark.parametrize("classes", [3, 100])
def test_another_number_of_classes_loads_all_but_the_head_and_says_so(
    classes: int, entry: Entry, caplog: pytest.LogCaptureFixture
) -> None:
    model = seeded(1, num_classes=classes)
    fresh = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("classifier.")}
    with caplog.at_level(logging.INFO, "sqzoo"):
        load_into(model, read_verified(entry))
    expected = {k: v for k, v in seeded(0).state_dict().items() if k.startswith("features.")}
    assert equal(model.state_dict(), expected | fresh)
    (record,) = caplog.records
    assert record.name == "sqzoo"
    for part in ("tiny.made_up", "classifier", "10 classes", f"{classes} asked for"):
        assert part in record.getMessage()


def test_no_head_at_all(entry: Entry) -> None:
    model = seeded(1, num_classes=0)
    load_into(model, read_verified(entry))
    assert equal(model.state_dict(), lacking(lacking(read_verified(entry), "classifier.bias"), "classifier.weight"))


def test_nothing_is_logged_where_all_is_loaded(entry: Entry, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sqzoo"):
        load_into(seeded(1), read_verified(entry))
    assert not caplog.records


def test_one_channel_sums_and_more_tile(entry: Entry) -> None:
    weight = read_verified(entry)["features.0.weight"]
    grey, six = seeded(1, in_chans=1), seeded(1, in_chans=6)
    load_into(grey, read_verified(entry))
    load_into(six, read_verified(entry))
    assert torch.equal(grey.features[0].weight, weight.sum(1, keepdim=True))
    assert torch.equal(six.features[0].weight, torch.cat([weight, weight], 1) / 2)
    picture = torch.rand(1, 1, 8, 8)  # a grey picture gives what it gives as RGB
    original = seeded(0)
    torch.testing.assert_close(grey.features(picture), original.features(picture.repeat(1, 3, 1, 1)))


# Heads, joined with the ImageNet trunk


@pytest.mark.parametrize(
    ("name", "trunk", "layers"),
    [("sq1", "squeezenet1_1", 13), ("squeezenet_cifar", "squeezenet1_1", 13), ("fire_next", "squeezenet1_1", 12)],
)
def test_a_head_file_is_joined_with_its_trunk(name: str, trunk: str, layers: int, trunks: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = create_model(name, init="imagenet", trunk=trunks).eval()
    head = {k: v for k, v in source.state_dict().items() if not k.startswith("features.")}
    save_file(head, tmp_path / "head.safetensors")
    entry = entry_of(tmp_path / "head.safetensors", f"{name}.made_up", "head", trunk)
    with trunk_source(trunks):
        state = load_state(entry, source.state_dict())
    real = load_file(trunks / f"{trunk}_features.safetensors")
    assert equal(state, head | {k: v for k, v in real.items() if int(k.split(".")[1]) < layers})
    torch.manual_seed(1)
    model = create_model(name).eval()
    load_strict(model, state, entry.tag, model.classifier_name, "features.0")
    picture = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(picture), source(picture))


def test_a_head_file_with_trunk_tensors_is_refused(trunks: Path, tmp_path: Path) -> None:
    """They would be left unread, or take the place of the verified ones."""
    file = tmp_path / "head.safetensors"
    save_file({"conv.bias": torch.ones(2), "features.0.bias": torch.ones(64)}, file)
    with trunk_source(trunks), refusal(str(file)):
        load_state(entry_of(file, "sq1.made_up", "head"), [])


def test_a_complete_file_needs_no_trunk(entry: Entry, tmp_path: Path) -> None:
    with trunk_source(tmp_path / "nowhere"):
        assert equal(load_state(entry, []), read_verified(entry))
