"""Download an image classification dataset from the Hugging Face Hub into a folder with a subfolder per class."""

import io
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from sqzoo.data.parquet import check_downloaded
from sqzoo.environment import require
from sqzoo.errors import DataError, printable, shown, why
from sqzoo.files import TEMPORARY, open_regular
from sqzoo.images.opener import formats
from sqzoo.images.walk import is_ignored
from sqzoo.own_images.folder import VAL_NAMES

_LARGEST = 1 << 28  # bytes of an image
_NO_IMAGE = "png"  # suffix for what is not an image, which the reader will report
_logger = logging.getLogger("sqzoo")


def download_dataset(name: str, store: str | os.PathLike[str]) -> Path:
    """Download a dataset with the `datasets` package.

    Rows without an image or a label (-1) are left out and counted in a warning.

    Args:
        name: "ORG/NAME" or "ORG/NAME@REVISION".
        store: parent of the folder; an earlier download is used again.

    Returns:
        A folder for `find_images`.

    Raises:
        DataError: the dataset cannot be downloaded, lacks a column of images or of classes, or has paths on this
            machine or class names that are no folder names.
    """
    folder = Path(store) / name.replace("/", "--")
    if folder.is_dir():
        return folder
    datasets = require("datasets", "datasets", f"No folder {name!r}; fetching a dataset of that name")
    repo, _, revision = name.partition("@")
    _check_parquet(name, repo, revision or None, datasets)
    try:
        splits = datasets.load_dataset(repo, revision=revision or None)
    except Exception as e:  # whatever network, files and client raise
        raise DataError(
            f"No folder {name!r}, and no dataset of that name could be fetched from the Hub "
            f"({type(e).__name__}: {printable(' '.join(str(e).split()), 200).rstrip('. ')}); check the name."
        ) from e
    val = next((n for n in VAL_NAMES if n in splits), None)
    parts = {"train": "train", val: "val"} if "train" in splits and val else {next(iter(splits)): ""}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=TEMPORARY) as temporary:
        complete = Path(temporary) / "complete"
        skipped = sum(_write_split(name, splits[split], complete / part, datasets) for split, part in parts.items())
        if not complete.is_dir():
            raise DataError(f"{name} has no labelled image; name another dataset.")
        try:
            complete.replace(folder)
        except OSError:
            if not folder.is_dir():  # or another process was first
                raise
    if skipped:
        _logger.warning("%d rows of %s have no image or no label, and were left out.", skipped, name)
    return folder


def _check_parquet(name: str, repo: str, revision: str | None, datasets: Any) -> None:
    """Download a dataset's parquet files, and raise `DataError` for one that would fill the memory."""
    from huggingface_hub import HfApi, constants

    try:
        if not constants.is_offline_mode() and not Path(repo).exists():
            HfApi().dataset_info(repo, revision=revision)  # fails at once, where `datasets` tries for half a minute
        files = datasets.load_dataset_builder(repo, revision=revision).config.data_files or {}
        downloaded = datasets.DownloadManager().download(dict(files))
    except Exception:  # `load_dataset` fails in the same way, and reports it
        return
    for file in (file for split in downloaded.values() for file in split):
        try:
            check_downloaded(file)
        except (OSError, ValueError) as e:
            raise DataError(f"{name} has a file that is not read ({why(e)}); name another dataset.") from e


def _write_split(name: str, data: Any, folder: Path, datasets: Any) -> int:
    """Write a split's images by class; return the number of rows without an image or a label."""
    columns = {type(feature).__name__: column for column, feature in reversed(data.features.items())}
    if not columns.keys() >= {"Image", "ClassLabel"}:
        features = printable(dict(data.features), 500)
        raise DataError(f"{name} has no column of images and one of classes, but {features}; name another.")
    classes = [str(c) for c in data.features[columns["ClassLabel"]].names]
    folders = [c.replace("/", "_") for c in classes]
    for written, original in zip(folders, classes, strict=True):
        odd = is_ignored(written) or not written.isprintable() or written != written.strip() or len(written) > 100
        if not written or odd or folders.count(written) > 1:
            raise DataError(f"{name} has a class {printable(original)!r}, which cannot name a folder; name another.")
    data = data.cast_column(columns["Image"], datasets.Image(decode=False))
    skipped = 0
    for number, row in enumerate(data):
        image, label = row[columns["Image"]], row[columns["ClassLabel"]]
        if image is None or label is None or label == -1:
            skipped += 1
            continue
        if not 0 <= label < len(classes):
            raise DataError(f"{name} has the label {label} in row {number}, and {len(classes)} classes; name another.")
        content = image["bytes"] or _read_downloaded(name, str(image["path"]), datasets)
        file = folder / folders[label] / f"{number:07}.{_suffix(content)}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return skipped


def _read_downloaded(name: str, path: str, datasets: Any) -> bytes:
    """Read an image that came as a file of its own; raise `DataError` for a file that was not downloaded."""
    from huggingface_hub import constants

    caches = [datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE]
    real = Path(os.path.realpath(path))
    if not any(Path(os.path.realpath(cache)) in real.parents for cache in caches):
        raise DataError(
            f"{name} names {printable(path)}, a file of this machine, as an image; do not use that dataset."
        )
    try:
        with open_regular(real) as stream:
            content = stream.read(_LARGEST + 1)
    except OSError as e:
        raise DataError(f"Cannot read {shown(real)} of {name} ({why(e)}); download the dataset again.") from e
    if len(content) > _LARGEST or _suffix(content) == _NO_IMAGE:
        raise DataError(f"{name} has {printable(path)} as an image, which is none; name another dataset.")
    return content


def _suffix(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            return str(image.format).lower()
    except Exception:  # Pillow's readers raise nearly anything for damaged images
        return _NO_IMAGE
