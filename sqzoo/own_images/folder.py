"""A folder of one's own pictures, a class a subfolder, as a data set: found, decoded once, a part held out."""

import hashlib
import io
import json
import logging
import os
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from timm.utils.misc import natural_key

from sqzoo.data import Dataset
from sqzoo.data.parquet import check_downloaded
from sqzoo.environment import require
from sqzoo.errors import ArgumentError, DataError, printable, shown, why
from sqzoo.files import TEMPORARY, atomic_file, is_claimed, open_regular, read_json, write_bytes
from sqzoo.images.opener import formats
from sqzoo.images.reader import ImageReader, read_ahead
from sqzoo.images.walk import AGAIN, DEEP, OURS, is_ignored, is_image_name, walk

_HELD_OUT_NAMES = ("val", "valid", "validation", "test")  # the first that is there
# Parts of data sets of other layouts (YOLO, Pascal VOC, COCO), and of this one: never what a picture shows.
_NO_CLASSES = {
    *("images", "labels", "annotations", "masks", "jpegimages", "imagesets", "segmentationclass", "segmentationobject"),
    *("train2017", "val2017", "test2017"),
}
_PICTURE_LARGEST = 1 << 28  # bytes
_NO_PICTURE = "png"  # the suffix of what is no picture, which the reader tells of
_logger = logging.getLogger("sqzoo")


