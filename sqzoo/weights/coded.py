"""Coded weights: shared values and entropy-coded indices in a safetensors file, decoded exactly as it loads.

Each coded tensor has a codebook of at most 256 float16 values, zero among them, and an index into it for every weight
(weight sharing; Han, Mao and Dally, "Deep Compression", 2016). The file holds three tensors for all of them, and the
others, biases, under their own names:

- coded.layers: JSON, deflated: [name, shape, number of values, number of gaps or null] of each coded tensor, in order;
- coded.values: the codebooks, one after another;
- coded.symbols: one byte an index, deflated with Huffman codes alone. A tensor with gaps keeps only its weights other
  than zero: the distance of each to the one before, then their indices; a distance beyond 255 goes by way of a zero.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sqzoo.errors import WeightsError

LAYERS, VALUES, SYMBOLS = "coded.layers", "coded.values", "coded.symbols"
_LARGEST_GAP = 255
_LARGEST_INDEX = 1 << 20  # bytes of JSON: ours have a few thousand
CodedTensor = tuple[np.ndarray, np.ndarray]  # a tensor's indices, uint8 in its shape, and its values, float16


def encode(coded: Mapping[str, CodedTensor], others: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file; `others` are kept as they are, floating ones in half precision."""
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
    """Return what a tensor's indices are stored as, alone or as gaps and indices, and its bytes once coded."""
    zero = int(np.flatnonzero(codebook == 0)[0])
    forms = [[flat], [*_gaps(flat, zero)]]
    taken = [len(deflate(parts)) for parts in forms]
    return forms[taken.index(min(taken))], min(taken)


def deflate(parts: list[np.ndarray]) -> bytes:
    """Return uint8 arrays as one zlib stream of Huffman codes, with codes of its own for each."""
    stream = zlib.compressobj(9, memLevel=9, strategy=zlib.Z_HUFFMAN_ONLY)
    coded = [stream.compress(part.data) + stream.flush(zlib.Z_BLOCK) for part in parts]
    return b"".join([*coded, stream.flush()])


def _gaps(flat: np.ndarray, zero: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances between the indices other than `zero`, and those indices."""
    places = np.flatnonzero(flat != zero)
    distances = np.diff(places, prepend=-1)
    # Each step of 255 that is skipped lands on a zero, which is written as such.
    steps = (distances - 1) // _LARGEST_GAP
    gaps = np.full(len(places) + steps.sum(), _LARGEST_GAP, np.uint8)
    kept = np.full(len(gaps), zero, np.uint8)
    ends = np.cumsum(steps + 1) - 1
    gaps[ends] = distances - steps * _LARGEST_GAP
    kept[ends] = flat[places]
    return gaps, kept


def decode(tensors: Mapping[str, torch.Tensor], most: int, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors that a coded file stands for, in float32.

    tensors: those of the file. most: how many weights they may have together; nothing larger is allocated. Raises
    `WeightsError` where the file is not what `encode` makes.
    """
    try:
        rest = dict(tensors)
        index, values, symbols = (rest.pop(key).numpy() for key in (LAYERS, VALUES, SYMBOLS))
        layers = [_layer(*fields) for fields in json.loads(_inflate(index, _LARGEST_INDEX))]
        if len({key for key, *_ in layers} | rest.keys()) != len(layers) + len(rest):
            raise ValueError("a name stands in it twice")
        if sum(size for *_, size in layers) > most:
            raise ValueError(f"its weights are more than {most:,}")
        if values.dtype != np.float16 or len(values) != sum(levels for _, _, levels, *_ in layers):
            raise ValueError("its values are not as many as its layers say")
        counts = [size if gaps is None else 2 * gaps for *_, gaps, size in layers]
        wanted = sum(counts)
        found = np.frombuffer(_inflate(symbols, wanted), np.uint8)
        if len(found) != wanted:
            raise ValueError(f"{len(found):,} symbols are not the {wanted:,} of its layers")
        decoded = {k: t.float() if t.is_floating_point() else t for k, t in rest.items()}
        for (key, shape, levels, gaps, size), count in zip(layers, counts, strict=True):
            codebook, values = values[:levels].astype(np.float32), values[levels:]
            part, found = found[:count], found[count:]
            decoded[key] = torch.from_numpy(_weights(part, codebook, gaps, size).reshape(shape))
        return decoded
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, RuntimeError, zlib.error) as e:
        reason = " ".join(str(e).split())[:200]
        raise WeightsError(f"{name} is not an undamaged file of coded weights ({reason}); fetch it again.") from e


def _layer(key: str, shape: list[int], levels: int, gaps: int | None) -> tuple[str, list[int], int, int | None, int]:
    """Return the fields of a layer and its number of weights, if they can be those of a layer."""
    size = 1
    for n in (*shape, levels, gaps or 0):
        if type(n) is not int or not 0 <= n < 1 << 40:
            raise ValueError("a size is no whole number")
    for n in shape:
        size *= n
    if not isinstance(key, str) or not 1 <= levels <= 256 or (gaps or 0) > size or len(shape) > 8:
        raise ValueError(f"{key!r} has {levels} values and {gaps} of {size} weights")
    return key, shape, levels, gaps, size


def _inflate(data: np.ndarray, most: int) -> bytes:
    stream = zlib.decompressobj()
    found = stream.decompress(data.tobytes(), most + 1)
    if len(found) > most or not stream.eof or stream.unused_data:
        raise ValueError("its compressed part ends too late or too soon")
    return found


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
