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

from sqzoo.data import Normalise
from sqzoo.files import write_tensors
from sqzoo.hashing import tensors_sha256
from sqzoo.models._base import ZooModel
from sqzoo.models.sparse import SparseFeatures, sparse_of

_CPU_CHUNK = 8  # images per forward pass: at 224 pixels their activations stay in the cache
_GPU_CHUNK = 256


def trunk_features(
    model: ZooModel,
    images: torch.Tensor,
    normalise: Normalise,
    digest: str,
    cache: str | os.PathLike[str] | None = None,
    dtype: torch.dtype = torch.float32,
    title: str = "",
) -> torch.Tensor | SparseFeatures:
    """Compute the frozen backbone's features of images, or take them from a cache.

    A cache is used only if its key and SHA-256 are right; it appears atomically. Where several processes need one that
    is not there, one builds it and the others wait.

    Args:
        model: its `forward_features` is run, in the mode that it is in.
        images: (N, H, W, 3) uint8, on the model's device.
        normalise: turns them into what the network takes.
        digest: of the images' pixels.
        cache: folder for the features, on a CPU; None keeps them in memory.
        dtype: of dense features.
        title: of the progress bar; "" shows none.

    Returns:
        Dense features (N, C, h, w) on a GPU, exact sparse ones on a CPU; `features[indices]` gives those of a batch.
    """
    with tqdm(total=len(images), desc=title, unit="img", disable=None if title else True, leave=False) as bar:
        if images.device.type != "cpu":
            return _dense(model, images, normalise, dtype, bar.update)
        if cache is None:
            return _sparse(model, images, normalise, bar.update)
        layers = [tensors_sha256(model.features.state_dict()), repr(model.features), repr(model.upsample)]
        key = hashlib.sha256("\n".join([*layers, repr(normalise), digest, "v2"]).encode()).hexdigest()
        file = Path(cache) / f"features-{key[:16]}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock")):  # the system releases it when its holder is killed
            ready = _read(file, key)
            if ready is None:
                ready = _sparse(model, images, normalise, bar.update)
                tensors = ready.tensors()
                write_tensors(file, tensors, {"key": key, "sha256": tensors_sha256(tensors)})
        return ready


@torch.inference_mode()
def _dense(
    model: ZooModel, images: torch.Tensor, normalise: Normalise, dtype: torch.dtype, done: Callable[[int], Any]
) -> torch.Tensor:
    features = torch.empty(0)
    for low in range(0, len(images), _GPU_CHUNK):
        maps = model.forward_features(normalise(images[low : low + _GPU_CHUNK]))
        if low == 0:
            shape = (len(images), *maps.shape[1:])
            features = torch.empty(shape, dtype=dtype, device=maps.device, memory_format=torch.channels_last)
        features[low : low + len(maps)] = maps
        done(len(maps))
    return features


@torch.inference_mode()
def _sparse(model: ZooModel, images: torch.Tensor, normalise: Normalise, done: Callable[[int], Any]) -> SparseFeatures:
    parts = []
    for low in range(0, len(images), _CPU_CHUNK):
        parts.append(sparse_of(model.forward_features(normalise(images[low : low + _CPU_CHUNK]))))
        done(len(parts[-1]))
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