@dataclass(frozen=True)
class Pictures(Dataset):
    """A `Dataset` of square pictures (N, side, side, 3) with class names and its own held-out part.

    names: where each picture came from. left_out: what was not taken, and why.
    """

    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    held: np.ndarray = field(default_factory=lambda: np.arange(0))
    left_out: dict[str, str] = field(default_factory=dict)

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (training indices, held-out indices), whatever their count."""
        return np.setdiff1d(np.arange(len(self)), self.held), self.held

    @cached_property
    def digest(self) -> str:
        """SHA-256 over pixels, labels, class names and the held-out part."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        digest.update(self.labels.astype("<i8").tobytes() + self.held.astype("<i8").tobytes())
        for low in range(0, len(self), 1024):
            digest.update(np.ascontiguousarray(self.images[low : low + 1024]).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Found:
    """The picture files of a folder by class. held: which are held out, or None where the folder does not say."""

    folder: Path
    classes: tuple[str, ...]
    files: list[Path]
    labels: np.ndarray
    held: np.ndarray | None
    left_out: dict[str, str]


def find_pictures(folder: str | os.PathLike[str]) -> Found:
    """Find the pictures in FOLDER/class/, at any depth below, or in FOLDER/train/class/ and FOLDER/val/class/.

    In place of val: valid, validation or test. The classes are in the order of timm's reader: numbers by their value,
    capital and small letters alike. Links are followed, and each folder is entered once. Hidden files, those of the
    system (`@eaDir`, `Thumbs.db`) and what sqzoo itself made are ignored, others that are no pictures by their suffix
    are left out.

    Raises:
        DataError: where there are not at least two classes with a picture each, a folder cannot be read, or a folder's
            name says that it is a part of a data set, such as `labels`, and no class.
    """
    if not os.path.isdir(folder):
        raise DataError(f"No folder {os.fspath(folder)!r}; give one with a subfolder of pictures for each class.")
    root = Path(folder)
    try:
        return _in_parts(root)
    except OSError as e:
        place = shown(os.fsdecode(e.filename or root))
        raise DataError(f"Cannot read {place} ({why(e)}); see that you may, or move it out of {shown(root)}.") from e


def _in_parts(root: Path) -> Found:
    folders = _folders(root)
    below = {d.name.casefold(): d for d in folders}
    held_out = next((below[name] for name in _HELD_OUT_NAMES if name in below), None)
    left_out: dict[str, str] = {}
    if "train" not in below or set(below) - {"train", *_HELD_OUT_NAMES} or len(below) < len(folders):
        return _by_class(root, [root], left_out)
    left_out |= {
        _shown(d, root): f"{held_out.name} is the held-out part"
        for name, d in below.items()
        if held_out and name != "train" and d != held_out
    }
    return _by_class(root, [below["train"], *([held_out] if held_out else [])], left_out)


def _by_class(root: Path, parts: list[Path], left_out: dict[str, str]) -> Found:
    found: dict[str, list[list[Path]]] = {}
    entered: set[tuple[int, int]] = set()
    runs: set[str] = set()  # folders in which nothing but what sqzoo made was found

    def passed(path: Path, reason: str) -> None:
        if reason.startswith("it cannot be read"):
            raise DataError(f"{shown(path)}: {reason}; see that you may read it, or move it out of {shown(root)}.")
        left_out[_shown(path, root)] = reason

    for number, part in enumerate(parts):
        for folder in _folders(part):
            name, before = _shown(folder, part), len(left_out)
            of_class = found.setdefault(name, [[] for _ in parts])
            if of_class[number]:
                raise DataError(f"{shown(part)} holds two folders whose names are printed as {name!r}; rename one.")
            files = list(walk(folder, entered, passed))
            of_class[number] += [file for file in files if is_image_name(file)]
            left_out |= {_shown(f, root): "not a picture, by its suffix" for f in files if not is_image_name(f)}
            if not files and OURS in list(left_out.values())[before:]:
                runs.add(name)
        for file in sorted(part.iterdir()):
            if not is_ignored(file.name) and not os.path.isdir(file):
                left_out[_shown(file, root)] = "in no class's folder"
    found = {name: files for name, files in found.items() if name not in runs or any(files)}
    classes = tuple(sorted(found, key=_as_timm))
    _check_classes(root, parts, classes, left_out)
    for name in classes:
        for part, files in zip(parts, found[name], strict=True):
            if not files:
                inside = next((r for n, r in left_out.items() if n.endswith(name) and r in (AGAIN, DEEP)), None)
                raise DataError(
                    f"Class {name!r} has no picture in {shown(part)}{f' ({inside})' if inside else ''}; put some "
                    "there, or delete the class's folder."
                )
    paths, labels, held = [], [], []
    for label, name in enumerate(classes):
        for number, some in enumerate(found[name]):
            paths += sorted(some)
            labels += [label] * len(some)
            held += [number == 1] * len(some)
    # The same mixture each time, so that the first few, which may be looked at alone, are of all classes.
    order = np.random.default_rng(0).permutation(len(paths))
    mixed = [paths[i] for i in order]
    return Found(root, classes, mixed, np.array(labels)[order], np.array(held)[order] if parts[1:] else None, left_out)


def _as_timm(name: str) -> tuple[Any, ...]:
    """Return what timm's reader sorts classes by, then the name itself."""
    try:
        return natural_key(name), name
    except ValueError:  # a digit that is no number, such as a superscript
        return [name.lower()], name


def _check_classes(root: Path, parts: list[Path], classes: tuple[str, ...], left_out: dict[str, str]) -> None:
    place = shown(parts[0])
    splits = [name for name in classes if name.casefold() in ("train", *_HELD_OUT_NAMES)]
    no_class = [name for name in classes if name.casefold() in _NO_CLASSES]
    # One may be a class: there are pictures of trains. Two are parts, and something lies beside them.
    if no_class := no_class or splits * (len({name.casefold() for name in splits}) > 1):
        raise DataError(
            f"{place} holds a folder {no_class[0]!r}, which is a part of a data set by its name, not a class; name the "
            "folder whose subfolders are the classes, or rename it."
        )
    if len(classes) < 2:
        loose = sum(reason == "in no class's folder" for reason in left_out.values())
        there = f"one class, {classes[0]!r}" if classes else f"no class folders ({loose} files lie outside of any)"
        raise DataError(
            f"{place} holds {there}; put the pictures of each class into a folder of its name, two at least."
        )
    if odd := [name for name in classes if not name.isprintable()]:
        raise DataError(f"Class {odd[0]!r} has characters in its name that cannot be printed; rename its folder.")
    alike = Counter(unicodedata.normalize("NFC", name).casefold() for name in classes)
    same = [n for n in classes if alike[unicodedata.normalize("NFC", n).casefold()] > 1]
    if same:
        raise DataError(
            f"{shown(root)} holds the classes {same[0]!r} and {same[1]!r}, which are the same but for their spelling; "
            "merge their folders, or rename one."
        )


def _folders(folder: Path) -> list[Path]:
    names = sorted(os.listdir(folder))
    return [d for n in names if not is_ignored(n) and os.path.isdir(d := folder / n) and not is_claimed(d)]


def _shown(path: Path, root: Path) -> str:
    """Return a path below `root` as text that can be printed and written whatever its bytes."""
    return os.fsencode(path.relative_to(root)).decode("utf-8", "replace")


def from_hub(name: str, store: str | os.PathLike[str]) -> Path:
    """Fetch a data set "ORG/NAME" or "ORG/NAME@REVISION" from the Hub by `datasets`; return its folder of pictures.

    The folder lies in `store` and is laid out as `find_pictures` takes it; one that is there already is used as it is.
    Rows without a picture or a label (-1) are left out, which is logged. Raises `DataError` where the data set cannot
    be had, is not one of pictures with a class each, or names files of this machine or classes that lead elsewhere.
    """
    folder = Path(store) / name.replace("/", "--")
    if folder.is_dir():
        return folder
    datasets = require("datasets", "datasets", f"No folder {name!r}; fetching a data set of that name")
    where, _, revision = name.partition("@")
    _check_parquet(name, where, revision or None, datasets)
    try:
        splits = datasets.load_dataset(where, revision=revision or None)
    except Exception as e:  # whatever network, files and client raise
        raise DataError(
            f"No folder {name!r}, and no data set of that name could be fetched from the Hub "
            f"({type(e).__name__}: {printable(' '.join(str(e).split()), 200).rstrip('. ')}); check the name."
        ) from e
    held_out = next((n for n in _HELD_OUT_NAMES if n in splits), None)
    parts = {"train": "train", held_out: "val"} if "train" in splits and held_out else {next(iter(splits)): ""}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=TEMPORARY) as temporary:
        whole = Path(temporary) / "whole"
        skipped = sum(_write_split(name, splits[split], whole / part, datasets) for split, part in parts.items())
        if not whole.is_dir():
            raise DataError(f"{name} has no labelled picture; name another data set.")
        try:
            whole.replace(folder)
        except OSError:
            if not folder.is_dir():  # or another process was before us
                raise
    if skipped:
        _logger.warning("%d rows of %s have no picture or no label, and were left out.", skipped, name)
    return folder


