"""A folder of one's own pictures, a class a subfolder, as a data set: found, decoded once, a part held out."""

import hashlib
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from sqzoo.data import Dataset
from sqzoo.errors import ArgumentError, DataError
from sqzoo.extras import require
from sqzoo.files import write_whole
from sqzoo.reading import ImageReader, picture_suffixes, read_ahead

_HELD_OUT_NAMES = ("val", "valid", "validation", "test")  # the first that is there
_IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}


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

    In place of val: valid, validation or test. Hidden files are ignored, others that are no pictures by their suffix
    are left out. Raises `DataError` where there are not at least two classes with a picture each.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"No folder {os.fspath(folder)!r}; give one with a subfolder of pictures for each class.")
    try:
        return _in_parts(root)
    except OSError as e:
        raise DataError(f"Cannot read {e.filename} ({e.strerror}); see that you may, or move it out of {root}.") from e


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
    suffixes = picture_suffixes()
    found: dict[str, list[list[Path]]] = {}
    for number, part in enumerate(parts):
        for folder in _folders(part):
            name = _shown(folder, part)
            found.setdefault(name, [[] for _ in parts])
            for file in _files(folder, {os.path.realpath(folder)}):
                if file.suffix.casefold() in suffixes:
                    found[name][number].append(file)
                else:
                    left_out[_shown(file, root)] = "not a picture, by its suffix"
        for file in sorted(part.iterdir()):
            if file.is_file() and not _ignored(file):
                left_out[_shown(file, root)] = "in no class's folder"
    classes = tuple(sorted(found))
    _check_classes(root, parts, classes, left_out)
    for name in classes:
        for part, files in zip(parts, found[name], strict=True):
            if not files:
                raise DataError(
                    f"Class {name!r} has no picture in {part}; put some there, or delete the class's folder."
                )
    files, labels, held = [], [], []
    for label, name in enumerate(classes):
        for number, some in enumerate(found[name]):
            files += sorted(some)
            labels += [label] * len(some)
            held += [number == 1] * len(some)
    # The same mixture each time, so that the first few, which may be looked at alone, are of all classes.
    order = np.random.default_rng(0).permutation(len(files))
    mixed = [files[i] for i in order]
    return Found(root, classes, mixed, np.array(labels)[order], np.array(held)[order] if parts[1:] else None, left_out)


