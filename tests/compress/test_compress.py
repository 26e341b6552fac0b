"""Compressed weights: exact there and back, bounded, refused when damaged, and as good as their records say."""

import dataclasses
import hashlib
import json
import socket
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from safetensors.torch import load, save, save_file

import sqzoo
from sqzoo import hub
from sqzoo.compress.make_tag import make_tiny
from sqzoo.compress.network import Compressed, compress
from sqzoo.data import Dataset
from sqzoo.errors import ArgumentError, SqzooError, WeightsError
from sqzoo.evaluation import evaluate
from sqzoo.files import file_sha256
from sqzoo.models.base import ZooModel
from sqzoo.models.blocks import GlobalPool
from sqzoo.train import recipe
from sqzoo.weights import Entry, load_trunk, read_manifest
from sqzoo.weights.coded import LAYERS, SYMBOLS, VALUES, decode, encode
from sqzoo.weights.loading import read_verified
from tests.support.sentences import assert_one_sentence

Tensors = dict[str, torch.Tensor]
CODED = [tag for tag, entry in read_manifest().items() if entry.stored == "coded"]
MOST = {"alexnet_cifar": 7_000_000}  # bytes; of the others 500,000
POINTS = {"alexnet_cifar": 1.0}  # of top-1 below the parent; of the others 0.5


def random_images(count: int, side: int = 32) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (count, side, side, 3), np.uint8), np.arange(count) % 10)


# The file's format


