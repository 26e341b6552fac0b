"""Read torchvision's `cifar-10-batches-py` without unpickling: interpret its few opcodes as plain data.

The published batches are pickles of protocol 2: a dictionary with an array of bytes and a list of labels. No name is
looked up and nothing is called; the array is made from its bytes.
"""

import struct
from pickletools import genops
from typing import Any

import numpy as np

LARGEST = 1 << 26  # bytes of a batch: the published ones have 31 million
_PIXELS = 3072
_ARRAY = tuple(f"numpy{core}.multiarray _reconstruct" for core in (".core", "._core"))
_NAMES = {*_ARRAY, "numpy ndarray", "numpy dtype"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_MARK = object()


class _Call(list[Any]):
    """A call that the pickle asks for and that is not made: [name, arguments, state]."""


def read_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of a batch file.

    Args:
        data: the file's bytes.

    Returns:
        Images (N, 32, 32, 3) uint8 and labels (N,) int64.

    Raises:
        ValueError: the bytes are not those of such a file.
    """
    try:
        batch = _interpret(data)
        array, labels = batch[b"data"], batch[b"labels"]
        version, shape, dtype, fortran, pixels = array[2]
        if array[0] not in _ARRAY or version != 1 or fortran is not False or type(dtype) is not _Call:
            raise ValueError("its data are no array")
        if dtype[0] != "numpy dtype" or dtype[1][0] not in (b"u1", b"|u1") or shape[1:] != (_PIXELS,):
            raise ValueError(f"its data are no bytes in rows of {_PIXELS}")
        if type(labels) is not list or not all(type(label) is int for label in labels):
            raise ValueError("its labels are no numbers")
        images = np.frombuffer(_expect(pixels, bytes), np.uint8).reshape(shape[0], 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.array(labels, np.int64)
    except (LookupError, TypeError, OverflowError, AttributeError, RecursionError, struct.error, UnicodeError) as e:
        raise ValueError(f"its content is not that of a batch: {type(e).__name__}") from e


def _interpret(data: bytes) -> Any:
    """Return what the opcodes build: dictionaries, lists, tuples, numbers, bytes, and `_Call` for everything else."""
    if data[:2] not in (b"\x80\x02", b"\x80\x03"):
        raise ValueError("it is no batch of protocol 2 or 3")
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    arg: Any

    def pop_mark() -> list[Any]:
        at = next((i for i in reversed(range(len(stack))) if stack[i] is _MARK), None)
        if at is None:
            raise ValueError("a mark is missing")
        values = stack[at + 1 :]
        del stack[at:]
        return values

    for opcode, arg, _ in genops(data):
        name = opcode.name
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("BININT", "BININT1", "BININT2", "BINBYTES", "SHORT_BINBYTES"):
            stack.append(arg)
        elif name in ("BINSTRING", "SHORT_BINSTRING", "BINUNICODE"):
            stack.append(arg.encode("latin-1"))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(pop_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            values = pop_mark() if name == "APPENDS" else [stack.pop()]
            _expect(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = pop_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            # Only bytes as keys: hashing a million nested tuples would crash the process.
            keys = [_expect(key, bytes) for key in values[::2]]
            _expect(stack[-1], dict).update(zip(keys, values[1::2], strict=True))
        elif name == "GLOBAL":
            if arg not in _NAMES:
                raise ValueError(f"it asks for {arg.replace(' ', '.')}, which is no array")
            stack.append(arg)
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_Call([_expect(stack.pop(), str), arguments, None]))
        elif name == "BUILD":
            state = stack.pop()
            _expect(stack[-1], _Call)[2] = state
        elif name == "STOP":
            break
        elif name != "PROTO":
            raise ValueError(f"it has the opcode {name}, which is no array's")
    return stack.pop()


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError("its content is not that of a batch")
    return value