def _check_parquet(name: str, where: str, revision: str | None, datasets: Any) -> None:
    """Raise DataError for a data set with parquet files that would fill the memory; fetch them."""
    try:
        files = datasets.load_dataset_builder(where, revision=revision).config.data_files or {}
        fetched = datasets.DownloadManager().download(dict(files))
    except Exception:  # `load_dataset` has the same, and its error is told
        return
    for file in (file for some in fetched.values() for file in some):
        try:
            check_downloaded(file)
        except (OSError, ValueError) as e:
            raise DataError(f"{name} has a file that is not read ({why(e)}); name another data set.") from e


def _write_split(name: str, data: Any, place: Path, datasets: Any) -> int:
    """Write the pictures of a split by class; return how many rows have none, or no label."""
    kinds = {type(feature).__name__: column for column, feature in reversed(data.features.items())}
    if not kinds.keys() >= {"Image", "ClassLabel"}:
        columns = printable(dict(data.features), 500)
        raise DataError(f"{name} has no column of pictures and one of classes, but {columns}; name another.")
    classes = [str(c) for c in data.features[kinds["ClassLabel"]].names]
    folders = [c.replace("/", "_") for c in classes]
    for written, original in zip(folders, classes, strict=True):
        odd = is_ignored(written) or not written.isprintable() or written != written.strip() or len(written) > 100
        if not written or odd or folders.count(written) > 1:
            raise DataError(
                f"{name} has a class {printable(original)!r}, which cannot be a folder's name; name another."
            )
    data = data.cast_column(kinds["Image"], datasets.Image(decode=False))
    skipped = 0
    for number, row in enumerate(data):
        picture, label = row[kinds["Image"]], row[kinds["ClassLabel"]]
        if picture is None or label is None or label == -1:
            skipped += 1
            continue
        if not 0 <= label < len(classes):
            raise DataError(f"{name} has the label {label} in row {number}, and {len(classes)} classes; name another.")
        content = picture["bytes"] or _downloaded(name, str(picture["path"]), datasets)
        file = place / folders[label] / f"{number:07}.{_suffix(content)}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return skipped