def layer(share: float, shape: tuple[int, ...] = (30, 20, 3, 3), values: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of which so great a share is not zero's, and their values."""
    rng = np.random.default_rng(0)
    codebook = np.sort(rng.normal(size=values)).astype(np.float16)
    codebook[values // 2] = 0
    indices = np.where(rng.random(shape) < share, rng.integers(0, values, shape), values // 2).astype(np.uint8)
    return indices, codebook


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("values", [1, 2, 256])
def test_what_is_coded_comes_back(share: float, values: int) -> None:
    layers = {"a.weight": layer(share, values=values), "b.weight": layer(1.0, (5, 4)), "c.weight": layer(share, (1,))}
    others = {"a.bias": torch.tensor([0.5, -2.0]), "a.count": torch.tensor(7)}
    found = decode(load(save(encode(layers, others))), 10_000, "it")
    assert found.keys() == layers.keys() | others.keys()
    for name, (indices, codebook) in layers.items():
        assert found[name].dtype == torch.float32
        assert np.array_equal(found[name].numpy(), codebook.astype(np.float32)[indices])
    assert all(torch.equal(found[name], tensor) for name, tensor in others.items())


def test_few_weights_take_few_bytes() -> None:
    sizes = [len(encode({"w": layer(share, (300, 300))}, {})[SYMBOLS]) for share in (1.0, 0.1, 0.01)]
    # Bits a weight: a whole Huffman code each, and where zeros prevail about the entropy of where the others are.
    assert [8 * n / 90_000 < bits for n, bits in zip(sizes, (3.1, 0.75, 0.12), strict=True)] == [True] * 3, sizes


def coded() -> Tensors:
    return encode({"a.weight": layer(0.5), "b.weight": layer(0.02, (50, 50))}, {"a.bias": torch.ones(30)})


def refuse(tensors: Tensors, most: int = 10_000) -> str:
    with pytest.raises(WeightsError) as caught:
        decode(tensors, most, "it")
    message = str(caught.value)
    assert message.startswith("it is not an intact file of coded weights (")
    assert_one_sentence(message, "; fetch it again.")
    return message


def deflated(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(zlib.compress(data)), dtype=torch.uint8)


def relisted(change: Any) -> Tensors:
    """Return a coded file whose list of layers was changed."""
    tensors = coded()
    layers = json.loads(zlib.decompress(tensors[LAYERS].numpy().tobytes()))
    return tensors | {LAYERS: deflated(json.dumps(change(layers)).encode())}


@pytest.mark.parametrize(
    "change",
    [
        lambda ls: [],
        lambda ls: ls[:1],
        lambda ls: [ls[0], ls[0]],
        lambda ls: [*ls, ls[1]],
        lambda ls: {"a": ls},
        lambda ls: [[*ls[0], 1], ls[1]],
        lambda ls: [["a.bias", *ls[0][1:]], ls[1]],
        lambda ls: [[None, *ls[0][1:]], ls[1]],
        lambda ls: [["a.weight", [30, 20, 9, 2], *ls[0][2:]], ls[1]],
        lambda ls: [["a.weight", [30, -20, -3, 3], *ls[0][2:]], ls[1]],
        lambda ls: [["a.weight", [30.0, 20, 3, 3], *ls[0][2:]], ls[1]],
        lambda ls: [["a.weight", "many", *ls[0][2:]], ls[1]],
        lambda ls: [[*ls[0][:2], 0, ls[0][3]], ls[1]],
        lambda ls: [[*ls[0][:2], 6, ls[0][3]], ls[1]],
        lambda ls: [[*ls[0][:2], 1 << 30, ls[0][3]], ls[1]],
        lambda ls: [ls[0], [*ls[1][:3], -1]],
        lambda ls: [ls[0], [*ls[1][:3], 1 << 39]],
        lambda ls: [ls[0], [*ls[1][:3], True]],
        lambda ls: [ls[0], [ls[1][0], [5, 5], *ls[1][2:]]],
    ],
)
def test_a_changed_list_of_layers_is_refused(change: Any) -> None:
    refuse(relisted(change))


def test_parts_that_are_missing_or_of_another_kind() -> None:
    tensors = coded()
    for key in (LAYERS, VALUES, SYMBOLS):
        refuse({k: v for k, v in tensors.items() if k != key})
        for odd in (torch.zeros(()), torch.zeros(0, dtype=torch.uint8), torch.zeros(9), torch.zeros(3, 3).bool()):
            refuse(tensors | {key: odd})
    refuse(tensors | {SYMBOLS: deflated(bytes(5399 + 2 * 50))})
    refuse(tensors | {SYMBOLS: deflated(b"\xff" * 5500)})


def test_a_flipped_bit_in_a_compressed_part_is_refused() -> None:
    tensors = coded()
    rng = np.random.default_rng(0)
    for key in (LAYERS, SYMBOLS):  # zlib's checksum tells; the values have none, the whole file's SHA-256 is theirs
        for place in rng.choice(len(tensors[key]), 40, replace=False).tolist():
            bad = tensors[key].clone()
            bad[place] ^= 1 << int(rng.integers(8))
            if place > 1:  # the first two bytes say how the stream was made; some of it does not matter
                refuse(tensors | {key: bad})
            refuse(tensors | {key: tensors[key][:place].clone()})


def test_no_memory_for_more_than_is_allowed() -> None:
    bomb = deflated(bytes(1 << 27))
    huge = relisted(lambda ls: [["a.weight", [1 << 20, 1 << 18], *ls[0][2:]], ls[1]])
    tracemalloc.start()
    try:
        assert "more than 10,000" in refuse(huge)
        refuse(coded() | {SYMBOLS: bomb})
        refuse(coded() | {LAYERS: bomb})
        refuse(coded(), most=100)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# Compressing


class Small(ZooModel):
    """Two convolutions and a linear layer."""

    stages = ((1, 8, 2), (3, 16, 4))
    classifier_name = "fc"
    linear_head = True

    def __init__(self) -> None:
        super().__init__(10, 3, "avg")
        layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3, stride=2, padding=1)]
        self.features = nn.Sequential(*layers, nn.ReLU(inplace=True))
        self.global_pool = GlobalPool("avg")
        self.fc = nn.Linear(16, 10)
        self.pretrained_cfg = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.2,) * 3}

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return self.fc(self.global_pool(x))


