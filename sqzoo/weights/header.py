"""Check a safetensors header before any tensor is created: it must declare what the model has."""

import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from sqzoo.errors import WeightsError, printable
from sqzoo.weights.untrusted import parse_json

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LONGEST = 1 << 18  # bytes of header: ours have a few thousand
_DIMENSIONS = 8  # ours have four at most; a product of a hundred thousand sizes would take minutes


def read_tensors(data: bytes, name: str, own: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file after checking its header.

    Args:
        data: the file's bytes.
        name: of the file, for errors.
        own: a state dict, on meta, say, that the header must match.

    Raises:
        WeightsError: the file is damaged, does not match, or has NaN or infinity.
    """
    declared = parse_header(data, name)
    if own is not None:
        check_matches(declared, own, name)
    try:
        tensors = load(data)
    except SafetensorError as e:  # it is stricter in places, such as the metadata
        raise _damaged(name, e) from e
    if odd := [k for k, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]:
        raise WeightsError(
            f"{name} has NaN or infinity in {printable(odd[0])}, as a failed training leaves it; give other weights."
        )
    return tensors


def read_selected(
    stream: BinaryIO, name: str, select: Callable[[str], bool], max_bytes: int
) -> dict[str, torch.Tensor]:
    """Read the selected tensors of a safetensors file, and only their bytes.

    Args:
        stream: the file.
        name: of the file, for errors.
        select: whether to read a tensor, by its name.
        max_bytes: of all selected tensors together.

    Raises:
        WeightsError: the file is damaged, or the tensors are larger.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(8 + LONGEST)
    offset, tensors = 8 + int.from_bytes(head[:8], "little"), {}
    for key, tensor in parse_header(head, name, size).items():
        if select(key):
            max_bytes -= tensor.nbytes
            if max_bytes < 0:
                raise _damaged(name, ValueError("its tensors are larger than is read"))
            stream.seek(offset)
            data = bytearray(stream.read(tensor.nbytes))
            if len(data) != tensor.nbytes:
                raise _damaged(name, ValueError("it is cut off"))
            flat = torch.frombuffer(data, dtype=tensor.dtype) if data else torch.empty(0, dtype=tensor.dtype)
            tensors[key] = flat.reshape(tensor.shape)
        offset += tensor.nbytes
    return tensors


def parse_header(data: bytes, name: str, size: int | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors that a safetensors file declares, on the meta device, in the order of their bytes.

    Args:
        data: the file's bytes; with `size`, its beginning is enough.
        name: of the file, for errors.
        size: of the file, in bytes.

    Raises:
        WeightsError: the header is malformed, or its tensors do not cover the rest of the file exactly.
    """
    size = len(data) if size is None else size
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > min(LONGEST, len(data) - 8):
            raise ValueError("its first 8 bytes are not the length of a header")
        header: dict[str, Any] = parse_json(data[8 : 8 + length])
        header.pop("__metadata__", None)
        spans = sorted((*_span(entry), key) for key, entry in header.items())
        end = 0
        for start, stop, key in spans:
            if start != end:
                raise ValueError(f"{key} begins at byte {start}, not {end}")
            end = stop
        if end != size - 8 - length:
            raise ValueError(f"its tensors take {end} bytes, {size - 8 - length} follow the header")
        entries = ((key, header[key]) for *_, key in spans)
        return {k: torch.empty(e["shape"], dtype=_DTYPES[e["dtype"]], device="meta") for k, e in entries}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as e:
        raise _damaged(name, e) from e


def _damaged(name: str, e: Exception) -> WeightsError:
    return WeightsError(f"{name} is not an intact safetensors file ({printable(e)}); fetch it again.")


def _span(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return a tensor's first and last offset, if its shape and dtype take as many bytes."""
    if set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"a tensor has the fields {sorted(entry)}")
    start, stop = entry["data_offsets"]
    if len(entry["shape"]) > _DIMENSIONS:
        raise ValueError(f"a tensor has {len(entry['shape'])} dimensions")
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in (start, stop, *entry["shape"])):
        raise ValueError("a size is not a whole number")
    size = _DTYPES[entry["dtype"]].itemsize
    for n in entry["shape"]:
        size *= n
    if stop - start != size:
        raise ValueError(f"a tensor of shape {entry['shape']} has {stop - start} bytes, not {size}")
    return start, stop


def check_matches(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise `WeightsError` unless two state dicts have the same names, shapes and kinds of dtype."""
    missing, extra = [k for k in own if k not in state], sorted(state.keys() - own.keys())
    if missing or extra:
        raise WeightsError(
            f"{name} does not fit the model: missing tensors: {_some(missing)}; unexpected tensors: {_some(extra)}; "
            "use the arguments that the weights were trained with, or pretrained=False."
        )
    for key, tensor in own.items():
        if state[key].shape != tensor.shape or state[key].is_floating_point() != tensor.is_floating_point():
            raise WeightsError(
                f"{name} does not fit the model: {printable(key)} is {list(state[key].shape)} {state[key].dtype} in "
                f"the file, {list(tensor.shape)} {tensor.dtype} in the model; use the arguments that the weights were "
                "trained with, or pretrained=False."
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(map(printable, names[:3])) or "none") + more
