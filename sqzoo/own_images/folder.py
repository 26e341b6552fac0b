"""Find the images of a folder with a subfolder per class."""

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.utils.misc import natural_key

from sqzoo.errors import DataError, shown, why
from sqzoo.files import is_claimed
from sqzoo.images.walk import AGAIN, DEEP, OURS, image_files, is_ignored, is_image_name, walk

VAL_NAMES = ("val", "valid", "validation", "test")  # the first that exists
_PARTS = {"train", *VAL_NAMES, "training", "testing", "dev", "eval", "evaluation"}
# Folders of other dataset layouts (YOLO, Pascal VOC, COCO): never classes.
_NOT_CLASSES = {
    *("images", "labels", "annotations", "masks", "jpegimages", "imagesets", "segmentationclass", "segmentationobject"),
    *("train2017", "val2017", "test2017"),
}
_LOOSE = "in no class's folder"


@dataclass(frozen=True)
class ImageFolder:
    """The image files of a folder, in a fixed random order, with their labels.

    `is_val` is True for validation files, None where the folder does not say. `left_out` has the reason by path.
    """

    root: Path
    classes: tuple[str, ...]
    files: list[Path]
    labels: np.ndarray
    is_val: np.ndarray | None
    left_out: dict[str, str]


def find_images(folder: str | os.PathLike[str]) -> ImageFolder:
    """Find the images in FOLDER/class/, at any depth, or in FOLDER/train/class/ and FOLDER/val/class/.

    `val` may also be called valid or validation, or test if there is none of these (see `find_test_images`). Links are
    followed, and each folder is entered once. Hidden files, those of the system (`@eaDir`, `Thumbs.db`) and what sqzoo
    made are ignored; others that are not images by their suffix are left out. Classes are sorted as timm does: numbers
    by value, without regard to case.

    Raises:
        DataError: there are not at least two classes with an image each, a folder cannot be read, or a folder's name
            says that it is part of a dataset, such as `labels`, and not a class.
    """
    if not os.path.isdir(folder):
        raise DataError(f"No folder {os.fspath(folder)!r}; give one with a subfolder of images for each class.")
    root = Path(folder)
    left_out: dict[str, str] = {}
    try:
        parts = _parts(root, left_out)
        return _by_class(root, parts, left_out)
    except OSError as e:
        unreadable = shown(os.fsdecode(e.filename or root))
        raise DataError(
            f"Cannot read {unreadable} ({why(e)}); make it readable, or move it out of {shown(root)}."
        ) from e


def find_test_images(folder: ImageFolder) -> list[tuple[Path, int]]:
    """Return the images of FOLDER/test/class/, where FOLDER/train and a validation part are beside it, with labels."""
    test = next((d for d in _subfolders(folder.root) if d.name.casefold() == "test"), None)
    if folder.is_val is None or test is None or test in _parts(folder.root, {}):
        return []
    by_class = {printable_path(d, test): d for d in _subfolders(test)}
    labelled = [(label, by_class[name]) for label, name in enumerate(folder.classes) if name in by_class]
    return [(file, label) for label, subfolder in labelled for file in image_files(subfolder)]


def _parts(root: Path, left_out: dict[str, str]) -> list[Path]:
    """Return the folders that hold class folders: the root alone, or train and, if it exists, validation."""
    folders = _subfolders(root)
    by_name = {d.name.casefold(): d for d in folders}
    if "train" not in by_name or set(by_name) - {"train", *VAL_NAMES} or len(by_name) < len(folders):
        return [root]
    parts = [by_name["train"], *[by_name[name] for name in VAL_NAMES if name in by_name][:1]]
    unread = [d for d in folders if d not in parts and d.name.casefold() != "test"]
    left_out |= {printable_path(d, root): f"{parts[-1].name} is for validation" for d in unread}
    return parts


