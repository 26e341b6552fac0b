"""Walk a folder of images: follow links, enter each folder once, and report every folder that is left out."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqzoo.errors import why
from sqzoo.files import is_claimed, is_system_name
from sqzoo.images.opener import SUFFIXES

_MAX_DEPTH = 32  # more is a loop or a mistake
# Why a folder was not entered. The first two lose no image: they are sqzoo's own, or read elsewhere.
OURS = "made by sqzoo"
AGAIN = "a link to a folder that is read already"
DEEP = f"more than {_MAX_DEPTH} folders deep"


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden or created by the operating system."""
    return name.startswith(".") or is_system_name(name)


def walk(folder: Path, entered: set[tuple[int, int]], skipped: Callable[[Path, str], Any]) -> Iterator[Path]:
    """Yield the files below a folder, sorted, except those that `is_ignored` and the run folders of sqzoo.

    Args:
        folder: where to begin.
        entered: device and inode of the folders read so far; share it to enter each folder once over several walks.
        skipped: called with each folder that is not entered, and why: OURS, AGAIN, DEEP, or that it cannot be read.
    """
    waiting = [(folder, 0)]
    while waiting:
        path, depth = waiting.pop()
        if not os.path.isdir(path):
            yield path
            continue
        try:
            status, names = os.stat(path), os.listdir(path)
        except OSError as e:
            skipped(path, f"it cannot be read: {why(e)}")
            continue
        if depth and is_claimed(path):
            skipped(path, OURS)
        elif (status.st_dev, status.st_ino) in entered:
            skipped(path, AGAIN)
        elif depth > _MAX_DEPTH:
            skipped(path, DEEP)
        else:
            entered.add((status.st_dev, status.st_ino))
            waiting += [(path / n, depth + 1) for n in sorted(names, reverse=True) if not is_ignored(n)]


def is_image_name(file: Path) -> bool:
    """Whether a file's suffix is that of a supported image format."""
    return file.suffix.casefold() in SUFFIXES


def image_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the image files below a folder, by suffix, sorted; hidden ones are skipped.

    Folders that cannot be read or lie too deep come last, as themselves: opening one as an image reports the error.
    """
    skipped: list[Path] = []
    for file in walk(Path(folder), set(), lambda path, why: None if why in (OURS, AGAIN) else skipped.append(path)):
        if is_image_name(file):
            yield file
    yield from skipped
