"""Damage files by what they are made of: bytes, JSON, safetensors headers, coded weights, zips and pickles."""

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save

from sqzoo.weights.coded import LAYERS, SYMBOLS, VALUES

# Values that no field expects, or that lie at the edge of what a number can be.
ODD = [
    *(None, True, False, 0, 1, -1, 2.5, 255, 256, 1 << 31, 1 << 40, 1 << 62, 1 << 63, 1 << 200, -(1 << 63)),
    *(float("nan"), float("inf"), 1e-300, 1e300, "", "1", "sq1", "../../x", "\x1b[2J", "\ud800", "a\0b", "x" * 5000),
    *([], {}, [[]], [1, -1], [1 << 20, 1 << 20], [1] * 5000, {"a": {"a": {}}}, [None], ["a", 1]),
]


def bytes_of(rng: random.Random, data: bytes, low: int = 0, high: int | None = None) -> bytes:
    """Change some bytes between two places: flip a bit, overwrite, cut, repeat, insert or remove."""
    high = len(data) if high is None else high
    place = rng.randrange(low, high)
    match rng.randrange(7):
        case 0 | 1:
            return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        case 2:
            return data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place + 1 :]
        case 3:
            return data[:place]
        case 4:
            part = data[place : place + rng.randrange(1, 200)]
            return data[:place] + part * rng.randrange(2, 5) + data[place:]
        case 5:
            return data[:place] + data[place + rng.randrange(1, 200) :]
        case _:
            word = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", struct.pack("<Q", 1 << 63)])
            return data[:place] + word + data[place + len(word) :]


def value_of(rng: random.Random, value: Any) -> Any:
    """Return JSON in which one place, at any depth, is replaced, removed, renamed, doubled or wrapped."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {(k if k != key else rng.choice(["", "x", k + "x", k.upper()])): v for k, v in value.items()}
            case 2:
                return value | {rng.choice(["extra", "file", "url", "__metadata__"]): rng.choice(ODD)}
            case _:
                return value | {key: value_of(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        match rng.randrange(5):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value, value[place]]
            case 2:
                return value[::-1]
            case _:
                return [*value[:place], value_of(rng, value[place]), *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice([-1, 1, -4, 4, 1 << 32, -(1 << 32), 1 << 63])
    return rng.choice([*ODD, [value], {"value": value}, str(value)])


def text_of(rng: random.Random, value: Any) -> bytes:
    """Return a changed value as JSON, at times in another encoding or with two meanings."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        value = value_of(rng, value)
    text = json.dumps(value)
    match rng.randrange(20):
        case 0:
            return text.encode(rng.choice(["utf-8-sig", "utf-16", "utf-32"]))
        case 1:
            return (text + rng.choice(["}", " " * 2_000_000, "\0", ",1"])).encode()
        case 2:
            return text.replace("{", '{"a": 1, "a": 2, ', 1).encode()
        case 3:
            return b"[" * 100_000 + text.encode()
        case 4:
            return text.replace("1", "1e999", 1).encode()
        case _:
            return text.encode()


def header_of(rng: random.Random, data: bytes) -> bytes:
    """Change the header of a safetensors file, and leave its tensors as they are."""
    length = 8 + int.from_bytes(data[:8], "little")
    header = text_of(rng, json.loads(data[8:length]))
    return struct.pack("<Q", len(header)) + header + data[length:]


def tensors_of(rng: random.Random, data: bytes) -> bytes:
    """Return a sound safetensors file with other tensors than the model's: shapes, names, types, one more or less."""
    tensors = load(data)
    key = rng.choice(sorted(tensors))  # `load` has no order
    tensor = tensors[key]
    match rng.randrange(9):
        case 0:
            tensors[key] = tensor.reshape(-1)
        case 1:
            tensors[key] = tensor.reshape(*tensor.shape, 1)
        case 2:
            tensors[key] = tensor.reshape(tensor.shape[::-1])
        case 3:
            tensors[key] = tensor.to(rng.choice([torch.int8, torch.int64, torch.bool, torch.uint8]))
        case 4:
            del tensors[key]
        case 5:
            tensors[rng.choice(["extra", key + "x", "../x", "\x1b[2J"])] = torch.zeros(rng.choice([0, 1, 1000]))
        case 6:
            tensors[rng.choice([key + "x", key.upper(), ""])] = tensors.pop(key)
        case 7:
            tensors[key] = torch.full_like(tensor, rng.choice([float("nan"), float("inf")]))
        case _:
            tensors[key] = torch.cat([tensor, tensor])
    return save({k: t.contiguous() for k, t in tensors.items()})