def _check_classes(root: Path, parts: list[Path], classes: tuple[str, ...], left_out: dict[str, str]) -> None:
    if len(classes) < 2:
        loose = sum(reason == "in no class's folder" for reason in left_out.values())
        there = f"one class, {classes[0]!r}" if classes else f"no class folders ({loose} files lie outside of any)"
        raise DataError(
            f"{parts[0]} holds {there}; put the pictures of each class into a folder of its name, two at least."
        )
    if odd := [name for name in classes if not name.isprintable()]:
        raise DataError(f"Class {odd[0]!r} has characters in its name that cannot be printed; rename its folder.")
    alike = Counter(unicodedata.normalize("NFC", name).casefold() for name in classes)
    same = [n for n in classes if alike[unicodedata.normalize("NFC", n).casefold()] > 1]
    if same:
        raise DataError(
            f"{root} holds the classes {same[0]!r} and {same[1]!r}, which are the same but for their spelling; merge "
            "their folders, or rename one."
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(d for d in folder.iterdir() if d.is_dir() and not _ignored(d))


def _files(folder: Path, above: set[str]) -> Iterator[Path]:
    """Yield the files at any depth below a folder, through links but not in circles."""
    for entry in sorted(folder.iterdir()):
        if _ignored(entry):
            continue
        if not entry.is_dir():
            yield entry
        elif (real := os.path.realpath(entry)) not in above:
            yield from _files(entry, above | {real})


def _ignored(path: Path) -> bool:
    return path.name.startswith(".") or path.name.casefold() in _IGNORED


def _shown(path: Path, root: Path) -> str:
    """Return a path below `root` as text that can be printed and written whatever its bytes."""
    return os.fsencode(path.relative_to(root)).decode("utf-8", "replace")


def from_hub(name: str, store: str | os.PathLike[str]) -> Path:
    """Fetch a data set "ORG/NAME" or "ORG/NAME@REVISION" from the Hub by `datasets`; return its folder of pictures.

    The folder lies in `store` and is laid out as `find_pictures` takes it; one that is there already is used as it is.
    Raises `DataError` where the data set cannot be had or is not one of pictures with a class each.
    """
    folder = Path(store) / name.replace("/", "--")
    if folder.is_dir():
        return folder
    datasets = require("datasets", "datasets", f"No folder {name!r}; fetching a data set of that name")
    where, _, revision = name.partition("@")
    try:
        splits = datasets.load_dataset(where, revision=revision or None)
    except Exception as e:  # whatever network, files and client raise
        raise DataError(
            f"No folder {name!r}, and no data set of that name could be fetched from the Hub "
            f"({type(e).__name__}: {' '.join(str(e).split())[:200].rstrip('. ')}); check the name."
        ) from e
    held_out = next((n for n in _HELD_OUT_NAMES if n in splits), None)
    parts = {"train": "train", held_out: "val"} if "train" in splits and held_out else {next(iter(splits)): ""}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    for split, part in parts.items():
        data = splits[split]
        kinds = {type(feature).__name__: column for column, feature in reversed(data.features.items())}
        if not kinds.keys() >= {"Image", "ClassLabel"}:
            raise DataError(f"{name} has no column of pictures and one of classes, but {data.features}; name another.")
        classes = data.features[kinds["ClassLabel"]].names
        data = data.cast_column(kinds["Image"], datasets.Image(decode=False))
        for number, row in enumerate(data):
            picture, label = row[kinds["Image"]], row[kinds["ClassLabel"]]
            content = picture["bytes"] or Path(picture["path"]).read_bytes()
            file = temporary / part / classes[label].replace("/", "_") / f"{number:07}.{_suffix(content)}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    temporary.replace(folder)
    return folder


def _suffix(data: bytes) -> str:
    try:
        return str(Image.open(io.BytesIO(data)).format).lower()
    except Exception:  # Pillow's readers raise nearly anything for damaged pictures, which are told of later
        return "png"


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
    stats = [file.stat() if file.exists() else None for file in found.files]
    listing = [
        (_shown(f, found.folder), s and (s.st_size, s.st_mtime_ns)) for f, s in zip(found.files, stats, strict=True)
    ]
    key = hashlib.sha256(json.dumps([listing, side, PIL.__version__]).encode()).hexdigest()[:16]
    pixels, notes = (Path(store) / f"pictures-{key}.{kind}" for kind in ("u8", "json"))
    if not notes.is_file():
        _decode(found, side, pixels, notes, progress)
    unreadable: dict[str, str] = json.loads(notes.read_text(encoding="utf-8"))
    names = [_shown(file, found.folder) for file in found.files]
    good = np.array([name not in unreadable for name in names])
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


def _decode(found: Found, side: int, pixels: Path, notes: Path, progress: Callable[[int, int], Any]) -> None:
    unreadable: dict[str, str] = {}
    pixels.parent.mkdir(parents=True, exist_ok=True)
    temporary = pixels.with_name(f".{pixels.name}.{os.getpid()}")
    squares = read_ahead(found.files, ImageReader(side), ahead=64)
    with temporary.open("wb") as stream:
        for done, (file, (_, square)) in enumerate(zip(found.files, squares, strict=True), 1):
            if isinstance(square, DataError):
                unreadable[_shown(file, found.folder)] = str(square)
            else:
                stream.write(square.tobytes())
            progress(done, len(found.files))
    temporary.replace(pixels)
    write_whole(notes, json.dumps(unreadable).encode())


def _hold_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    held = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(own))), len(own) - 1)
        held.append(np.random.default_rng([seed, int(label)]).permutation(own)[:count])
    return np.sort(np.concatenate(held))
