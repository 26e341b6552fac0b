"""Offer mutated files to every reader: what comes of them, how long it takes, how much memory."""

import dataclasses
import gc
import hashlib
import io
import itertools
import json
import pickle
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save

import sqzoo
from benchmarks.robustness import mutate
from sqzoo import hub
from sqzoo.data import cifar10
from sqzoo.errors import SqzooError
from sqzoo.images.opener import formats, open_image
from sqzoo.weights import load_trunk, read_manifest
from sqzoo.weights.coded import encode
from sqzoo.weights.header import check_matches
from sqzoo.weights.loading import read_verified
from sqzoo.weights.remote import CONFIG, WEIGHTS, Source, read_weights

_CODEBOOK = np.linspace(-1, 1, 9).astype(np.float16)[[4, 0, 1, 2, 3, 5, 6, 7, 8]]  # zero first, the most frequent
Damage = Callable[[random.Random], bytes]


class Reader(NamedTuple):
    """A reader under trial: how to damage its file, and what reads it; that returns whether what it took is right."""

    damage: Damage
    file: Path
    read: Callable[[bytes], bool]


def weights_with_hash(folder: Path) -> Reader:
    """Weights whose hash is stated: any change at all is refused."""
    data, own = _small(folder)
    config = {"sha256": hashlib.sha256(data).hexdigest()}
    kinds = [mutate.bytes_of, mutate.header_of, mutate.tensors_of]
    source = Source(str(folder), folder=True)
    return Reader(
        lambda rng: rng.choice(kinds)(rng, data),
        folder / WEIGHTS,
        lambda given: bool(read_weights(source, config, own)) and given == data,
    )


def weights_without_hash(folder: Path) -> Reader:
    """Weights without a stated hash: names, shapes, types and sizes are the model's, or it is refused."""
    data, own = _small(folder)
    source = Source(str(folder), folder=True)
    end = 8 + int.from_bytes(data[:8], "little")
    kinds: list[Callable[[random.Random], bytes]] = [
        lambda rng: mutate.bytes_of(rng, data, 0, end),
        lambda rng: mutate.header_of(rng, data),
        lambda rng: mutate.tensors_of(rng, data),
        lambda rng: rng.randrange(1 << 20, 1 << 63).to_bytes(8, "little") + data[8:],
        lambda rng: rng.randbytes(rng.randrange(5000)),
    ]
    return Reader(
        lambda rng: rng.choice(kinds)(rng),
        folder / WEIGHTS,
        lambda _: _alike(read_weights(source, {}, own), own),
    )


def coded(folder: Path) -> Reader:
    """Coded weights under the hash that they have: what is decoded has the model's shapes, or it is refused."""
    rng, file = np.random.default_rng(0), folder / "coded.safetensors"
    shapes = {"a.weight": (16, 8, 3, 3), "b.weight": (32, 16), "c.weight": (64, 8, 1, 1)}
    layers = {
        k: (rng.choice(9, shape, p=[0.6] + [0.05] * 8).astype(np.uint8), _CODEBOOK) for k, shape in shapes.items()
    }
    original = save(encode(layers, {"a.bias": torch.rand(16)}))
    entry = next(e for e in read_manifest().values() if e.stored == "coded")
    own = {k: torch.empty(shape) for k, shape in shapes.items()} | {"a.bias": torch.empty(16)}
    params = sum(t.numel() for t in own.values())

    def read(data: bytes) -> bool:
        sha256 = hashlib.sha256(data).hexdigest()
        about = dataclasses.replace(entry, file=str(file), sha256=sha256, size=len(data), params=params)
        return _alike(read_verified(about), own)

    return Reader(lambda rng: mutate.coded_of(rng, original), file, read)


def configurations(folder: Path) -> Reader:
    """config.json beside right weights: it describes a model that they fit, or it is refused."""
    hub.save_pretrained(sqzoo.create_model("sq1", num_classes=4, mid=8), folder)
    config = json.loads((folder / CONFIG).read_bytes()) | {"sha256": None}

    def read(_: bytes) -> bool:
        model = sqzoo.create_model(f"local-dir:{folder}")
        return all(bool(t.isfinite().all()) for t in model.state_dict().values())

    return Reader(lambda rng: mutate.text_of(rng, config), folder / CONFIG, read)


def backbones(folder: Path) -> Reader:
    """A backbone in torch's zip format, which its pinned hash tells from any other."""
    stream = io.BytesIO()
    torch.save({f"features.{i}.weight": torch.rand(4, 3, 3, 3) for i in range(5)}, stream)
    data, file = stream.getvalue(), folder / "trunk.pth"
    return Reader(lambda rng: mutate.zip_of(rng, data), file, lambda _: not load_trunk("squeezenet1_1", file))


