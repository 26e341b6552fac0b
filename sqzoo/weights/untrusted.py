"""Files that may be hostile: read once and no further than expected; JSON that has one meaning."""

import json
import math
import os
from pathlib import Path
from typing import Any

from sqzoo.errors import WeightsError, shown
from sqzoo.errors import printable as printable
from sqzoo.files import open_regular

LARGEST = 1 << 28  # bytes of one file of tensors: our largest network takes 228 MB
CONFIG_LARGEST = 1 << 20  # bytes of config.json: ours have some two thousand


def read_bytes(file: Path, limit: int, name: str | None = None) -> bytes:
    """Return a regular file's bytes; what is checked later are these bytes, whatever becomes of the file.

    Raises `OSError` where it cannot be read or is a pipe or device, and `WeightsError`, which calls the file `name`,
    where it has more than `limit` bytes.
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
    """Return what JSON in UTF-8 says; raise `ValueError` for a name that stands twice and for NaN and infinity."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _no_number(text)
