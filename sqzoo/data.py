"""CIFAR-10 as uint8 arrays with a digest of its pixels, and the one path from uint8 images to model input."""

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

from sqzoo.cifar_batch import LARGEST as BATCH_LARGEST
from sqzoo.cifar_batch import read_batch
from sqzoo.errors import ArgumentError, DataError, printable
from sqzoo.files import environment_path, open_regular
from sqzoo.hashing import file_sha256
from sqzoo.images.opener import as_rgb as as_rgb
from sqzoo.images.opener import open_image as open_image

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
NORMALISATIONS = {"imagenet": IMAGENET, "cifar10": CIFAR10}

_FOLDER_VARIABLE = "SQZOO_CIFAR10"
_HUB_REPO, _HUB_COMMIT = "uoft-cs/cifar10", "0b2714987fa478483af9968de7c934580d0bb9a2"
_HUB_SHA256 = {
    "train": "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
    "test": "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
}
_COUNTS = {"train": 50_000, "test": 10_000}
_SIDE = 32
_PARQUET_LARGEST = 1 << 28  # bytes: the training images take 120 MB
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Dataset:
    """Labelled images in memory: `images` (N, H, W, 3) uint8, `labels` (N,) int64."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: np.ndarray | slice) -> "Dataset":
        return Dataset(self.images[index], self.labels[index])

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (training indices, indices of the `count` held-out images); see `hold_out`."""
        return hold_out(self.labels, count)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels, then of the labels as uint8, in order."""
        pixels = hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()
        labels = hashlib.sha256(self.labels.astype(np.uint8).data).hexdigest()
        return hashlib.sha256(f"{pixels} {labels}".encode()).hexdigest()


def cifar10(split: Split, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Return CIFAR-10's train (50,000) or test (10,000) images in their published order.

    root: a folder of parquet files in the layout of the Hub's `uoft-cs/cifar10`, or torchvision's
    `cifar-10-batches-py` (the folder itself or its parent). Without it: the folder in the environment variable
    SQZOO_CIFAR10, else the Hub's data set at a pinned commit, whose files are checked by SHA-256.
    Raises `DataError` where files are missing, damaged or not CIFAR-10.
    """
    if split not in _COUNTS:
        raise ArgumentError(f"split must be 'train' or 'test', not {split!r}.")
    source = Path(root) if root else environment_path(_FOLDER_VARIABLE)
    data = _from_folder(source, split) if source else _read_parquet([_hub_file(split)], split)
    classes, per_class = np.unique(data.labels, return_counts=True)
    count = _COUNTS[split]
    whole = data.images.shape == (count, 32, 32, 3) and data.labels.shape == (count,)
    if not whole or classes.tolist() != list(range(10)) or len(set(per_class)) != 1:
        found = dict(zip(classes[:11].tolist(), per_class[:11].tolist(), strict=True))
        raise DataError(
            f"{source or _HUB_REPO} does not hold CIFAR-10's {split} split: expected {count} images of 32x32 in ten "
            f"equal classes, found an array {list(data.images.shape)} with these counts of labels: {found}; fetch it "
            "again."
        )
    return data


def holds_cifar10(folder: Path) -> bool:
    """Whether a folder is laid out as one of those that `cifar10` reads."""
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
        import pyarrow.parquet as pq
    except ImportError as e:
        raise DataError("Reading parquet needs pyarrow; install it with: pip install 'sqzoo[train]'.") from e
    images: list[np.ndarray] = []
    labels: list[int] = []
    for file in files:
        try:
            with open_regular(file) as stream:
                if os.fstat(stream.fileno()).st_size > _PARQUET_LARGEST:
                    raise ValueError("it is larger than CIFAR-10")
                table = pq.ParquetFile(stream)
                about = table.metadata
                groups = [about.row_group(i) for i in range(about.num_row_groups)]
                unpacked = sum(g.column(c).total_uncompressed_size for g in groups for c in range(about.num_columns))
                if len(labels) + about.num_rows > _COUNTS[split] or unpacked > _PARQUET_LARGEST:
                    raise ValueError(f"{about.num_rows:,} rows of {unpacked:,} bytes, more than CIFAR-10 has")
                for batch in table.iter_batches(100, columns=["img", "label"]):
                    images += [_tiny_picture(b) for b in batch["img"].field("bytes").to_pylist()]
                    labels += batch["label"].to_pylist()
        except Exception as e:  # pyarrow, Pillow and numpy each have their own errors for damaged or foreign files
            raise DataError(
                f"{file} is not a readable CIFAR-10 parquet file ({_reason(e)}); expected columns img (PNG bytes) and "
                "label; fetch it again."
            ) from e
    try:
        return Dataset(np.stack(images), np.array(labels, np.int64))
    except (TypeError, ValueError, OverflowError) as e:
        raise DataError(
            f"{files[0]} is not a readable CIFAR-10 parquet file ({_reason(e)}); expected rows of a picture and a "
            "label; fetch it again."
        ) from e


