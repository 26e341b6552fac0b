"""Read float32 tensors from torch's zip format, the `.pth` files of torchvision, without unpickling.

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

from sqzoo.weights.opcodes import Call, expect, interpret

_DIRECTORY_LARGEST = 1 << 17  # bytes: SqueezeNet's 56 entries take 5,000
_PICKLE_LARGEST = 1 << 20
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_DICTIONARY, _STORAGE = "collections OrderedDict", "torch FloatStorage"
_NAMES = {_TENSOR, _PARAMETER, _DICTIONARY, _STORAGE}
_END, _ENTRY, _LOCAL = struct.Struct("<4s4H2IH"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")


class _Entry(NamedTuple):
    """A file in the archive: CRC-32, size in bytes, offset of its local header."""

    crc: int
    size: int
    offset: int


def read_torch_zip(stream: BinaryIO, wanted: Callable[[str], bool], most: int) -> dict[str, torch.Tensor]:
    """Read the wanted tensors of a state dict, and only their bytes.

    Args:
        stream: the file.
        wanted: whether to read a tensor, by its name.
        most: bytes of all wanted tensors together.

    Raises:
        ValueError: the file is damaged, or holds anything but a flat dictionary of float32 tensors.
    """
    try:
        entries = _entries(stream)
        (pickled,) = (name for name in entries if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in entries and _read(stream, entries[f"{folder}byteorder"], 0, 6) != b"little":
            raise ValueError("it is not little-endian")
        size = entries[pickled].size
        if size > _PICKLE_LARGEST:
            raise ValueError(f"its data.pkl has {size:,} bytes, at most {_PICKLE_LARGEST:,} are read")
        content = _read(stream, entries[pickled], 0, size)
        state = interpret(content, _NAMES, most=10_000)  # of SqueezeNet it has 2,270 opcodes
        is_ordered = type(state) is Call and state.name == _DICTIONARY
        tensors = {}
        for key, value in (state.items if is_ordered else expect(state, dict)).items():
            name = key.decode()
            stored, start, shape = _parse_tensor(value)
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


def _parse_tensor(value: Any) -> tuple[str, int, list[int]]:
    """Return the storage entry, the offset in it, and the shape of a contiguous float32 tensor."""
    if expect(value, Call).name == _PARAMETER:
        value = expect(value.arguments[0], Call)
    storage, start, shape, strides, *_ = value.arguments
    kind, dtype, key, _, _ = expect(storage, Call).arguments
    if value.name != _TENSOR or storage.name != "persistent" or kind != b"storage" or dtype != _STORAGE:
        raise ValueError("it holds something other than float32 tensors")
    if not all(type(n) is int and 0 <= n < 1 << 31 for n in (start, *shape)) or len(shape) > 8 or 0 in shape:
        raise ValueError("the shape of a tensor is impossible")
    if list(strides) != [math.prod(shape[i + 1 :]) for i in range(len(shape))]:
        raise ValueError("a tensor is not contiguous")
    return key.decode("ascii"), start, list(shape)


def _entries(stream: BinaryIO) -> dict[str, _Entry]:
    """Parse the directory of a zip archive, at the end of the file: entries by name."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _END.size))
    mark, _, _, _, count, length, offset, _ = _END.unpack(stream.read(_END.size))
    if mark != b"PK\5\6" or length > _DIRECTORY_LARGEST:
        raise ValueError("it does not end with the directory of a zip archive")
    stream.seek(offset)
    data, at, entries = stream.read(length), 0, {}
    for _ in range(count):
        mark, _, _, _, method, _, _, crc, stored, unpacked, *lengths, _, _, _, offset = _ENTRY.unpack_from(data, at)
        begin = at + _ENTRY.size
        name = data[begin : begin + lengths[0]].decode()
        at = begin + sum(lengths)
        if mark != b"PK\1\2" or method or stored != unpacked or name in entries:
            raise ValueError("an entry is compressed, or listed twice")
        entries[name] = _Entry(crc, stored, offset)
    return entries


def _read(stream: BinaryIO, entry: _Entry, start: int, count: int) -> bytes:
    """Return `count` bytes of an entry; a read of the whole entry is checked against its CRC-32."""
    stream.seek(entry.offset)
    mark, *_, name, extra = _LOCAL.unpack(stream.read(_LOCAL.size))
    stream.seek(name + extra + start, os.SEEK_CUR)
    data = stream.read(count) if start + count <= entry.size else b""
    if mark != b"PK\3\4" or len(data) != count or (count == entry.size and zlib.crc32(data) != entry.crc):
        raise ValueError("an entry is damaged")
    return data
