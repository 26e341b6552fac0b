"""Find the images of a folder whose labels are in a CSV file, as Kaggle's competitions have them."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sqzoo.errors import DataError, printable, shown, why
from sqzoo.files import open_regular
from sqzoo.images.walk import image_files
from sqzoo.own_images.folder import ImageFolder, check_spelling, printable_path, sort_key

_LARGEST = 1 << 28  # bytes of the CSV file


def find_labelled(folder: str | os.PathLike[str], labels: str | os.PathLike[str]) -> ImageFolder:
    """Find a folder's images by a CSV file: an image in the first column, its class in the second.

    An image is named by its path in the folder, by its file name, or by that without suffix. A heading is recognised by
    naming no image. Rows without an image, and images without a row, are left out.

    Args:
        folder: of the images, at any depth.
        labels: the CSV file, of UTF-8 text, its columns parted by commas, semicolons or tabs.

    Raises:
        DataError: the file cannot be read, an image has two classes, or there are not at least two classes.
    """
    if not os.path.isdir(folder):
        raise DataError(f"No folder {os.fspath(folder)!r}; give the one of the images in {shown(labels)}.")
    root, named = Path(folder), shown(labels)
    by_name: dict[str, Path | None] = {}  # None: the name of several
    for file in image_files(root):
        path = printable_path(file, root)
        for name in {path, os.path.splitext(path)[0], file.name, file.stem}:
            by_name[name] = None if name in by_name else file
    chosen: dict[Path, str] = {}
    left_out: dict[str, str] = {}
    for number, (name, label) in enumerate(_rows(Path(labels))):
        image = by_name.get(name)
        if image is None or label in ("", "-1"):  # "-1": as datasets write it
            reason = "has no class in" if image else "the name of several images in" if name in by_name else "only in"
            left_out |= {printable(name): f"{reason} {named}"} if number else {}
        elif chosen.setdefault(image, label) != label:
            raise DataError(f"{named} gives {printable(name)!r} the classes {chosen[image]!r} and {label!r}; keep one.")
    if unlabelled := len({f for f in by_name.values() if f} - chosen.keys()):
        left_out[f"{unlabelled} images"] = f"not in {named}"
    classes = tuple(sorted(set(chosen.values()), key=sort_key))
    if len(classes) < 2 or not all(name.isprintable() for name in classes):
        raise DataError(
            f"{named} gives {len(chosen)} images of {shown(root)} and {len(classes)} classes; it needs the image in "
            "the first column and its class in the second, and two printable classes at least."
        )
    check_spelling(named, classes)
    files = sorted(chosen)
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    return ImageFolder(root, classes, files, np.array([classes.index(chosen[f]) for f in files]), None, left_out)


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the first two cells of each row, stripped."""
    try:
        with open_regular(file) as stream:
            text = stream.read(_LARGEST).decode("utf-8-sig")
        first = text.partition("\n")[0]
        for row in csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count)):
            if len(row) >= 2:
                yield row[0].strip(), row[1].strip()
    except (OSError, ValueError, csv.Error) as e:
        raise DataError(f"Cannot read {shown(file)} as CSV ({why(e)}); check it.") from e
