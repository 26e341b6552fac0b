"""A tiny weights tag: a parent's network compressed, measured, and put into the package beside it."""

import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import load

from sqzoo.compress.quantize import compress
from sqzoo.compress.release import add, entry_of, read_run
from sqzoo.data import Dataset
from sqzoo.environment import environment
from sqzoo.errors import ArgumentError, WeightsError, shown
from sqzoo.files import read_json, tensors_sha256
from sqzoo.models.base import ZooModel
from sqzoo.registry import check_name, create_model
from sqzoo.train.evaluation import evaluate
from sqzoo.weights import get_weights, load_trunk, trunk_source
from sqzoo.weights.coded import decode

_OF_THE_FILE = (
    "tag",
    "file",
    "sha256",
    "size",
    "ood_threshold",
    "calibration",
)  # what a parent's entry says of its own file


def make_tiny(
    parent: str,
    tag: str,
    root: str | os.PathLike[str],
    train_set: Dataset,
    test_set: Dataset,
    *,
    size: int = 340_000,
    images: int = 512,
    held: int = 1000,
    trunk: str | os.PathLike[str] | None = None,
    progress: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Compress `parent` to at most `size` bytes and put it under `root` (a checkout) as `tag`; return the record.

    parent: a weights tag, or the folder of a finished run, of the tag's architecture. images: training images whose
    activations steer the rounding. held: training images, of those that the parent held out if it did, on which
    sensitivity and accuracy are measured. The test images are looked at once, by what came out. The record goes to
    benchmarks/results/size/tiny. Raises `ArgumentError` or `WeightsError`.
    """
    began, about = time.perf_counter(), environment()
    model, entry = _parent(parent, tag, trunk)
    if not (Path(root) / "sqzoo" / "weights" / "manifest.json").is_file():
        raise ArgumentError(
            f"{shown(root)} is no checkout of sqzoo (sqzoo/weights/manifest.json); name one with --root."
        )
    parents_own = entry["recipe"].get("hold_out", 0)
    kept, apart = train_set.split(min(held, parents_own or held))
    sensitive = train_set[apart[:: max(1, len(apart) // 250)]]
    made = compress(
        model, train_set[kept[:images]], sensitive, size, metadata={"format": "pt", "tag": tag}, progress=progress
    )
    _differs_from_trunk(made.model, entry["trunk"], trunk)
    test, held_out, parents = (
        dataclasses.asdict(evaluate(*of))
        for of in ((made.model, test_set), (made.model, train_set[apart]), (model, train_set[apart]))
    )
    recipe = {
        "parent": Path(parent).name,
        "parent_sha256": tensors_sha256(model.state_dict()),
        "size": size,
        "images": images,
        "hold_out": parents_own,
    }
    metrics = {
        "test_top1": test["top1"],
        "test_loss": test["loss"],
        "parent_test_top1": entry["metrics"]["test_top1"],
        "selected_on": "held_out",
        "source": f"benchmarks/results/size/tiny/{tag}.json",
    }
    entry |= {"holds": "complete", "stored": "coded", "recipe": recipe, "metrics": metrics}
    entry |= {
        "provenance": f"{entry['provenance']} Compressed by sqzoo, which changed every weight.",
        "data": {"train_digest": train_set.digest, "test_digest": test_set.digest},
    }
    record = {
        "tag": tag,
        "bytes": len(made.data),
        "parent_bytes": sum(t.numel() * t.itemsize for t in model.state_dict().values()),
        "test": test,
        "held_out": held_out,
        "parent": {"test_top1": metrics["parent_test_top1"], "held_out": parents},
        "load_seconds": _load_seconds(made.data, made.model),
        "recipe": recipe,
        "layers": made.layers,
        "seconds": round(time.perf_counter() - began, 1),
        "environment": about,
    }
    add(Path(root), entry, made.data, record)
    return record


def _load_seconds(data: bytes, model: nn.Module) -> float:
    """Return the seconds from a file's bytes to a loaded model, hash included; the best of five."""
    took = []
    for _ in range(5):
        began = time.perf_counter()
        hashlib.sha256(data).hexdigest()
        tensors = decode(load(data), sum(p.numel() for p in model.parameters()), "")
        model.load_state_dict(tensors, strict=True)
        took.append(time.perf_counter() - began)
    return round(min(took), 4)


def _differs_from_trunk(model: nn.Module, name: str, trunk: str | os.PathLike[str] | None) -> None:
    """Raise `WeightsError` where a tensor is the ImageNet trunk's own, in half precision too."""
    with trunk_source(trunk):
        theirs = load_trunk(name)
    own = model.state_dict()
    same = [k for k, v in theirs.items() if k in own and torch.equal(own[k].half(), v.half())]
    if same:
        raise WeightsError(f"{same} are as they were in the ImageNet trunk; give fewer bytes.")


def _parent(name: str, tag: str, trunk: str | os.PathLike[str] | None) -> tuple[ZooModel, dict[str, Any]]:
    """Return the parent, ready for images, and its manifest entry or, for a run's folder, what that would be."""
    architecture = tag.partition(".")[0]
    check_name(architecture)
    if not re.fullmatch(r"\w+\.[\w-]+", tag):
        raise ArgumentError(f"{tag!r} names no weights; give ARCHITECTURE.NAME, such as {architecture}.tiny_cifar10.")
    if not (Path(name) / "result.json").is_file():
        entry = get_weights(name)
        if entry.architecture != architecture:
            raise ArgumentError(f"{name} is of {entry.architecture}, the tag {tag!r} of {architecture}; correct one.")
        about = {k: v for k, v in dataclasses.asdict(entry).items() if k not in _OF_THE_FILE}
        about["model_args"] = {k: v for k, v in entry.model_args.items() if k != "temperature"}  # fitted anew
        parent: ZooModel = create_model(name, pretrained=True, temperature=1.0, trunk=trunk)  # type: ignore[assignment]
        return parent, {k: v for k, v in about.items() if v is not None}
    if "recipe" not in read_json(Path(name) / "result.json"):
        raise ArgumentError(
            f"{shown(name)} is a model of your own images; a tag of the package is compressed from a run on CIFAR-10."
        )
    result, tensors = read_run(name, architecture)
    about = entry_of(result, tag, name)
    model: ZooModel = create_model(architecture, **about["model_args"]).eval()  # type: ignore[assignment]
    if about["holds"] == "head":
        with trunk_source(trunk):
            own = model.state_dict()
            tensors |= {k: v for k, v in load_trunk(about["trunk"]).items() if k in own}
    model.load_state_dict(tensors, strict=True)
    model.pretrained_cfg = {k: about[k] for k in ("input_size", "crop_pct", "mean", "std")}
    return model, about