def coded_of(rng: random.Random, data: bytes) -> bytes:
    """Change the compressed parts of coded weights: their list of layers, codebooks and symbols."""
    tensors = load(data)
    key = rng.choice((LAYERS, VALUES, SYMBOLS))
    raw = tensors[key].view(torch.uint8).numpy().tobytes()
    match rng.randrange(8):
        case 0 | 1 | 2:
            layers = json.loads(zlib.decompress(tensors[LAYERS].numpy().tobytes()))
            tensors[LAYERS] = _deflated(text_of(rng, layers))
        case 3:
            symbols = zlib.decompress(tensors[SYMBOLS].numpy().tobytes())
            tensors[SYMBOLS] = _deflated(bytes_of(rng, symbols))
        case 4:
            values = tensors[VALUES].clone()
            values[rng.randrange(len(values))] = rng.choice([float("nan"), float("inf"), 65504.0, -1e-7])
            tensors[VALUES] = values
        case 5:
            tensors[key] = rng.choice([_BOMB, torch.zeros(()), torch.zeros(2, 3), torch.zeros(0, dtype=torch.uint8)])
        case 6:
            tensors[key] = tensors[key].to(rng.choice([torch.float32, torch.int32, torch.bool, torch.float64]))
        case _:
            tensors[key] = torch.frombuffer(bytearray(bytes_of(rng, raw) or b"\0"), dtype=torch.uint8)
    return save({k: t.contiguous() for k, t in tensors.items()})


def _deflated(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(zlib.compress(data)), dtype=torch.uint8)


_BOMB = _deflated(bytes(1 << 26))


def zip_of(rng: random.Random, data: bytes) -> bytes:
    """Change an entry of a zip archive, the pickle in it above all, or the archive's own tables at its end."""
    if rng.random() < 0.3:
        return bytes_of(rng, data, max(0, len(data) - 2000))
    if rng.random() < 0.2:
        return bytes_of(rng, data)
    out = io.BytesIO()
    kind = rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(data)) as given, zipfile.ZipFile(out, "w", kind) as archive:
        names = given.namelist()
        target = rng.choice([*[n for n in names if n.endswith("data.pkl")] * 3, rng.choice(names)])
        for name in names:
            content = given.read(name)
            if name == target:
                content = pickle_of(rng, content) if content else b"x"
            archive.writestr(name, content)
    return out.getvalue()


def pickle_of(rng: random.Random, data: bytes) -> bytes:
    """Change a pickle's bytes, or its opcodes: what it asks for, its numbers, its nesting."""
    swaps: list[Callable[[], bytes]] = [
        lambda: bytes_of(rng, data),
        lambda: data.replace(rng.choice([b"K", b"X", b"q", b"(", b"t", b"R"]), rng.choice([b"J", b"U", b"u", b"}"]), 1),
        lambda: data[:-1] + rng.choice([b"R", b"b", b"u", b"e", b"Q", b"0", b"i", b"o"]) + data[-1:],
        lambda: b"\x80\x02c" + rng.choice([b"os\nsystem", b"posix\nsystem", b"torch\nload", b"builtins\nexec"])
        + b"\n(X\x02\0\0\0idtR.",
        lambda: data[:2] + rng.choice([b"N\x85", b"}", b"](", b"K\x01q\0h\0"]) * rng.randrange(1, 50_000) + data[2:],
    ]  # fmt: skip
    return rng.choice(swaps)()
