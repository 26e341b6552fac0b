"""The frozen backbone's output, computed once: dense on a GPU; on a CPU its non-zeros, in memory or cached on disk.

The backbone has no batch norm and the paper no augmentation, so its output for an image is a constant.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file
from tqdm import tqdm

from sqzoo.files import write_tensors
from sqzoo.hashing import tensors_sha256
from sqzoo.models._base import ZooModel
from sqzoo.train.sparse_features import SparseFeatures, sparse_of

Prepare = Callable[[torch.Tensor], torch.Tensor]  # uint8 images (N, H, W, 3) to what the network takes
_GPU_CHUNK = 256  # images per forward pass
_CPU_CHUNK = 8  # at 224 pixels their activations stay in the processor's cache


def trunk_features(
    model: ZooModel,
    images: torch.Tensor,
    prepare: Prepare,
    digest: str,
    cache: str | os.PathLike[str] | None,
    dtype: torch.dtype,
    title: str,
) -> torch.Tensor | SparseFeatures:
    """Compute the frozen backbone's features of images (N, H, W, 3): dense on a GPU, sparse on a CPU, or from `cache`.

    title: of the progress bar; "" shows none.
    """
    with tqdm(
        total=len(images), desc=f"backbone features, {title}", unit="img", disable=None if title else True, leave=False
    ) as bar:
        if images.device.type == "cpu":
            return sparse_features(model, images, prepare, digest, Path(cache) if cache else None, bar.update)
        return dense_features(model, images, prepare, dtype, bar.update)


@torch.inference_mode()
def dense_features(
    model: ZooModel, images: torch.Tensor, prepare: Prepare, dtype: torch.dtype, progress: Callable[[int], Any]
) -> torch.Tensor:
    """Compute the backbone's features (N, C, h, w) of images that are on the model's device, and keep them there."""
    features = torch.empty(0)
    for low in range(0, len(images), _GPU_CHUNK):
        maps = model.forward_features(prepare(images[low : low + _GPU_CHUNK]))
        if low == 0:
            shape = (len(images), *maps.shape[1:])
            features = torch.empty(shape, dtype=dtype, device=maps.device, memory_format=torch.channels_last)
        features[low : low + len(maps)] = maps
        progress(len(maps))
    return features


def sparse_features(
    model: ZooModel,
    images: torch.Tensor,
    prepare: Prepare,
    digest: str,
    folder: Path | None = None,
    progress: Callable[[int], Any] = lambda done: None,
) -> SparseFeatures:
    """Compute the backbone's features of images on the CPU, or take them from `folder` if it holds them.

    A cache is used only if its key and SHA-256 are right; it appears atomically. Where several processes need one that
    is not there, one builds it and the others wait.

    Args:
        model: its `forward_features` is run.
        images: (N, H, W, 3) uint8.
        prepare: turns them into what the network takes; its `repr` says how.
        digest: of the images' pixels.
        folder: where caches lie; None keeps the features in memory.
        progress: told the number of images of each chunk.
    """
    if folder is None:
        return _compute(model, images, prepare, progress)
    layers = [tensors_sha256(model.features.state_dict()), repr(model.features), repr(model.upsample), repr(prepare)]
    key = hashlib.sha256("\n".join([*layers, digest, "v2"]).encode()).hexdigest()
    file = folder / f"features-{key[:16]}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{file.name}.lock"):  # the system releases it when its holder is killed
        ready = _read(file, key)
        if ready is None:
            ready = _compute(model, images, prepare, progress)
            tensors = ready.tensors()
            write_tensors(file, tensors, {"key": key, "sha256": tensors_sha256(tensors)})
    return ready


@torch.inference_mode()
def _compute(model: ZooModel, images: torch.Tensor, prepare: Prepare, progress: Callable[[int], Any]) -> SparseFeatures:
    parts = []
    for low in range(0, len(images), _CPU_CHUNK):
        parts.append(sparse_of(model.forward_features(prepare(images[low : low + _CPU_CHUNK]))))
        progress(len(parts[-1]))
    return SparseFeatures.join(parts)


def _read(file: Path, key: str) -> SparseFeatures | None:
    """Return the cache in `file`, mapped to memory, or None unless it is the intact one of `key`."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(file) if metadata["key"] == key else {}
        return SparseFeatures(**tensors) if tensors_sha256(tensors) == metadata["sha256"] else None
    except Exception:  # whatever a damaged or missing file makes safetensors raise
        return None
