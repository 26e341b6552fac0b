"""Read files that may be hostile: once, up to a limit, and JSON without ambiguity."""

import json
import math
import os
from pathlib import Path
from typing import Any

from sqzoo.errors import WeightsError, shown
from sqzoo.files import open_regular

LARGEST = 1 << 28  # bytes of one file of tensors: our largest network takes 228 MB
CONFIG_LARGEST = 1 << 20  # bytes of config.json: ours have some two thousand


def read_bytes(file: Path, limit: int, name: str | None = None) -> bytes:
    """Read a regular file once, so that the bytes that are checked are those that are parsed.

    Args:
        file: the file.
        limit: most bytes.
        name: of the file, for errors; by default its path.

    Raises:
        OSError: it cannot be read, or is a pipe or device.
        WeightsError: it is larger.
    """
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise WeightsError(
                f"{shown(name or file)} has {size:,} bytes, at most {limit:,} are expected; it is not this "
                "model's file."
            )
        return stream.read(size)


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8; raise `ValueError` for duplicate names, NaN, infinity and invalid JSON."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("it has a name twice")
    return dict(pairs)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _no_number(text)


def read_small(file: Path) -> bytes | None:
    """Return a small file's bytes; None where it is absent, b"" where it is too large or not a file."""
    try:
        return read_bytes(file, CONFIG_LARGEST)
    except FileNotFoundError:
        return b"" if file.is_symlink() else None
    except (OSError, WeightsError):
        return b""
