"""Read float32 tensors from torch's zip format, the `.pth` files of torchvision, without unpickling.

The archive (https://docs.pytorch.org/docs/stable/notes/serialization.html) has a pickle of a fixed shape, data.pkl,
that names each tensor, its shape and the entry with its values; entries are stored uncompressed.
"""

import math
import os
import struct
from collections.abc import Callable
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch

from sqzoo.weights.opcodes import Call, expect, interpret

_END = 22  # bytes of a zip archive's last record
_DIRECTORY_LARGEST = 1 << 17  # bytes: SqueezeNet's 56 entries take 5,000; zipfile itself sets no limit
_PICKLE_LARGEST = 1 << 20  # bytes
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_DAMAGE = (
    *(BadZipFile, EOFError, OSError, RuntimeError),  # zipfile's
    *(LookupError, TypeError, AttributeError, OverflowError, struct.error),  # of a pickle that is not a state dict's
)
_DICTIONARY, _STORAGE = "collections OrderedDict", "torch FloatStorage"
_NAMES = {_TENSOR, _PARAMETER, _DICTIONARY, _STORAGE}


def read_torch_zip(stream: BinaryIO, select: Callable[[str], bool], max_bytes: int) -> dict[str, torch.Tensor]:
    """Read the selected tensors of a state dict, and only their bytes.

    Args:
        stream: the file.
        select: whether to read a tensor, by its name.
        max_bytes: of all selected tensors together.

    Raises:
        ValueError: the file is damaged, or holds anything but a flat dictionary of float32 tensors.
    """
    try:
        stream.seek(-_END, os.SEEK_END)
        end = stream.read(_END)
        if end[:4] != b"PK\5\6" or int.from_bytes(end[12:16], "little") > _DIRECTORY_LARGEST:
            raise ValueError("it does not end with the directory of a zip archive, or one too large")
        archive = ZipFile(stream)
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError("an entry is listed twice")
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and _read(archive, f"{folder}byteorder", 0, 6) != b"little":
            raise ValueError("it is not little-endian")
        size = archive.getinfo(pickled).file_size
        if size > _PICKLE_LARGEST:
            raise ValueError(f"its data.pkl has {size:,} bytes, at most {_PICKLE_LARGEST:,} are read")
        content = _read(archive, pickled, 0, size)
        state = interpret(content, _NAMES, max_opcodes=10_000)  # of SqueezeNet it has 2,270 opcodes
        is_ordered = type(state) is Call and state.name == _DICTIONARY
        tensors = {}
        for key, value in (state.items if is_ordered else expect(state, dict)).items():
            name = key.decode()
            stored, start, shape = _parse_tensor(value)
            if select(name):
                count = math.prod(shape)
                max_bytes -= 4 * count
                if max_bytes < 0:
                    raise ValueError("its tensors are larger than is read")
                data = bytearray(_read(archive, f"{folder}data/{stored}", 4 * start, 4 * count))
                tensors[name] = torch.frombuffer(data, dtype=torch.float32).reshape(shape)
        return tensors
    except _DAMAGE as e:
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


def _read(archive: ZipFile, name: str, start: int, count: int) -> bytes:
    """Return `count` bytes of an entry; a read of the whole entry is checked against its CRC-32."""
    info = archive.getinfo(name)
    if info.compress_type != ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError("an entry is compressed")
    with archive.open(name) as entry:
        entry.seek(start)
        data = entry.read(count)
        if len(data) != count:
            raise ValueError("an entry is cut off")
        return data