def _tiny_picture(data: bytes) -> np.ndarray:
    """Decode a picture of 32x32 pixels, whose size is compared before it is decoded."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.size != (_SIDE, _SIDE):
            raise ValueError(f"a picture of {image.width}x{image.height} pixels, not {_SIDE}x{_SIDE}")
        return np.asarray(image.convert("RGB"))


def _hub_file(split: Split) -> Path:
    from huggingface_hub import hf_hub_download

    name = f"plain_text/{split}-00000-of-00001.parquet"
    for again in (False, True):  # a damaged file in the Hub's cache is fetched once more
        try:
            file = hf_hub_download(_HUB_REPO, name, repo_type="dataset", revision=_HUB_COMMIT, force_download=again)
        except Exception as e:  # network, authorisation and cache errors of huggingface_hub
            raise DataError(
                f"Could not get {name} of {_HUB_REPO} from the Hub ({type(e).__name__}); connect to the network, or "
                f"name a folder that has it in {_FOLDER_VARIABLE}."
            ) from e
        found = file_sha256(file)
        if found == _HUB_SHA256[split]:
            return Path(file)
    raise DataError(
        f"{file}, fetched twice from {_HUB_REPO} on the Hub, has SHA-256 {found}, expected {_HUB_SHA256[split]}; "
        f"look for what changes files on the way, or name a folder that has the right one in {_FOLDER_VARIABLE}."
    )


def _reason(e: Exception) -> str:
    """Return an error's type and its first sentence, to stand in brackets within ours."""
    return printable(f"{type(e).__name__}: {str(e).strip()}".splitlines()[0].partition(". ")[0].rstrip(".: "), 300)


def _read_batches(folder: Path, split: Split) -> Dataset:
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    images, labels = [], []
    for name in names:
        try:
            with open_regular(folder / name) as stream:
                pixels, classes = read_batch(stream.read(BATCH_LARGEST))
            images.append(pixels)
            labels.append(classes)
        except (OSError, ValueError) as e:
            raise DataError(f"{folder / name} is not a readable CIFAR-10 batch ({_reason(e)}); fetch it again.") from e
    return Dataset(np.concatenate(images), np.concatenate(labels))


def hold_out(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (training indices, held-out indices): `count` images, the last of each class in equal parts.

    The choice depends on the labels alone, so that every run, seed and machine holds out the same images. Raises
    `ArgumentError` unless each class can give its part and keep an image.
    """
    classes, per_class = np.unique(labels, return_counts=True)
    if count == 0:
        return np.arange(len(labels)), np.arange(0)
    if count < 0 or count % len(classes) or count // len(classes) >= per_class.min():
        raise ArgumentError(
            f"hold_out must be a multiple of {len(classes)}, the number of classes, below "
            f"{len(classes) * per_class.min()}, not {count}."
        )
    held = np.sort(np.concatenate([np.flatnonzero(labels == c)[-(count // len(classes)) :] for c in classes]))
    return np.setdiff1d(np.arange(len(labels)), held), held


@dataclass(frozen=True)
class Preprocessing:
    """What stands between uint8 images and the network: resize to side / crop_pct, centre crop, normalise.

    The defaults are the paper's: 256, then the central 224. With crop_pct 1 all of the picture is seen.
    """

    side: int = 224
    crop_pct: float = 0.875
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]

    @staticmethod
    def of(config: Mapping[str, Any]) -> "Preprocessing":
        """Take it from a model's `pretrained_cfg`."""
        return Preprocessing(config["input_size"][1], config["crop_pct"], tuple(config["mean"]), tuple(config["std"]))

    def __call__(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Turn square (N, H, W, 3) uint8 images into (N, 3, side, side) float32, channels last.

        Bit for bit what torchvision's Resize, CenterCrop, ToTensor and Normalize give for PIL images, where 32 pixels
        grow by a whole factor, as in all recipes; at other sizes PyTorch's fixed-point weights are shorter than
        Pillow's, and a few pixels are a level or two of 255 apart.
        """
        x = torch.as_tensor(images if isinstance(images, torch.Tensor) else np.require(images, requirements="W"))
        x = x.permute(0, 3, 1, 2)
        whole = int(self.side / self.crop_pct)
        if x.shape[-1] != whole or x.shape[-2] != whole:
            x = F.interpolate(x, size=(whole, whole), mode="bilinear", antialias=True)
        low = round((whole - self.side) / 2)
        x = x[:, :, low : low + self.side, low : low + self.side]
        return normalise(x, self.mean, self.std)


@dataclass(frozen=True)
class Normalise:
    """Normalise uint8 images: over 255, minus the mean, over the standard deviation.

    Args:
        mean, std: of each channel, in 0...1.
    """

    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]

    @staticmethod
    def of(model: nn.Module) -> "Normalise":
        """Return that of a model's `pretrained_cfg`; grey images take the mean of the three channels' constants."""
        config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        mean, std = tuple(config["mean"]), tuple(config["std"])
        if getattr(model, "in_chans", len(mean)) == 1 < len(mean):
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        return Normalise(mean, std)

    def __call__(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Turn uint8 images (N, H, W, C) into float32 (N, C, H, W), channels last."""
        x = torch.as_tensor(images if isinstance(images, torch.Tensor) else np.require(images, requirements="W"))
        return normalise(x.permute(0, 3, 1, 2), self.mean, self.std)


def normalise(x: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Turn (N, 3, H, W) uint8 in 0...255 into float32, minus `mean`, over `std` (both in 0...1), channels last."""
    x = x.to(torch.float32, memory_format=torch.channels_last).div_(255)
    # Whole rows of pixels at a time: by single pixels, of three values each, it takes four times as long.
    rows = x.permute(0, 2, 3, 1).view(-1, x.shape[3] * x.shape[1])
    rows.sub_(_row(mean, x.shape[3], x.device)).div_(_row(std, x.shape[3], x.device))
    return x


@lru_cache(maxsize=32)
def _row(values: tuple[float, ...], width: int, device: torch.device) -> torch.Tensor:
    """Return the constants of a row of pixels, put on the device once: in a training step a copy there would block."""
    return torch.tensor(values, dtype=torch.float32).repeat(width).to(device)