def _downloaded(name: str, path: str, datasets: Any) -> bytes:
    """Return the bytes of a picture that came as a file of its own. Raises DataError for a file of the user's."""
    from huggingface_hub import constants

    caches = [datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE]
    real = Path(os.path.realpath(path))
    if not any(Path(os.path.realpath(cache)) in real.parents for cache in caches):
        raise DataError(
            f"{name} names the file {printable(path)} of this machine as a picture; do not use that data set."
        )
    try:
        with open_regular(real) as stream:
            content = stream.read(_PICTURE_LARGEST + 1)
    except OSError as e:
        raise DataError(f"Cannot read {shown(real)} of {name} ({why(e)}); fetch the data set again.") from e
    if len(content) > _PICTURE_LARGEST or _suffix(content) == _NO_PICTURE:
        raise DataError(f"{name} has {printable(path)} for a picture, which is none; name another data set.")
    return content


def _suffix(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            return str(image.format).lower()
    except Exception:  # Pillow's readers raise nearly anything for damaged pictures, which are told of later
        return _NO_PICTURE


def read_pictures(
    found: Found,
    side: int,
    store: str | os.PathLike[str],
    *,
    share: float = 0.2,
    seed: int = 0,
    progress: Callable[[int, int], Any] = lambda done, of: None,
) -> Pictures:
    """Decode the pictures to squares of `side` pixels into a file in `store`, mapped to memory, and hold a part out.

    Short side to `side`, bilinear, then the centre: what `sqzoo.predict` does for the model that comes of it. A file
    that cannot be read is left out. `share` of each class is held out by `seed`, at least one picture and not all,
    unless the folder itself says which. What an earlier call left in `store` for the same files is used again.
    Raises `DataError` where a class has fewer than two readable pictures.
    """
    if not 0 < share < 1:
        raise ArgumentError(f"held_out must be a share between 0 and 1, not {share!r}.")
    listing = [(_shown(file, found.folder), _state(file)) for file in found.files]
    key = hashlib.sha256(json.dumps([listing, side, PIL.__version__]).encode()).hexdigest()[:16]
    pixels, notes = (Path(store) / f"pictures-{key}.{kind}" for kind in ("u8", "json"))
    names = [_shown(file, found.folder) for file in found.files]
    unreadable = _noted(notes, pixels, names, side)
    if unreadable is None:
        _decode(found, side, pixels, notes, progress)
        unreadable = _noted(notes, pixels, names, side)
        if unreadable is None:
            raise DataError(f"{shown(pixels)} changed as it was written; name another folder to keep pictures in.")
    good = np.array([name not in unreadable for name in names])
    if not good.any():
        raise DataError(
            f"No picture in {shown(found.folder)} can be read; the first: {next(iter(unreadable.values()))}"
        )
    labels = found.labels[good]
    held = _hold_out(labels, share, seed) if found.held is None else np.flatnonzero(found.held[good])
    for label, name in enumerate(found.classes):
        count, apart = int((labels == label).sum()), int((labels[held] == label).sum())
        if not 0 < apart < count:
            raise DataError(
                f"Class {name!r} has {count - apart} readable pictures to learn from and {apart} to hold out; give it "
                "one of each at least."
            )
    images = np.memmap(pixels, np.uint8, "r", shape=(len(labels), side, side, 3))
    kept = tuple(name for name, taken in zip(names, good, strict=True) if taken)
    return Pictures(images, labels, found.classes, kept, held, found.left_out | unreadable)


def _state(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _noted(notes: Path, pixels: Path, names: list[str], side: int) -> dict[str, str] | None:
    """Return the unreadable files that an earlier call noted, or None where its pixels are not there, or not whole."""
    try:
        unreadable = read_json(notes)
        with open_regular(pixels) as stream:
            size = os.fstat(stream.fileno()).st_size
    except (OSError, DataError):
        return None
    return unreadable if size == 3 * side**2 * sum(name not in unreadable for name in names) else None


def _decode(found: Found, side: int, pixels: Path, notes: Path, progress: Callable[[int, int], Any]) -> None:
    unreadable: dict[str, str] = {}
    squares = read_ahead(found.files, ImageReader(side), ahead=64)
    with atomic_file(pixels) as stream:
        for done, (file, (_, square)) in enumerate(zip(found.files, squares, strict=True), 1):
            if isinstance(square, DataError):
                unreadable[_shown(file, found.folder)] = str(square)
            else:
                stream.write(square.tobytes())
            progress(done, len(found.files))
    write_bytes(notes, json.dumps(unreadable).encode())


def _hold_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    held = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(own))), len(own) - 1)
        held.append(np.random.default_rng([seed, int(label)]).permutation(own)[:count])
    return np.sort(np.concatenate(held))
