"""A model for the page: from pixels to probabilities and, as a second output, where each class was seen."""

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
from sqzoo.demo.engine import not_kept
from sqzoo.deploy.onnx_graph import FromPixels, frozen_copy, pixels_side, to_onnx
from sqzoo.errors import ArgumentError, WeightsError
from sqzoo.files import cache_folder, tensors_sha256, write_bytes
from sqzoo.images.reader import label_names
from sqzoo.models.blocks import GlobalPool
from sqzoo.models.upsample import Upsample
from sqzoo.registry import create_model

_FORMAT = 3  # raise it when the graph changes, so that kept files of the old kind are not used


class WithMaps(nn.Module):
    """Pictures (N, side, side, 3) uint8 to logits (N, classes) and class activation maps (N, classes, h, w).

    The maps are the logits before the global pool, Zhou et al. 2016, https://arxiv.org/abs/1512.04150: each place's
    own share in the class. Linear layers behind the pool are applied to each place alone.
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
        places = features.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        maps = self.net.forward_head(places).reshape(n, height, width, -1).permute(0, 3, 1, 2)
        return self.net.forward_head(features), maps


def _resolution(net: Any) -> int:
    """Return the image size that the trunk sees."""
    return int(net.upsample.crop if isinstance(net.upsample, Upsample) else net.pretrained_cfg["input_size"][1])


@dataclass(frozen=True)
class PageModel:
    """A model as the page gets it: the file that gzip packed, and what the page must know of it."""

    name: str
    packed: bytes
    about: dict[str, Any]


def page_model(name: str) -> PageModel:
    """Make a model of `create_model` ready for the page, or take it from the cache, where it was made before.

    Raises `ArgumentError` for a model without class maps, `SqzooError` as `create_model` does.
    """
    net: Any = create_model(name, pretrained=True)
    if not net.num_classes or net.in_chans != 3 or net.global_pool.side != 1:
        raise ArgumentError(f"{name!r} has no classes, no colours or no class maps; give a SqueezeNet-based model.")
    config: dict[str, Any] = net.pretrained_cfg
    tag = f"{config['architecture']}.{config['tag']}" if config.get("tag") and ":" not in name else name
    about: dict[str, Any] = {
        "tag": tag,
        "labels": label_names(net),
        "pixels": pixels_side(net),
        "resize": int(config["input_size"][1] / config["crop_pct"]),  # of the short side, before the centre crop
        "side": _resolution(net),
    }
    prepared = about | {k: config[k] for k in ("crop_pct", "mean", "std")} | {"sqzoo": sqzoo.__version__, "v": _FORMAT}
    seen = tensors_sha256(net.state_dict()) + json.dumps(prepared, sort_keys=True)
    key = hashlib.sha256(seen.encode()).hexdigest()
    about |= {"step": net.feature_info[-1]["reduction"]}
    if net.ood_threshold is not None:
        about["threshold"] = net.ood_threshold
    place, stem = cache_folder() / "demo", f"{config['architecture']}-{key[:16]}"
    packed = _kept(place, stem)
    if packed is None:
        side = int(about["pixels"])
        packed = gzip.compress(
            to_onnx(WithMaps(net).eval(), torch.zeros(2, side, side, 3, dtype=torch.uint8), {}), mtime=0
        )
        try:
            write_bytes(place / f"{stem}-{hashlib.sha256(packed).hexdigest()}.onnx.gz", packed)
        except OSError as e:
            raise not_kept(place, e) from e
    return PageModel(tag, packed, about)


def _kept(place: Path, stem: str) -> bytes | None:
    """Return a kept graph whose name has the hash of its bytes; None where there is none, or another."""
    for file in sorted(place.glob(f"{stem}-*.onnx.gz")):
        try:
            packed = read_packed(file)
        except (OSError, EOFError, zlib.error, WeightsError):
            continue
        if file.name == f"{stem}-{hashlib.sha256(packed).hexdigest()}.onnx.gz":
            return packed
    return None
