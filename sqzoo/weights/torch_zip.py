"""Read float32 tensors from torch's zip format, the `.pth` files of torchvision, without a pickle machine.

The archive (https://docs.pytorch.org/docs/stable/notes/serialization.html) has a pickle of a fixed shape, data.pkl,
that names each tensor, its shape and the entry with its values; entries are stored uncompressed.
"""

import math
import os
import struct
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import torch

from sqzoo.opcodes import Made, follow, plain

_DIRECTORY_LARGEST = 1 << 17  # bytes: SqueezeNet's 56 entries take 5,000
_PICKLE_LARGEST = 1 << 20
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_DICTIONARY, _STORAGE = "collections OrderedDict", "torch FloatStorage"
_NAMES = {_TENSOR, _PARAMETER, _DICTIONARY, _STORAGE}
_END, _ENTRY, _LOCAL = struct.Struct("<4s4H2IH"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")


class _Entry(NamedTuple):
    """A file in the archive: its checksum, its size in bytes, and where its local header begins."""

    crc: int
    size: int
    place: int


def read_torch_zip(stream: BinaryIO, wanted: Callable[[str], bool], most: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict in a file, those whose names are `wanted`; only their bytes are read.

    Args:
        stream: the file.
        wanted: says of a tensor's name whether to read it.
        most: bytes that the wanted tensors may take together.

    Raises:
        ValueError: the file holds anything but a flat dictionary of float32 tensors, or is damaged.
    """
    try:
        entries = _entries(stream)
        (pickled,) = (name for name in entries if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in entries and _read(stream, entries[f"{folder}byteorder"], 0, 6) != b"little":
            raise ValueError("its numbers are not little-endian")
        size = entries[pickled].size
        if size > _PICKLE_LARGEST:
            raise ValueError(f"its data.pkl has {size:,} bytes, at most {_PICKLE_LARGEST:,} are read")
        state = follow(_read(stream, entries[pickled], 0, size), _NAMES)
        ordered = type(state) is Made and state.name == _DICTIONARY
        tensors = {}
        for key, value in (state.items if ordered else plain(state, dict)).items():
            name = key.decode()
            stored, start, shape = _described(value)
            if wanted(name):
                count = math.prod(shape)
                most -= 4 * count
                if most < 0:
                    raise ValueError("its tensors are larger than is read")
                data = bytearray(_read(stream, entries[f"{folder}data/{stored}"], 4 * start, 4 * count))
                tensors[name] = torch.frombuffer(data, dtype=torch.float32).reshape(shape)
        return tensors
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError, struct.error, UnicodeError) as e:
        raise ValueError(f"its content is not that of a state dict: {type(e).__name__}") from e


def _described(value: Any) -> tuple[str, int, list[int]]:
    """Return the entry of a contiguous float32 tensor, its first element there, and its shape."""
    if plain(value, Made).name == _PARAMETER:
        value = plain(value.arguments[0], Made)
    storage, start, shape, strides, *_ = value.arguments
    kind, dtype, key, _, _ = plain(storage, Made).arguments
    if value.name != _TENSOR or storage.name != "persistent" or kind != b"storage" or dtype != _STORAGE:
        raise ValueError("it holds something else than float32 tensors")
    if not all(type(n) is int and 0 <= n < 1 << 31 for n in (start, *shape)) or len(shape) > 8 or 0 in shape:
        raise ValueError("the shape of a tensor is none")
    if list(strides) != [math.prod(shape[i + 1 :]) for i in range(len(shape))]:
        raise ValueError("a tensor is not contiguous")
    return key.decode("ascii"), start, list(shape)


def _entries(stream: BinaryIO) -> dict[str, _Entry]:
    """Return what a zip archive holds, by name; its directory is at the end of the file."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _END.size))
    mark, _, _, _, count, length, place, _ = _END.unpack(stream.read(_END.size))
    if mark != b"PK\5\6" or length > _DIRECTORY_LARGEST:
        raise ValueError("it does not end with the directory of a zip archive")
    stream.seek(place)
    data, at, entries = stream.read(length), 0, {}
    for _ in range(count):
        mark, _, _, _, method, _, _, crc, stored, unpacked, *lengths, _, _, _, place = _ENTRY.unpack_from(data, at)
        begin = at + _ENTRY.size
        name = data[begin : begin + lengths[0]].decode()
        at = begin + sum(lengths)
        if mark != b"PK\1\2" or method or stored != unpacked or name in entries:
            raise ValueError("an entry is compressed, or stands twice")
        entries[name] = _Entry(crc, stored, place)
    return entries


def _read(stream: BinaryIO, entry: _Entry, start: int, count: int) -> bytes:
    """Return so many bytes of an entry; all of them are compared with its checksum."""
    stream.seek(entry.place)
    mark, *_, name, extra = _LOCAL.unpack(stream.read(_LOCAL.size))
    stream.seek(name + extra + start, os.SEEK_CUR)
    data = stream.read(count) if start + count <= entry.size else b""
    if mark != b"PK\3\4" or len(data) != count or (count == entry.size and zlib.crc32(data) != entry.crc):
        raise ValueError("an entry is damaged")
    return data
