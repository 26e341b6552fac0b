"""Define the errors that sqzoo raises: each message names the value, what was expected and what to do."""

import difflib
from collections.abc import Iterable


class SqzooError(Exception):
    """Base of all sqzoo errors, so that one `except` catches them."""


class ArgumentError(SqzooError, ValueError):
    """A value outside what the argument allows."""


class BusyError(ArgumentError):
    """A folder that another process is using."""


class UnknownArgumentError(SqzooError, TypeError):
    """An argument that the model does not take."""


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
    """Escape control characters in untrusted text and cut it to `longest` characters."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[: longest + 1])
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def shown(path: object) -> str:
    """Return a path for a message, its control characters escaped."""
    return printable(path, 4096)


def describe(error: BaseException) -> str:
    """Return a foreign error's type and first sentence, to stand in brackets; of a plain ValueError the sentence."""
    text = str(getattr(error, "strerror", None) or error).strip().partition("\n")[0].partition(". ")[0].rstrip(".: ")
    return printable(
        text if type(error) is ValueError and text else f"{type(error).__name__}: {text}".rstrip(": "), 300
    )


def why(error: BaseException) -> str:
    """Return an error's message as one line, to stand in brackets within a sentence."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(said).split())).rstrip(". ")
