"""Read the manifest of weights: `manifest.json` is the only source of tags, hashes and figures."""

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
    """A weights tag: its file, how images are prepared for it, how it was made and what was measured."""

    tag: str
    file: str  # in the package, or in the Hub repository `hub`
    sha256: str  # of the file
    size: int  # of the file, in bytes
    dtype: str
    holds: str  # "complete", or "head": head weights, to be joined with the ImageNet trunk `trunk`
    trunk: str
    num_classes: int
    input_size: tuple[int, int, int]
    crop_pct: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    params: int
    macs: int  # multiply-adds of convolutions and linear layers for one image of `resolution` pixels
    licence: str
    provenance: str
    model_args: dict[str, Any] = field(default_factory=dict)  # of the constructor, upsample and temperature included
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # each with its result file
    data: dict[str, Any] = field(default_factory=dict)
    stored: str = "plain"  # or "coded", see `sqzoo.weights.coded`
    ood_threshold: float | None = None  # see `sqzoo.uncertainty`; None without validation images to find it on
    calibration: dict[str, Any] = field(default_factory=dict)  # how threshold and temperature were found
    hub: str | None = None  # the organisation's Hub repository that has the file
    commit: str | None = None  # in that repository

    @property
    def architecture(self) -> str:
        """The model name before the dot."""
        return self.tag.partition(".")[0]

    @property
    def resolution(self) -> int:
        """Image size in pixels that the trunk sees, after the network's own enlargement."""
        upsample = self.model_args.get("upsample", self.input_size[1])
        return int(upsample[-1] if isinstance(upsample, list) else upsample)

    @property
    def path(self) -> Path:
        """The file's path in the package."""
        return FOLDER / self.file


def organisation() -> str:
    """Return the Hub organisation of our repositories: $SQZOO_HUB_ORG, or "sqzoo"."""
    return os.environ.get("SQZOO_HUB_ORG", "sqzoo")


@cache
def read_manifest() -> dict[str, Entry]:
    """Return all entries by tag; an architecture's default tag comes first."""
    entries = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["weights"]
    tuples = ("input_size", "mean", "std")
    fields: list[dict[str, Any]] = [{k: tuple(v) if k in tuples else v for k, v in e.items()} for e in entries]
    return {e["tag"]: Entry(**e) for e in fields}


def architectures() -> list[str]:
    """Return the architectures that have weights."""
    return list(dict.fromkeys(entry.architecture for entry in read_manifest().values()))


def tags(architecture: str) -> list[str]:
    """Return the tags of an architecture, such as `sq1.ft_cifar10`, the default first."""
    return [tag for tag, entry in read_manifest().items() if entry.architecture == architecture]


def get_weights(name: str) -> Entry:
    """Return the manifest entry of a tag (`sq1.paper_cifar10`) or of an architecture's default tag (`sq1`).

    Raises:
        UnknownModelError: there is none.
    """
    known = read_manifest()
    for tag in (name, *tags(name)):
        if tag in known:
            return known[tag]
    if Path(name, "report.html").is_file():
        report = Path(name, "report.html")
        raise UnknownModelError(f"{name!r} is the folder of a run, not a weights tag; its report is {report}.")
    listed = ", ".join(known) or "none"
    raise UnknownModelError(f"No weights named {name!r}.{did_you_mean(name, known)} There are: {listed}.")
