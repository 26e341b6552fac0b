"""Interpret pickles that hold plain data without unpickling them: no name is looked up and nothing is called.

Two formats are such pickles: CIFAR-10's batches (`sqzoo.data.batches`) and torch's files of tensors
(`sqzoo.weights.torch_zip`). A call that the file asks for becomes a `Call`, which the reader compares with what it
expects.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

MAX_OPCODES = 31_000  # opcodes, which take some 30 ms: a batch of CIFAR-10 has 30,100
_MAX_NAME = 64  # characters of a name
_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False}
_NUMBERS = {ord("K"): "<B", ord("M"): "<H", ord("J"): "<i"}
_TEXTS = {ord("U"): "<B", ord("T"): "<i", ord("C"): "<B", ord("B"): "<I", ord("X"): "<I"}  # by the length's format
_MEMOS = {ord("q"): "<B", ord("r"): "<I", ord("h"): "<B", ord("j"): "<I"}
_MARK = object()


@dataclass(eq=False)
class Call:
    """A call that the file asks for, with the items and the state that its result is given."""

    name: str
    arguments: Any
    items: dict[bytes, Any] = field(default_factory=dict)
    state: Any = None


def interpret(data: bytes, names: set[str], max_opcodes: int = MAX_OPCODES) -> Any:
    """Return what a pickle of protocol 2 or 3 describes: dictionaries, lists, tuples, numbers, bytes, and `Call`.

    Args:
        data: the pickle; its text is returned as bytes, a persistent id as `Call("persistent", id)`.
        names: all that the file may call, as "module name".
        max_opcodes: more are refused.

    Raises:
        ValueError: the file asks for more, or is damaged; the latter may raise other built-in errors, too.
    """
    if data[:2] not in (b"\x80\x02", b"\x80\x03"):
        raise ValueError("it is not of protocol 2 or 3")
    offset = 2
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def number(form: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from(form, data, offset)
        offset += struct.calcsize(form)
        return int(value)

    def take(count: int) -> bytes:
        nonlocal offset
        if not 0 <= count <= len(data) - offset:
            raise ValueError("it is cut off")
        offset += count
        return data[offset - count : offset]

    def pop_mark() -> list[Any]:
        at = len(stack) - 1
        while at >= 0 and stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise ValueError("a mark is missing")
        values = stack[at + 1 :]
        del stack[at:]
        return values

    for _ in range(max_opcodes):
        op = take(1)[0]
        if op in _NUMBERS:
            stack.append(number(_NUMBERS[op]))
        elif op in _TEXTS:
            stack.append(take(number(_TEXTS[op])))
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
            stack.append(tuple(pop_mark()))
        elif op == 0x85:
            stack[-1] = (stack[-1],)
        elif op in b"\x86\x87":
            count = op - 0x84
            stack[-count:] = [tuple(stack[-count:])]
        elif op in b"ea":
            values = pop_mark() if op == ord("e") else [stack.pop()]
            expect(stack[-1], list).extend(values)
        elif op in b"us":
            values = pop_mark() if op == ord("u") else [stack.pop(-2), stack.pop()]
            # Only bytes as keys: hashing a million nested tuples would crash the process.
            keys = [expect(key, bytes) for key in values[::2]]
            target = stack[-1].items if type(stack[-1]) is Call else expect(stack[-1], dict)
            target.update(zip(keys, values[1::2], strict=True))
        elif op == ord("c"):
            module, name = data[offset : offset + _MAX_NAME].split(b"\n")[:2]
            offset += len(module) + len(name) + 2
            stack.append(f"{module.decode('ascii')} {name.decode('ascii')}")
            if stack[-1] not in names:
                raise ValueError(
                    f"it asks for {stack[-1].replace(' ', '.')}, which this format does not have, or not twice"
                )
            names = names - {stack[-1]}  # writers take it from the memo from then on
        elif op == ord("Q"):
            stack.append(Call("persistent", stack.pop()))
        elif op == ord("R"):
            arguments = stack.pop()
            stack.append(Call(expect(stack.pop(), str), arguments))
        elif op == ord("b"):
            state = stack.pop()
            expect(stack[-1], Call).state = state
        elif op == ord("."):
            return stack.pop()
        else:
            raise ValueError(f"it has the opcode {op}, which is not read")
    raise ValueError(f"it has more than {max_opcodes:,} opcodes")


def expect(value: Any, kind: type) -> Any:
    """Return the value if it is of exactly that type; raise ValueError otherwise."""
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} is in it in place of a {kind.__name__}")
    return value
