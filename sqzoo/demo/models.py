"""Export a model for the page: from pixels to logits and class activation maps."""

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

import sqzoo
from sqzoo.cache import read_packed
from sqzoo.demo.engine import cache_error
from sqzoo.deploy.onnx_graph import FromPixels, frozen_copy, to_onnx
from sqzoo.errors import ArgumentError, WeightsError
from sqzoo.files import cache_folder, tensors_sha256, write_bytes
from sqzoo.images.reader import label_names
from sqzoo.models.blocks import GlobalPool
from sqzoo.models.upsample import Upsample
from sqzoo.registry import create_model

_FORMAT = 3  # of the graph; raise it with each change, so that cached files of the old one are not used


class WithMaps(nn.Module):
    """Images (N, size, size, 3) uint8 to logits (N, classes) and class activation maps (N, classes, h, w).

    The maps are the logits before the global pool (Zhou et al. 2016, https://arxiv.org/abs/1512.04150): each position's
    share in the class. Linear layers after the pool are applied to each position alone.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = frozen_copy(net)
        self.pixels = FromPixels(self.net)
        self.pool: Any = self.net.global_pool
        if not self.net.linear_head:
            self.net.global_pool = GlobalPool("")

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.net.forward_features(self.pixels.prepare(images))
        if not self.net.linear_head:
            maps = self.net.forward_head(features)
            return self.pool(maps), maps
        n, channels, height, width = features.shape
        positions = features.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        maps = self.net.forward_head(positions).reshape(n, height, width, -1).permute(0, 3, 1, 2)
        return self.net.forward_head(features), maps


@dataclass(frozen=True)
class PageModel:
    """A model for the page: its name, its gzipped ONNX graph, and its labels, preprocessing and sizes."""

    name: str
    packed: bytes
    metadata: dict[str, Any]


def page_model(name: str) -> PageModel:
    """Export a model for the page, or take it from the cache.

    Args:
        name: as for `create_model`.

    Raises:
        ArgumentError: the model has no classes, no three channels or no class maps, or the cache cannot be written.
        SqzooError: as `create_model` does.
    """
    net: Any = create_model(name, pretrained=True)
    if not net.num_classes or net.in_chans != 3 or net.global_pool.side != 1:
        raise ArgumentError(f"{name!r} has no classes, no colours or no class maps; give a SqueezeNet-based model.")
    config: dict[str, Any] = net.pretrained_cfg
    tag = f"{config['architecture']}.{config['tag']}" if config.get("tag") and ":" not in name else name
    if tag.startswith("local-dir:"):  # without the path, since the page may be published
        tag = Path(tag.removeprefix("local-dir:")).resolve().name
    size = int(config["input_size"][1])
    metadata: dict[str, Any] = {
        "tag": tag,
        "labels": label_names(net),
        "pixels": size,
        "resize": int(size / config["crop_pct"]),  # of the short side, before the centre crop
        "side": int(net.upsample.crop) if isinstance(net.upsample, Upsample) else size,  # that the trunk sees
    }
    depends_on = metadata | {"sqzoo": sqzoo.__version__, "v": _FORMAT}
    depends_on |= {k: config[k] for k in ("crop_pct", "mean", "std")}
    seen = tensors_sha256(net.state_dict()) + json.dumps(depends_on, sort_keys=True)
    key = hashlib.sha256(seen.encode()).hexdigest()
    metadata |= {"step": net.feature_info[-1]["reduction"]}
    if net.ood_threshold is not None:
        metadata["threshold"] = net.ood_threshold
    cache, stem = cache_folder() / "demo", f"{config['architecture']}-{key[:16]}"
    packed = _cached(cache, stem)
    if packed is None:
        example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
        packed = gzip.compress(to_onnx(WithMaps(net).eval(), example, {}), mtime=0)
        try:
            write_bytes(cache / f"{stem}-{hashlib.sha256(packed).hexdigest()}.onnx.gz", packed)
        except OSError as e:
            raise cache_error(cache, e) from e
    return PageModel(tag, packed, metadata)


def _cached(cache: Path, stem: str) -> bytes | None:
    """Return a cached graph whose name has the SHA-256 of its bytes, or None."""
    for file in sorted(cache.glob(f"{stem}-*.onnx.gz")):
        try:
            packed, _ = read_packed(file)
        except (OSError, EOFError, zlib.error, WeightsError):
            continue
        if file.name == f"{stem}-{hashlib.sha256(packed).hexdigest()}.onnx.gz":
            return packed
    return None
