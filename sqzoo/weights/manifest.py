"""The manifest of weights: `manifest.json` beside this file is the only source of tags, hashes and figures."""

import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sqzoo.errors import UnknownModelError, did_you_mean

FOLDER = Path(__file__).parent
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Entry:
    """One weights tag: which file, how to prepare images for it, how it was made and what was measured.

    `holds` is "complete" (the file is the whole network) or "head" (it is joined with the ImageNet trunk `trunk`).
    `stored` is "plain", or "coded" where the weights are decoded as they load (see `coding.py`). `size` is in bytes,
    `sha256` that of the whole file; `metrics` names the result file of each figure. The file lies in the package or,
    where `hub` is given, in the organisation's Hub repository of that name at the commit `commit`.
    `model_args` are the constructor's arguments that rebuild the network, its enlargement and temperature among them.
    `ood_threshold` is that of `sqzoo.uncertainty`, and `calibration` says how it and the temperature were found;
    without training images held out to find them on there are none. `macs` counts the multiply-adds of the convolutions
    and linear layers for one image of `resolution` pixels.
    """

    tag: str
    file: str
    sha256: str
    size: int
    dtype: str
    holds: str
    trunk: str
    num_classes: int
    input_size: tuple[int, int, int]
    crop_pct: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    params: int
    macs: int
    licence: str
    provenance: str
    model_args: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    stored: str = "plain"
    ood_threshold: float | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    hub: str | None = None
    commit: str | None = None

    @property
    def architecture(self) -> str:
        """The model name before the dot."""
        return self.tag.partition(".")[0]

    @property
    def resolution(self) -> int:
        """Image size in pixels that the trunk sees: the enlarged one, where the network enlarges."""
        upsample = self.model_args.get("upsample", self.input_size[1])
        return int(upsample[-1] if isinstance(upsample, list) else upsample)

    @property
    def path(self) -> Path:
        """Where the file lies in the package."""
        return FOLDER / self.file


def organisation() -> str:
    """Return the Hub organisation that holds our repositories: SQZOO_HUB_ORG, or "sqzoo"."""
    return os.environ.get("SQZOO_HUB_ORG", "sqzoo")


@cache
def read_manifest() -> dict[str, Entry]:
    """Return all entries by tag; an architecture's default comes first."""
    entries = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["weights"]
    tuples = ("input_size", "mean", "std")
    fields: list[dict[str, Any]] = [{k: tuple(v) if k in tuples else v for k, v in e.items()} for e in entries]
    return {e["tag"]: Entry(**e) for e in fields}


def architectures() -> list[str]:
    """Return the architectures that have weights."""
    return list(dict.fromkeys(entry.architecture for entry in read_manifest().values()))


def tags(architecture: str) -> list[str]:
    """Return the architecture's tags, `sq1.ft_cifar10` form, the default first."""
    return [tag for tag, entry in read_manifest().items() if entry.architecture == architecture]


def get_weights(name: str) -> Entry:
    """Return the entry of a tag (`sq1.paper_cifar10`) or of an architecture's default tag (`sq1`).

    Raises `UnknownModelError` where there is none.
    """
    known = read_manifest()
    if name in known:
        return known[name]
    own = tags(name)
    if own:
        return known[own[0]]
    there = ", ".join(known) or "none"
    raise UnknownModelError(f"No weights named {name!r}.{did_you_mean(name, known)} There are: {there}.")
