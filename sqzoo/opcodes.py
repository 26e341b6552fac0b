"""Interpret pickles that hold plain data without unpickling them: no name is looked up and nothing is called.

Two formats are such pickles: CIFAR-10's batches (`sqzoo.data.batches`) and torch's files of tensors
(`sqzoo.weights.torch_zip`). A call that the file asks for becomes a `Call`, which the reader compares with what it
expects.
"""

from dataclasses import dataclass, field
from pickletools import genops
from typing import Any

_MAX_OPCODES = 40_000  # a batch of CIFAR-10 has 30,000
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_MARK = object()


@dataclass(eq=False)
class Call:
    """A call that the file asks for, with the items and the state that its result is given."""

    name: str
    arguments: Any
    items: dict[bytes, Any] = field(default_factory=dict)
    state: Any = None


def interpret(data: bytes, names: set[str]) -> Any:
    """Return what a pickle of protocol 2 or 3 builds: dictionaries, lists, tuples, numbers, bytes, and `Call`.

    Args:
        data: the pickle; its text is returned as bytes, a persistent id as `Call("persistent", id)`.
        names: all that the file may call, as "module name".

    Raises:
        ValueError: the file asks for more, or is damaged; the latter may raise other built-in errors, too.
    """
    if data[:2] not in (b"\x80\x02", b"\x80\x03"):
        raise ValueError("it is not of protocol 2 or 3")
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

    for count, (opcode, arg, _) in enumerate(genops(data)):
        name = opcode.name
        if count > _MAX_OPCODES:
            raise ValueError(f"it has more than {_MAX_OPCODES:,} opcodes")
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("BININT", "BININT1", "BININT2", "BINBYTES", "SHORT_BINBYTES"):
            stack.append(arg)
        elif name in ("BINSTRING", "SHORT_BINSTRING", "BINUNICODE"):
            stack.append(arg.encode("utf-8" if name == "BINUNICODE" else "latin-1"))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(pop_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("APPEND", "APPENDS"):
            values = pop_mark() if name == "APPENDS" else [stack.pop()]
            expect(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = pop_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            # Only bytes as keys: hashing a million nested tuples would crash the process.
            keys = [expect(key, bytes) for key in values[::2]]
            target = stack[-1].items if type(stack[-1]) is Call else expect(stack[-1], dict)
            target.update(zip(keys, values[1::2], strict=True))
        elif name == "GLOBAL":
            if arg not in names:
                raise ValueError(f"it asks for {arg[:64].replace(' ', '.')}, which this format does not have, or not twice")
            names = names - {arg}  # writers take it from the memo from then on
            stack.append(arg)
        elif name == "BINPERSID":
            stack.append(Call("persistent", stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(Call(expect(stack.pop(), str), arguments))
        elif name == "BUILD":
            state = stack.pop()
            expect(stack[-1], Call).state = state
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"it has the opcode {name}, which is not read")
    return stack.pop()


def expect(value: Any, kind: type) -> Any:
    """Return the value if it is of exactly that type; raise ValueError otherwise."""
    if type(value) is not kind:
        raise ValueError(f"it has a {type(value).__name__} in place of a {kind.__name__}")
    return value
