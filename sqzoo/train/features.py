"""The frozen backbone's features, constant, so computed once: dense on a GPU; sparse, maybe cached, on a CPU."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import safe_open
from tqdm import tqdm

from sqzoo.data import Normalise
from sqzoo.files import tensors_sha256, write_tensors
from sqzoo.models.base import ZooModel
from sqzoo.models.sparse import SparseFeatures, sparse_shard

_CPU_CHUNK, _GPU_CHUNK = 8, 256  # images per forward pass: 8 at 224 pixels stay in a CPU's cache
_SHARD = 2000  # images per file of a cache


def trunk_features(
    model: ZooModel,
    images: torch.Tensor,
    normalise: Normalise,
    digest: str,
    cache: str | os.PathLike[str] | None = None,
    dtype: torch.dtype = torch.float32,
    title: str = "",
) -> torch.Tensor | SparseFeatures:
    """Compute the frozen backbone's features of images.

    Args:
        images: (N, H, W, 3) uint8, on the model's device.
        digest: of their pixels.
        cache: folder for a CPU's features; None keeps them in memory. A file is used only if its key and SHA-256 match;
            of several processes that need a missing file, one computes it and the others wait.
        title: of the progress bar; "" shows none.

    Returns:
        Dense features (N, C, h, w) on a GPU, the same ones as their non-zeros on a CPU.
    """
    hidden = None if title else True
    with torch.inference_mode(), tqdm(total=len(images), desc=title, unit="img", disable=hidden, leave=False) as bar:

        def maps_of(shard: torch.Tensor) -> Iterator[torch.Tensor]:
            for chunk in shard.split(_CPU_CHUNK if shard.device.type == "cpu" else _GPU_CHUNK):
                yield model.forward_features(normalise(chunk))
                bar.update(len(chunk))

        if images.device.type != "cpu":
            features = torch.empty(0)
            for number, maps in enumerate(maps_of(images)):
                if number == 0:
                    shape = (len(images), *maps.shape[1:])
                    features = maps.new_empty(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
                features[number * _GPU_CHUNK :][: len(maps)] = maps
            return features
        layers = [tensors_sha256(model.features.state_dict()), repr(model.features), repr(model.upsample)]
        key = hashlib.sha256("\n".join([*layers, repr(normalise), digest, "v2"]).encode()).hexdigest()
        shards = []
        for number, shard in enumerate(images.split(_SHARD)):
            if cache is None:
                shards.append(sparse_shard(maps_of(shard)))
                continue
            file = Path(cache) / f"features-{key[:16]}-{number}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_name(f".{file.name}.lock")):  # the system releases it when its holder is killed
                if (tensors := _read(file, key)) is None:
                    tensors = sparse_shard(maps_of(shard))
                    write_tensors(file, tensors, {"key": key, "sha256": tensors_sha256(tensors)})
                    tensors = _read(file, key) or tensors  # memory-mapped in place of in memory
                shards.append(tensors)
        return SparseFeatures.of(shards)


def _read(file: Path, key: str) -> dict[str, torch.Tensor] | None:
    """Return the shard in `file`, memory-mapped; None unless it is intact and of this key."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
            tensors = {n: opened.get_tensor(n) for n in opened.keys()} if metadata["key"] == key else {}
        return tensors if tensors_sha256(tensors) == metadata["sha256"] else None
    except Exception:  # whatever a damaged or missing file makes safetensors raise
        return None
