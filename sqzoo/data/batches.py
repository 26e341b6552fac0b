"""Read torchvision's `cifar-10-batches-py` without a pickle machine: its fixed bytes, and nothing else.

The published batches are pickles of protocol 2: a dictionary with an array of bytes and a list of labels. Here the few
opcodes that such a file consists of are followed as marks on a stack of plain values; no name is looked up, nothing is
called, and the array is made from its bytes alone.
"""

import struct
from typing import Any

import numpy as np

LARGEST = 1 << 26  # bytes of a batch: the published ones have 31 million
_PIXELS = 3072
_ARRAY = tuple(f"numpy{core}.multiarray _reconstruct" for core in (".core", "._core"))
_NAMES = {*_ARRAY, "numpy ndarray", "numpy dtype"}
_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False}
_NUMBERS = {ord("K"): "<B", ord("M"): "<H", ord("J"): "<i"}
_TEXTS = {ord("U"): "<B", ord("T"): "<i", ord("C"): "<B", ord("B"): "<I", ord("X"): "<I"}  # by the length's format
_MEMOS = {ord("q"): "<B", ord("r"): "<I", ord("h"): "<B", ord("j"): "<I"}
_MARK = object()


class _Made(list[Any]):
    """What the file says is made by calling a name: [name, arguments, state]; nothing is called."""


def read_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, 32, 32, 3) uint8 and labels (N,) int64 of a batch file's bytes.

    Raises:
        ValueError: where the bytes are not those of such a file.
    """
    try:
        batch = _follow(data)
        made, labels = batch[b"data"], batch[b"labels"]
        (kind, shape, dtype, fortran, pixels) = made[2]
        if made[0] not in _ARRAY or kind != 1 or fortran is not False or type(dtype) is not _Made:
            raise ValueError("its data are no array")
        if dtype[0] != "numpy dtype" or dtype[1][0] not in (b"u1", b"|u1") or shape[1:] != (_PIXELS,):
            raise ValueError(f"its data are no bytes in rows of {_PIXELS}")
        if not all(type(label) is int for label in labels) or type(labels) is not list:
            raise ValueError("its labels are no numbers")
        images = np.frombuffer(_plain(pixels, bytes), np.uint8).reshape(shape[0], 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.array(labels, np.int64)
    except (LookupError, TypeError, OverflowError, AttributeError, RecursionError, struct.error, UnicodeError) as e:
        raise ValueError(f"its content is not that of a batch: {type(e).__name__}") from e


def _follow(data: bytes) -> Any:
    """Return what the opcodes make: dictionaries, lists, tuples, numbers, bytes, and `_Made` for all else."""
    if data[:2] not in (b"\x80\x02", b"\x80\x03"):
        raise ValueError("it is no batch of protocol 2 or 3")
    place, stack, memo = 2, [], {}  # type: ignore[var-annotated]

    def number(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(form, data, place)
        place += struct.calcsize(form)
        return value

    def taken(count: int) -> bytes:
        nonlocal place
        if not 0 <= count <= len(data) - place:
            raise ValueError("it is cut off")
        place += count
        return data[place - count : place]

    def since_mark() -> list[Any]:
        at = len(stack) - 1
        while at >= 0 and stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise ValueError("a mark is missing")
        values = stack[at + 1 :]
        del stack[at:]
        return values

    while True:
        op = taken(1)[0]
        if op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in _NUMBERS:
            stack.append(number(_NUMBERS[op]))
        elif op in _TEXTS:
            stack.append(taken(number(_TEXTS[op])))
        elif op in b"qr":
            memo[number(_MEMOS[op])] = stack[-1]
        elif op in b"hj":
            stack.append(memo[number(_MEMOS[op])])
        elif op == ord("("):
            stack.append(_MARK)
        elif op in b"}])":
            stack.append({ord("}"): dict, ord("]"): list, ord(")"): tuple}[op]())
        elif op == ord("t"):
            stack.append(tuple(since_mark()))
        elif op in b"\x85\x86\x87":
            count = op - 0x84
            stack[-count:] = [tuple(stack[-count:])]
        elif op in b"ea":
            values = since_mark() if op == ord("e") else [stack.pop()]
            _plain(stack[-1], list).extend(values)
        elif op in b"us":
            values = since_mark() if op == ord("u") else [stack.pop(-2), stack.pop()]
            # Keys of bytes alone: to hash a tuple of a million tuples in each other would end the process.
            keys = [_plain(key, bytes) for key in values[::2]]
            _plain(stack[-1], dict).update(zip(keys, values[1::2], strict=True))
        elif op == ord("c"):
            end = data.index(b"\n", data.index(b"\n", place) + 1)
            name = taken(end - place).decode("ascii").replace("\n", " ")
            taken(1)
            if name not in _NAMES:
                raise ValueError(f"it asks for {name.replace(' ', '.')}, which is no array")
            stack.append(name)
        elif op == ord("R"):
            arguments = stack.pop()
            stack.append(_Made([_plain(stack.pop(), str), arguments, None]))
        elif op == ord("b"):
            state = stack.pop()
            _plain(stack[-1], _Made)[2] = state
        elif op == ord("."):
            return stack.pop()
        else:
            raise ValueError(f"it has the opcode {op}, which is no array's")


def _plain(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError("its content is not that of a batch")
    return value
