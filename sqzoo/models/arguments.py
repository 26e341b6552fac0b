"""Check constructor arguments; shared by the architectures."""

from collections.abc import Sequence

from sqzoo.errors import ArgumentError

POOLS = ("max", "avg")


def one_of(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return `value` if it is one of `allowed`; raise `ArgumentError` otherwise."""
    if not isinstance(value, str) or value not in allowed:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}.")
    return value


def rate(name: str, value: float) -> float:
    """Return a dropout rate in [0, 1); raise `ArgumentError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ArgumentError(f"{name} must be a number from 0 up to, not including, 1, not {value!r}.")
    return float(value)


def count(name: str, value: int, least: int = 1) -> int:
    """Return a whole number of at least `least`; raise `ArgumentError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    return value


def positive(name: str, value: float) -> float:
    """Return a finite number above 0; raise `ArgumentError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < float("inf"):
        raise ArgumentError(f"{name} must be a number above 0, not {value!r}.")
    return float(value)
