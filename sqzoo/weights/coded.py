"""Encode and decode entropy-coded weights: shared values and Huffman-coded indices in a safetensors file.

Each coded tensor has a codebook of at most 256 float16 values, including zero, and an index into it for every weight
(weight sharing; Han, Mao and Dally, "Deep Compression", 2016). The file holds three tensors for all of them, and the
other tensors, biases, under their own names:

- coded.layers: deflated JSON: [name, shape, number of values, number of gaps or null] per coded tensor, in order;
- coded.values: the codebooks, concatenated;
- coded.symbols: one byte per index, deflated with Huffman codes alone. A tensor with gaps stores only its non-zeros:
  the distance of each to the one before, then their indices; a distance beyond 255 is split by explicit zeros.
"""

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sqzoo.errors import WeightsError, why

LAYERS, VALUES, SYMBOLS = "coded.layers", "coded.values", "coded.symbols"
_LARGEST_GAP = 255
_LARGEST_INDEX = 1 << 20  # bytes of JSON: ours have a few thousand
CodedTensor = tuple[np.ndarray, np.ndarray]  # a tensor's indices, uint8 in its shape, and its values, float16


def encode(coded: Mapping[str, CodedTensor], others: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of coded weights; floating-point `others` are stored in half precision."""
    layers: list[Any] = []
    values: list[np.ndarray] = []
    symbols: list[np.ndarray] = []
    for name, (indices, codebook) in coded.items():
        flat = np.ascontiguousarray(indices, np.uint8).ravel()
        values.append(codebook.astype(np.float16))
        parts = pick_encoding(flat, values[-1])[0]
        layers.append([name, list(indices.shape), len(codebook), len(parts[0]) if len(parts) > 1 else None])
        symbols += parts
    index = zlib.compress(json.dumps(layers, separators=(",", ":")).encode(), 9)
    tensors = {k: t.half() if t.is_floating_point() else t for k, t in others.items()}
    return tensors | {
        LAYERS: torch.frombuffer(bytearray(index), dtype=torch.uint8),
        VALUES: torch.from_numpy(np.concatenate(values)),
        SYMBOLS: torch.frombuffer(bytearray(deflate(symbols)), dtype=torch.uint8),
    }


def pick_encoding(flat: np.ndarray, codebook: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Return the shorter encoding of a tensor's indices, [indices] or [gaps, indices], and its bytes."""
    zero = int(np.flatnonzero(codebook == 0)[0])
    encodings = [[flat], [*_gaps(flat, zero)]]
    sizes = [len(deflate(parts)) for parts in encodings]
    return encodings[sizes.index(min(sizes))], min(sizes)


def deflate(parts: list[np.ndarray]) -> bytes:
    """Compress uint8 arrays to one zlib stream of Huffman codes, with a code table per array."""
    stream = zlib.compressobj(9, memLevel=9, strategy=zlib.Z_HUFFMAN_ONLY)
    coded = [stream.compress(part.data) + stream.flush(zlib.Z_BLOCK) for part in parts]
    return b"".join([*coded, stream.flush()])


def _gaps(flat: np.ndarray, zero: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances between the indices other than `zero`, and those indices."""
    places = np.flatnonzero(flat != zero)
    distances = np.diff(places, prepend=-1)
    # A distance beyond 255 is split into steps of 255, each to an explicit zero.
    steps = (distances - 1) // _LARGEST_GAP
    gaps = np.full(len(places) + steps.sum(), _LARGEST_GAP, np.uint8)
    indices = np.full(len(gaps), zero, np.uint8)
    ends = np.cumsum(steps + 1) - 1
    gaps[ends] = distances - steps * _LARGEST_GAP
    indices[ends] = flat[places]
    return gaps, indices


def decode(tensors: Mapping[str, torch.Tensor], most: int, name: str) -> dict[str, torch.Tensor]:
    """Decode a file of coded weights to float32.

    Args:
        tensors: of the file.
        most: weights of all tensors together; nothing larger is allocated.
        name: of the file, for errors.

    Raises:
        WeightsError: the file is not one that `encode` makes.
    """
    try:
        rest = dict(tensors)
        index, values, symbols = (rest.pop(key).numpy() for key in (LAYERS, VALUES, SYMBOLS))
        layers = [_layer(*fields) for fields in json.loads(_inflate(index, _LARGEST_INDEX))]
        if len({key for key, *_ in layers} | rest.keys()) != len(layers) + len(rest):
            raise ValueError("it has a name twice")
        if sum(size for *_, size in layers) > most:
            raise ValueError(f"its weights are more than {most:,}")
        if values.dtype != np.float16 or len(values) != sum(levels for _, _, levels, *_ in layers):
            raise ValueError("its values are not as many as its layers say")
        counts = [size if gaps is None else 2 * gaps for *_, gaps, size in layers]
        total = sum(counts)
        stream = np.frombuffer(_inflate(symbols, total), np.uint8)
        if len(stream) != total:
            raise ValueError(f"{len(stream):,} symbols are not the {total:,} of its layers")
        decoded = {k: t.float() if t.is_floating_point() else t for k, t in rest.items()}
        for (key, shape, levels, gaps, size), count in zip(layers, counts, strict=True):
            codebook, values = values[:levels].astype(np.float32), values[levels:]
            part, stream = stream[:count], stream[count:]
            decoded[key] = torch.from_numpy(_weights(part, codebook, gaps, size).reshape(shape))
        return decoded
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, RuntimeError, zlib.error) as e:
        raise WeightsError(f"{name} is not an intact file of coded weights ({why(e)}); fetch it again.") from e


def _layer(key: str, shape: list[int], levels: int, gaps: int | None) -> tuple[str, list[int], int, int | None, int]:
    """Return a layer's fields and its number of weights; raise ValueError for impossible ones."""
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in (*shape, levels, gaps or 0)):
        raise ValueError("a size is not a whole number")
    size = math.prod(shape[:9])
    if not isinstance(key, str) or not 1 <= levels <= 256 or (gaps or 0) > size or len(shape) > 8:
        raise ValueError(f"{key!r} has {levels} values and {gaps} of {size} weights")
    return key, shape, levels, gaps, size


def _inflate(data: np.ndarray, most: int) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(data.tobytes(), most + 1)
    if len(content) > most or not stream.eof or stream.unused_data:
        raise ValueError("a compressed part is too long or too short")
    return content


def _weights(symbols: np.ndarray, codebook: np.ndarray, gaps: int | None, size: int) -> np.ndarray:
    indices = symbols[gaps or 0 :]
    if len(indices) and indices.max() >= len(codebook):
        raise ValueError("an index is beyond its codebook")
    if gaps is None:
        return codebook[indices]
    places = np.cumsum(symbols[:gaps], dtype=np.int64) - 1
    if gaps and (places[0] < 0 or places[-1] >= size):
        raise ValueError("a weight lies outside its tensor")
    weights = np.zeros(size, np.float32)
    weights[places] = codebook[indices]
    return weights
