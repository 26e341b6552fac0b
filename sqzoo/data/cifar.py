"""Read CIFAR-10: parquet files as on the Hub, torchvision's `cifar-10-batches-py`, or a verified download."""

import io
import os
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from sqzoo.data.batches import LARGEST as BATCH_LARGEST
from sqzoo.data.batches import read_batch
from sqzoo.data.dataset import Dataset
from sqzoo.data.parquet import open_checked
from sqzoo.errors import ArgumentError, DataError, describe
from sqzoo.files import environment_path, file_sha256, open_regular

_FOLDER_VARIABLE = "SQZOO_CIFAR10"
HUB_REPO, HUB_COMMIT = "uoft-cs/cifar10", "0b2714987fa478483af9968de7c934580d0bb9a2"
_HUB_SHA256 = {
    "train": "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
    "test": "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
}
_COUNTS = {"train": 50_000, "test": 10_000}
_SIZE = 32
_PARQUET_LARGEST = 1 << 28  # bytes, of a file and of what it unpacks to: the training images take 120 MB
_PAGES = 4000  # in a file, and columns of row groups: the Hub's way, in row groups of 100 images, has 3,000
_ROWS = 100  # read at a time
_IMAGE_LARGEST = 1 << 16  # bytes of a PNG on average: one of 32x32 takes at most some 6,000
Split = Literal["train", "test"]


def cifar10(split: Split, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Return CIFAR-10's training (50,000) or test (10,000) images in their published order.

    Args:
        split: "train" or "test".
        root: a folder of parquet files in the layout of the Hub's `uoft-cs/cifar10`, or torchvision's
            `cifar-10-batches-py` (the folder or its parent). By default the folder in the environment variable
            SQZOO_CIFAR10, else the Hub's data set at a pinned commit, verified by SHA-256.

    Raises:
        DataError: files are missing, damaged or not CIFAR-10.
    """
    if split not in _COUNTS:
        raise ArgumentError(f"split must be 'train' or 'test', not {split!r}.")
    source = Path(root) if root else environment_path(_FOLDER_VARIABLE)
    data = _from_folder(source, split) if source else _read_parquet([_hub_file(split)], split)
    classes, per_class = np.unique(data.labels, return_counts=True)
    count = _COUNTS[split]
    complete = data.images.shape == (count, _SIZE, _SIZE, 3) and data.labels.shape == (count,)
    if not complete or classes.tolist() != list(range(10)) or len(set(per_class)) != 1:
        counts = dict(zip(classes[:11].tolist(), per_class[:11].tolist(), strict=True))
        raise DataError(
            f"{source or HUB_REPO} does not hold CIFAR-10's {split} split: expected {count} images of 32x32 in ten "
            f"equal classes, found an array {list(data.images.shape)} with these counts of labels: {counts}; fetch it "
            "again."
        )
    return data


def holds_cifar10(folder: Path) -> bool:
    """Whether a folder has one of the layouts that `cifar10` reads."""
    return any(_parquet(folder, split) for split in _COUNTS) or _batches(folder) is not None


def _parquet(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-*.parquet")) or sorted(folder.glob(f"plain_text/{split}-*.parquet"))


def _batches(folder: Path) -> Path | None:
    return next((f for f in (folder, folder / "cifar-10-batches-py") if os.path.lexists(f / "test_batch")), None)


def _from_folder(folder: Path, split: Split) -> Dataset:
    if parquet := _parquet(folder, split):
        return _read_parquet(parquet, split)
    if batches := _batches(folder):
        return _read_batches(batches, split)
    raise DataError(
        f"No CIFAR-10 {split} split in {folder}: expected {split}-*.parquet or a folder cifar-10-batches-py; "
        f"correct the path (argument root or environment variable {_FOLDER_VARIABLE})."
    )


def _read_parquet(files: list[Path], split: Split) -> Dataset:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as e:
        raise DataError("Reading parquet needs pyarrow; install it with: pip install 'sqzoo[train]'.") from e
    images: list[np.ndarray] = []
    labels: list[int] = []
    file = files[0]
    try:
        for file in files:
            with open_regular(file) as stream:
                if os.fstat(stream.fileno()).st_size > _PARQUET_LARGEST:
                    raise ValueError("it is larger than CIFAR-10")
                table = open_checked(stream, unpacked=_PARQUET_LARGEST, pages=_PAGES, values=_COUNTS["train"])
                facts = table.metadata
                if any(facts.schema.column(i).max_repetition_level for i in range(facts.num_columns)):
                    raise ValueError("a column holds lists")  # of which one row may be as long as it likes
                if len(labels) + facts.num_rows > _COUNTS[split]:
                    raise ValueError(f"{facts.num_rows:,} rows, more than CIFAR-10 has")
                for batch in table.iter_batches(_ROWS, columns=["img", "label"]):
                    if batch.nbytes > _ROWS * _IMAGE_LARGEST:  # all of one dictionary's entry, say
                        raise ValueError(f"rows of {batch.nbytes // _ROWS:,} bytes")
                    images += [_decode(b) for b in batch["img"].field("bytes").to_pylist()]
                    labels += batch["label"].to_pylist()
        return Dataset(np.stack(images), np.array(labels, np.int64))
    except Exception as e:  # pyarrow, Pillow and numpy each have their own errors for damaged or foreign files
        raise DataError(
            f"{file} is not a readable CIFAR-10 parquet file ({describe(e)}); expected columns img (PNG bytes) and "
            "label; fetch it again."
        ) from e


def _decode(data: bytes) -> np.ndarray:
    """Decode a PNG of 32x32 pixels; its size is checked first."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.size != (_SIZE, _SIZE):
            raise ValueError(f"an image of {image.width}x{image.height} pixels, not {_SIZE}x{_SIZE}")
        return np.asarray(image.convert("RGB"))


def _hub_file(split: Split) -> Path:
    from huggingface_hub import hf_hub_download

    name = f"plain_text/{split}-00000-of-00001.parquet"
    for again in (False, True):  # a damaged file in the Hub's cache is downloaded once more
        try:
            file = hf_hub_download(HUB_REPO, name, repo_type="dataset", revision=HUB_COMMIT, force_download=again)
        except Exception as e:  # network, authorisation and cache errors of huggingface_hub
            raise DataError(
                f"Could not get {name} of {HUB_REPO} from the Hub ({type(e).__name__}); connect to the network, or "
                f"name a folder that has it in {_FOLDER_VARIABLE}."
            ) from e
        sha256 = file_sha256(file)
        if sha256 == _HUB_SHA256[split]:
            return Path(file)
    raise DataError(
        f"{file}, downloaded twice from {HUB_REPO} on the Hub, has SHA-256 {sha256}, expected {_HUB_SHA256[split]}; "
        f"look for what changes files on the way, or name a folder that has the right one in {_FOLDER_VARIABLE}."
    )


def _read_batches(folder: Path, split: Split) -> Dataset:
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    batches = []
    for name in names:
        try:
            with open_regular(folder / name) as stream:
                batches.append(Dataset(*read_batch(stream.read(BATCH_LARGEST))))
        except (OSError, ValueError) as e:
            raise DataError(f"{folder / name} is not a readable CIFAR-10 batch ({describe(e)}); fetch it again.") from e
    return Dataset(np.concatenate([b.images for b in batches]), np.concatenate([b.labels for b in batches]))