def _by_class(root: Path, parts: list[Path], left_out: dict[str, str]) -> ImageFolder:
    by_class: dict[str, list[list[Path]]] = {}  # the files of each part, by class
    entered: set[tuple[int, int]] = set()
    runs: set[str] = set()  # folders that hold nothing but what sqzoo made

    def skipped(path: Path, reason: str) -> None:
        if reason.startswith("it cannot be read"):
            raise DataError(f"{shown(path)}: {reason}; make it readable, or move it out of {shown(root)}.")
        left_out[printable_path(path, root)] = reason

    for number, part in enumerate(parts):
        for folder in _subfolders(part):
            name, before = printable_path(folder, part), len(left_out)
            of_class = by_class.setdefault(name, [[] for _ in parts])
            if of_class[number]:
                raise DataError(f"{shown(part)} holds two folders whose names are printed as {name!r}; rename one.")
            files = list(walk(folder, entered, skipped))
            of_class[number] += [file for file in files if is_image_name(file)]
            left_out |= {printable_path(f, root): "not an image, by its suffix" for f in files if not is_image_name(f)}
            if not files and OURS in list(left_out.values())[before:]:
                runs.add(name)
        for file in sorted(part.iterdir()):
            if not is_ignored(file.name) and not os.path.isdir(file):
                left_out[printable_path(file, root)] = _LOOSE
    by_class = {name: files for name, files in by_class.items() if name not in runs or any(files)}
    classes = tuple(sorted(by_class, key=sort_key))
    _check_classes(root, parts[0], classes, left_out)
    for name in classes:
        for part, files in zip(parts, by_class[name], strict=True):
            if not files:
                inside = next((r for n, r in left_out.items() if n.endswith(name) and r in (AGAIN, DEEP)), None)
                raise DataError(
                    f"Class {name!r} has no image in {shown(part)}{f' ({inside})' if inside else ''}; add some, or "
                    "delete the class's folder."
                )
    rows = [
        (file, label, number == 1)
        for label, name in enumerate(classes)
        for number, files in enumerate(by_class[name])
        for file in sorted(files)
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    paths, labels, is_val = ([column[i] for i in order] for column in zip(*rows, strict=True))
    return ImageFolder(root, classes, paths, np.array(labels), np.array(is_val) if parts[1:] else None, left_out)


def sort_key(name: str) -> tuple[Any, ...]:
    """Return timm's sort key for classes, then the name itself."""
    try:
        return natural_key(name), name
    except ValueError:  # a digit that is not a number, such as a superscript
        return [name.lower()], name


def _check_classes(root: Path, part: Path, classes: tuple[str, ...], left_out: dict[str, str]) -> None:
    splits = [name for name in classes if name.casefold() in _PARTS]
    not_classes = [name for name in classes if name.casefold() in _NOT_CLASSES]
    if len({name.casefold() for name in splits}) > 1:  # a single one may be a class: there are images of trains
        not_classes += splits
    if not_classes:
        raise DataError(
            f"{shown(part)} holds a folder {not_classes[0]!r}, which is part of a dataset by its name, not a class; "
            "name the folder whose subfolders are the classes, or rename it: parts are called train, val and test."
        )
    if len(classes) < 2:
        loose = sum(reason == _LOOSE for reason in left_out.values())
        holds = f"one class, {classes[0]!r}" if classes else f"no class folders ({loose} files lie outside of any)"
        raise DataError(
            f"{shown(part)} holds {holds}; put the images of each class, at least two, into its own folder."
        )
    if unprintable := [name for name in classes if not name.isprintable()]:
        raise DataError(f"Class {unprintable[0]!r} has unprintable characters in its name; rename its folder.")
    check_spelling(shown(root), classes)


def check_spelling(where: str, classes: tuple[str, ...]) -> None:
    """Raise `DataError` for two classes that differ in case or in the way an accent is written alone."""
    spelling = {name: unicodedata.normalize("NFC", name).casefold() for name in classes}
    counts = Counter(spelling.values())
    if same := [name for name in classes if counts[spelling[name]] > 1]:
        raise DataError(
            f"{where} holds the classes {same[0]!r} and {same[1]!r}, which are the same but for their spelling; "
            "merge them, or rename one."
        )


def _subfolders(folder: Path) -> list[Path]:
    names = sorted(os.listdir(folder))
    return [d for n in names if not is_ignored(n) and os.path.isdir(d := folder / n) and not is_claimed(d)]


def printable_path(path: Path, root: Path) -> str:
    """Return a path relative to `root` as text that can be printed and written, whatever its bytes."""
    return os.fsencode(path.relative_to(root)).decode("utf-8", "replace")