def batches(folder: Path) -> Reader:
    """CIFAR-10 as torchvision has it; twenty images are not the test split, whatever they are."""
    pixels = np.arange(20 * 3072, dtype=np.uint32).astype(np.uint8).reshape(20, 3072)
    data = pickle.dumps({b"data": pixels, b"labels": list(range(10)) * 2}, 2)
    start = lambda rng: mutate.bytes_of(rng, data, 0, 300)  # noqa: E731
    return Reader(
        lambda rng: rng.choice([start, lambda rng: mutate.pickle_of(rng, data)])(rng),
        folder / "test_batch",
        lambda _: len(cifar10("test", folder)) < 0,
    )


def parquet(folder: Path) -> Reader:
    """CIFAR-10 as the Hub has it, the same."""
    stream = io.BytesIO()
    image = {"bytes": _encoded(np.zeros((32, 32, 3), np.uint8), "PNG"), "path": "x.png"}
    pq.write_table(pa.table({"img": [image] * 20, "label": list(range(10)) * 2}), stream, compression="zstd")
    data = stream.getvalue()
    return Reader(
        lambda rng: mutate.bytes_of(rng, data, *rng.choice([(0, 300), (len(data) - 1500, len(data))])),
        folder / "test-00000-of-00001.parquet",
        lambda _: len(cifar10("test", folder)) < 0,
    )


def images(folder: Path) -> Reader:
    """Images of each format: they are decoded to their size, or refused."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    files = [_encoded(pixels, kind) for kind in formats() if kind not in ("MPO", "HEIF")]

    def damage(rng: random.Random) -> bytes:
        data = rng.choice(files)
        return mutate.bytes_of(rng, data, 0, rng.choice([min(len(data), 200), len(data)]))

    file = folder / "x.jpg"
    return Reader(damage, file, lambda _: open_image(file).mode == "RGB")


READERS = (weights_with_hash, weights_without_hash, coded, configurations, backbones, batches, parquet, images)


def _small(folder: Path) -> tuple[bytes, dict[str, torch.Tensor]]:
    """Return a small weights file, and the tensors that its model has."""
    own = {"conv.weight": torch.rand(8, 4, 3, 3), "conv.bias": torch.rand(8), "fc.weight": torch.rand(10, 8)}
    return save(own), own


def _alike(tensors: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> bool:
    check_matches(tensors, own, "read")
    return tensors.keys() == own.keys()


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def fuzz(name: str, start: int, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Offer mutated files to a reader for ever, from a number on.

    Yields:
        1 and what came of a file: "read", "refused", "wrong", "crashed" or "unclear", the CPU time of a refusal in ms,
        and by how many MB the process has grown.
    """
    make = next(reader for reader in READERS if reader.__name__ == name)
    torch.manual_seed(seed)  # of the files that are mutated
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        reader = make(Path(folder))
        for number in itertools.chain([-1], itertools.count(start)):
            data = reader.damage(random.Random(f"{seed} {name} {number}"))
            reader.file.write_bytes(data)
            if number < 0:  # what the process needs in any case: not counted
                _outcome(reader, data)
                gc.collect()
                gc.freeze()  # or the time would be that of the collector, which walks through all of torch
                Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak of memory begins anew
                before = _peak()
                continue
            began = time.process_time()
            outcome = _outcome(reader, data)
            took = time.process_time() - began
            for _ in range(3 if outcome == "refused" and took > 0.02 else 0):  # another process may be in the way
                began = time.process_time()
                _outcome(reader, data)
                took = min(took, time.process_time() - began)
            found: dict[str, Any] = {outcome: 1, "slowest_ms": round(1000 * took, 2) if outcome == "refused" else 0.0}
            yield 1, found | {"memory_mb": round(_peak() - before, 1) if number % 50 == 0 else 0.0}


def _outcome(reader: Reader, data: bytes) -> str:
    """Return what reading a file came to."""
    try:
        return "read" if reader.read(data) else "wrong"
    except SqzooError as e:
        message = str(e)
        if message.isprintable() and message.endswith(".") and len(message) < 900:
            return "refused"
        print(f"unclear: {message!r}", file=sys.stderr)
        return "unclear"
    except Exception:
        traceback.print_exc()
        return "crashed"


def _peak() -> float:
    """Return the process's peak of memory in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
