"""Follow the opcodes of a pickle that holds plain values, without a pickle machine: no name is looked up or called.

Two fixed formats are such pickles: CIFAR-10's batches (`sqzoo.data.batches`) and torch's files of tensors
(`sqzoo.weights.torch_zip`). What a file says is to be made by calling a name comes back as a `Made`, for the reader to
compare with what it expects.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

_MOST = 35_000  # opcodes, which take some 30 ms: a batch of CIFAR-10 has 30,100
_LONGEST = 64  # characters of a name
_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False}
_NUMBERS = {ord("K"): "<B", ord("M"): "<H", ord("J"): "<i"}
_TEXTS = {ord("U"): "<B", ord("T"): "<i", ord("C"): "<B", ord("B"): "<I", ord("X"): "<I"}  # by the length's format
_MEMOS = {ord("q"): "<B", ord("r"): "<I", ord("h"): "<B", ord("j"): "<I"}
_MARK = object()


@dataclass(eq=False)
class Made:
    """What a file says is made by calling a name: with these arguments, then given items and a state."""

    name: str
    arguments: Any
    items: dict[bytes, Any] = field(default_factory=dict)
    state: Any = None


def follow(data: bytes, names: set[str]) -> Any:
    """Return what a pickle of protocol 2 or 3 makes: dictionaries, lists, tuples, numbers, bytes (texts, too), `Made`.

    names: "module name" of all that the file may ask for; a persistent id becomes `Made("persistent", id)`.

    Raises:
        ValueError: the file asks for more, or is damaged; so may other errors of Python's.
    """
    if data[:2] not in (b"\x80\x02", b"\x80\x03"):
        raise ValueError("it is not of protocol 2 or 3")
    place = 2
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def number(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(form, data, place)
        place += struct.calcsize(form)
        return int(value)

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

    for _ in range(_MOST):
        op = taken(1)[0]
        if op in _NUMBERS:
            stack.append(number(_NUMBERS[op]))
        elif op in _TEXTS:
            stack.append(taken(number(_TEXTS[op])))
        elif op in b"qr":
            memo[number(_MEMOS[op])] = stack[-1]
        elif op in b"hj":
            stack.append(memo[number(_MEMOS[op])])
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op == ord("("):
            stack.append(_MARK)
        elif op == ord("}"):
            stack.append({})
        elif op == ord("]"):
            stack.append([])
        elif op == ord(")"):
            stack.append(())
        elif op == ord("t"):
            stack.append(tuple(since_mark()))
        elif op == 0x85:
            stack[-1] = (stack[-1],)
        elif op in b"\x86\x87":
            count = op - 0x84
            stack[-count:] = [tuple(stack[-count:])]
        elif op in b"ea":
            values = since_mark() if op == ord("e") else [stack.pop()]
            plain(stack[-1], list).extend(values)
        elif op in b"us":
            values = since_mark() if op == ord("u") else [stack.pop(-2), stack.pop()]
            # Keys of bytes alone: to hash a tuple of a million tuples in each other would end the process.
            keys = [plain(key, bytes) for key in values[::2]]
            target = stack[-1].items if type(stack[-1]) is Made else plain(stack[-1], dict)
            target.update(zip(keys, values[1::2], strict=True))
        elif op == ord("c"):
            module, name = data[place : place + _LONGEST].split(b"\n")[:2]
            place += len(module) + len(name) + 2
            stack.append(f"{module.decode('ascii')} {name.decode('ascii')}")
            if stack[-1] not in names:
                raise ValueError(f"it asks for {stack[-1].replace(' ', '.')}, which is none of its names, or once more")
            names = names - {stack[-1]}  # writers take it from the memo from then on
        elif op == ord("Q"):
            stack.append(Made("persistent", stack.pop()))
        elif op == ord("R"):
            arguments = stack.pop()
            stack.append(Made(plain(stack.pop(), str), arguments))
        elif op == ord("b"):
            state = stack.pop()
            plain(stack[-1], Made).state = state
        elif op == ord("."):
            return stack.pop()
        else:
            raise ValueError(f"it has the opcode {op}, which is none of its opcodes")
    raise ValueError(f"it has more than {_MOST:,} opcodes")


def plain(value: Any, kind: type) -> Any:
    """Return the value if it is of exactly that type; raise ValueError else."""
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} stands in it for a {kind.__name__}")
    return value
