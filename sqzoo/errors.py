"""Every error that sqzoo raises on purpose; each message names the value, what was expected and what to do."""

import difflib
from collections.abc import Iterable


class SqzooError(Exception):
    """Base of all sqzoo errors, so that one `except` catches them."""


class ArgumentError(SqzooError, ValueError):
    """A value outside what the argument allows."""


class BusyError(ArgumentError):
    """A folder in which another process is at work."""


class UnknownArgumentError(SqzooError, TypeError):
    """An argument that the model does not have."""


class UnknownModelError(SqzooError, ValueError):
    """A model name or weights tag that is not in the registry."""


class WeightsError(SqzooError, RuntimeError):
    """Weights that are missing, damaged, or do not belong to the model."""


class DataError(SqzooError, RuntimeError):
    """A data set or image that is missing, damaged, or not what it claims to be."""


class ExportError(SqzooError, RuntimeError):
    """A file that cannot be written, or whose outputs are not the model's."""


class MissingExtraError(SqzooError, ImportError):
    """An optional package that is not installed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def printable(text: object, longest: int = 120) -> str:
    """Return a foreign text so that it fits in a line of ours: no control characters, no more than so many others."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[: longest + 1])
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def shown(path: object) -> str:
    """Return a file's or folder's name as text for a message: all of it, its control characters escaped."""
    return printable(path, 4096)


def why(error: BaseException) -> str:
    """Return what an error says, in one line that stands in brackets within a sentence of ours."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(said).split())).rstrip(". ")