def small(size: int) -> tuple[ZooModel, Compressed]:
    torch.manual_seed(0)
    model = Small().eval()
    return model, compress(model, random_images(40), random_images(20), size, metadata={"format": "pt"})


def test_compressing_is_deterministic_and_says_what_it_made() -> None:
    model, made = small(1500)
    assert len(made.data) <= 1500
    assert made.data == small(1500)[1].data
    stored = load(made.data)
    decoded = decode(stored, sum(p.numel() for p in model.parameters()), "it")
    assert all(torch.equal(decoded[k], v) for k, v in made.model.state_dict().items())
    assert made.layers.keys() == {"features.0", "features.2", "fc"}
    for name, row in made.layers.items():
        weights = decoded[f"{name}.weight"]
        assert row["weights"] == weights.numel()
        assert row["values"] >= len(weights.unique())
        assert row["zeros"] == pytest.approx((weights == 0).float().mean().item(), abs=1e-4)


def test_more_bytes_come_nearer_to_the_parent() -> None:
    x = torch.randn(50, 3, 32, 32)
    errors = []
    for size in (1300, 1500, 1800):
        model, made = small(size)
        with torch.inference_mode():
            errors.append(((made.model(x) - model(x)).std() / model(x).std()).item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1, errors


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(ArgumentError, match="size=500 is too small for"):
        small(500)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder: all layers of sq1, at 32 pixels, as they were drawn."""
    folder = tmp_path_factory.mktemp("runs") / "made-up"
    folder.mkdir()
    plan = recipe("ft_cifar10", "sq1", sizes=((32, 1),))
    data = {"train_digest": "a", "test_digest": "b", "epoch": 1, "val": None, "upsample": [32, 32]}
    data |= {"environment": {"commit": "c"}, "device": "cpu", "precision": "float32"}
    result = data | {"recipe": plan.to_json(), "test": {"loss": 2.5, "top1": 11.0, "images": 20}}
    torch.manual_seed(0)
    save_file(sqzoo.create_model("sq1").state_dict(), folder / "best.safetensors")
    result["weights_sha256"] = file_sha256(folder / "best.safetensors")
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def test_a_run_becomes_a_tag(run: Path, tmp_path: Path, trunks: Path) -> None:
    weights = tmp_path / "sqzoo" / "weights"
    weights.mkdir(parents=True)
    (weights / "manifest.json").write_text('{"weights": []}', encoding="utf-8")
    data = random_images(60)
    made = make_tiny(
        str(run), "sq1.tiny_test", tmp_path, data, data, size=400_000, images=16, val_images=20, trunk=trunks
    )
    (fields,) = json.loads((weights / "manifest.json").read_text(encoding="utf-8"))["weights"]
    entry = Entry(**fields | {"file": str(weights / fields["file"])})
    assert (entry.tag, entry.holds, entry.stored) == ("sq1.tiny_test", "complete", "coded")
    assert entry.size == made["bytes"] == entry.path.stat().st_size <= 400_000
    assert entry.metrics["parent_test_top1"] == 11.0
    record = json.loads((tmp_path / entry.metrics["source"]).read_text(encoding="utf-8"))
    assert record == made
    assert record["test"]["top1"] == entry.metrics["test_top1"]
    model = sqzoo.create_model("sq1").eval()
    model.load_state_dict(read_verified(entry), strict=True)
    model.pretrained_cfg = model.pretrained_cfg | {"input_size": (3, 32, 32), "crop_pct": 1.0}
    assert dataclasses.asdict(evaluate(model, data)) == pytest.approx(record["test"])
    most = sum(row["weights"] for row in record["layers"].values())
    with pytest.raises(WeightsError, match=f"its weights are more than {most - 1:,}"):
        read_verified(dataclasses.replace(entry, params=most - 1))


@pytest.mark.parametrize(
    ("parent", "tag", "size", "said"),
    [
        ("sq1.ft_cifar10", "fire_next.tiny_test", 340_000, "sq1.ft_cifar10 is of sq1, the tag 'fire_next.tiny_test'"),
        ("sq1.ft_cifar10", "sq1", 340_000, "'sq1' names no weights; give ARCHITECTURE.NAME"),
        ("sq1.none", "sq1.tiny_test", 340_000, "No weights named 'sq1.none'"),
        ("sq1.ft_cifar10", "sq2.tiny_test", 340_000, "Unknown model 'sq2'"),
        ("sq1.ft_cifar10", "sq1.tiny_test", 1000, "size=1000 is too small"),
    ],
)
def test_mistakes_are_one_sentence(parent: str, tag: str, size: int, said: str, tmp_path: Path) -> None:
    data, manifest = random_images(40), tmp_path / "sqzoo" / "weights" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}", encoding="utf-8")
    with pytest.raises(SqzooError) as caught:
        make_tiny(parent, tag, tmp_path, data, data, size=size, images=10, val_images=10)
    assert_one_sentence(caught.value, said)
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == [manifest]


def test_a_folder_that_is_no_checkout_or_of_ones_own_images_is_refused(tmp_path: Path) -> None:
    data = random_images(40)
    with pytest.raises(SqzooError, match="checkout"):
        make_tiny("sq1.ft_cifar10", "sq1.tiny_test", tmp_path, data, data)
    (tmp_path / "result.json").write_text('{"classes": ["a", "b"]}', encoding="utf-8")
    with pytest.raises(SqzooError, match="your own images"):
        make_tiny(str(tmp_path), "sq1.tiny_test", tmp_path, data, data)
    with pytest.raises(SqzooError, match="names no weights"):
        make_tiny("sq1.ft_cifar10", "sq1.x/../../x", tmp_path, data, data)


# The tags in the package


@pytest.mark.parametrize("tag", CODED)
def test_tags_are_as_small_and_as_good_as_promised(tag: str) -> None:
    entry = read_manifest()[tag]
    assert entry.path.stat().st_size < MOST.get(entry.architecture, 500_000)
    below = entry.metrics["parent_test_top1"] - entry.metrics["test_top1"]
    assert below <= POINTS.get(entry.architecture, 0.5)
    stored = load(entry.path.read_bytes())
    assert {LAYERS, VALUES, SYMBOLS} < stored.keys()
    assert not any(k.endswith(".weight") for k in stored)


def test_every_architecture_loads_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.delenv("SQZOO_TRUNKS", raising=False)
    for name in {tag.partition(".")[0] for tag in CODED}:
        assert not sqzoo.create_model(name, pretrained=True).training
        assert not sqzoo.create_model(f"{name}.tiny_cifar10", pretrained=True).training


@pytest.mark.parametrize("tag", CODED)
def test_no_tensor_is_the_imagenet_trunks_own(tag: str, trunks: Path) -> None:
    entry = read_manifest()[tag]
    own = read_verified(entry)
    theirs = load_trunk(entry.trunk, trunks)
    assert not [k for k, v in theirs.items() if k in own and torch.equal(own[k].half(), v.half())]


def test_a_saved_tag_is_plain_and_whole(tmp_path: Path) -> None:
    tag = "sq1.tiny_cifar10"
    model = sqzoo.create_model(tag, pretrained=True)
    hub.save_pretrained(model, tmp_path)
    stored = load((tmp_path / "model.safetensors").read_bytes())
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(stored[k], v) for k, v in read_verified(read_manifest()[tag]).items())


def test_a_coded_file_damaged_under_its_own_hash_is_refused(tmp_path: Path) -> None:
    entry = read_manifest()["sq1.tiny_cifar10"]
    data = save(load(entry.path.read_bytes()) | {SYMBOLS: torch.zeros(9, dtype=torch.uint8)})
    (tmp_path / "bad.safetensors").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    bad = dataclasses.replace(entry, file=str(tmp_path / "bad.safetensors"), size=len(data), sha256=sha256)
    with pytest.raises(WeightsError, match=r"bad\.safetensors is not an intact file of coded weights"):
        read_verified(bad)
