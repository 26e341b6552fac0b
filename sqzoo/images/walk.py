"""Walk a folder of images: links followed, each folder entered once, to a bounded depth; nothing left out unsaid."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqzoo.errors import why
from sqzoo.files import is_claimed, is_system_name
from sqzoo.images.opener import SUFFIXES

_DEEPEST = 32  # folders below each other: more is a loop or a mistake
KINDS = ("run", "cache")  # of the folders that `sqzoo.files.claim_folder` marks
# Why a folder was not entered. The first two leave nothing out that was not read, or that is someone's.
OURS = "made by sqzoo"
AGAIN = "a link to a folder that is read already"
DEEP = f"more than {_DEEPEST} folders deep"


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or the system's own."""
    return name.startswith(".") or is_system_name(name)


def is_ours(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is one that sqzoo writes to."""
    return any(is_claimed(folder, kind) for kind in KINDS)


def walk(folder: Path, entered: set[tuple[int, int]], passed: Callable[[Path, str], Any]) -> Iterator[Path]:
    """Yield the files at any depth below a folder, sorted, but for those that `is_ignored` and what sqzoo made.

    Args:
        folder: where to begin.
        entered: the folders read so far, by device and number; given again, each is entered once over several walks.
        passed: called with each folder that was not entered, and why: OURS, AGAIN, DEEP, or that it cannot be read.
    """
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        if not os.path.isdir(place):
            yield place
            continue
        try:
            status, names = os.stat(place), os.listdir(place)
        except OSError as e:
            passed(place, f"it cannot be read: {why(e)}")
            continue
        if depth and is_ours(place):
            passed(place, OURS)
        elif (status.st_dev, status.st_ino) in entered:
            passed(place, AGAIN)
        elif depth > _DEEPEST:
            passed(place, DEEP)
        else:
            entered.add((status.st_dev, status.st_ino))
            waiting += [(place / n, depth + 1) for n in sorted(names, reverse=True) if not is_ignored(n)]


def is_image_name(file: Path) -> bool:
    """Whether a file's suffix is that of a format that can be opened."""
    return file.suffix.casefold() in SUFFIXES


def image_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the image files at any depth below a folder, known by their suffix, sorted, hidden ones left out.

    A folder that cannot be read, or lies too deep, is itself yielded: who opens it as an image says so, and goes on.
    """
    passed: list[tuple[Path, str]] = []
    for file in walk(Path(folder), set(), lambda path, reason: passed.append((path, reason))):
        if is_image_name(file):
            yield file
    yield from (path for path, reason in passed if reason not in (OURS, AGAIN))
