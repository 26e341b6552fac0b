"""Make a tiny weights tag: compress a parent, measure it, and add it to the package in a checkout."""

import dataclasses
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from sqzoo.compress.network import compress
from sqzoo.compress.release import add, entry_of, read_run
from sqzoo.data import Dataset
from sqzoo.environment import environment
from sqzoo.errors import ArgumentError, WeightsError, shown
from sqzoo.evaluation import evaluate
from sqzoo.files import read_json, tensors_sha256
from sqzoo.models.base import ZooModel
from sqzoo.registry import check_name, create_model
from sqzoo.weights import get_weights, load_trunk, trunk_source

_OF_ITS_FILE = ("tag", "file", "sha256", "size", "ood_threshold", "calibration")  # fields that a child does not inherit


def make_tiny(
    parent: str,
    tag: str,
    root: str | os.PathLike[str],
    train_set: Dataset,
    test_set: Dataset,
    *,
    size: int = 340_000,
    images: int = 512,
    val_images: int = 1000,
    trunk: str | os.PathLike[str] | None = None,
    progress: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Compress a parent's weights into a new tag of a checkout.

    Args:
        parent: a weights tag or the folder of a finished run, of the tag's architecture.
        tag: ARCHITECTURE.NAME of the new weights.
        root: the checkout.
        train_set: CIFAR-10's training images.
        test_set: evaluated once, at the end.
        size: maximum size of the file in bytes.
        images: number of training images whose activations steer the rounding.
        val_images: number of training images that measure sensitivity and accuracy, from the parent's own validation
            images if it had any.
        trunk: file or folder with the ImageNet trunk, for a parent stored as a head.
        progress: called with a line per layer.

    Returns:
        The record, also written to benchmarks/results/size/tiny.

    Raises:
        ArgumentError: parent, tag and checkout do not fit, or `size` cannot be reached.
        WeightsError: the parent's weights cannot be read, or the result still has a tensor of the ImageNet trunk.
    """
    began, started = time.perf_counter(), environment()
    model, entry = _parent(parent, tag, trunk)
    if not (Path(root) / "sqzoo" / "weights" / "manifest.json").is_file():
        raise ArgumentError(f"{shown(root)} is not a checkout of sqzoo (sqzoo/weights/manifest.json); give --root.")
    hold_outs = entry["recipe"].get("hold_out", 0)
    train_idx, val_idx = train_set.split(min(val_images, hold_outs or val_images))
    val_set = train_set[val_idx]
    made = compress(
        model,
        train_set[train_idx[:images]],
        val_set[:: max(1, len(val_idx) // 250)],
        size,
        metadata={"format": "pt", "tag": tag},
        progress=progress,
    )
    _check_changed(made.model, entry["trunk"], trunk)
    pairs = ((made.model, test_set), (made.model, val_set), (model, val_set))
    test, val, parent_val = (dataclasses.asdict(evaluate(*pair)) for pair in pairs)
    recipe = {
        "parent": Path(parent).name,
        "parent_sha256": tensors_sha256(model.state_dict()),
        "size": size,
        "images": images,
        "hold_out": hold_outs,
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
        "held_out": val,
        "parent": {"test_top1": metrics["parent_test_top1"], "held_out": parent_val},
        "recipe": recipe,
        "layers": made.layers,
        "seconds": round(time.perf_counter() - began, 1),
        "environment": started,
    }
    add(Path(root), entry, made.data, record)
    return record


def _check_changed(model: nn.Module, name: str, trunk: str | os.PathLike[str] | None) -> None:
    """Raise `WeightsError` if a tensor is still the ImageNet trunk's, also in half precision."""
    with trunk_source(trunk):
        imagenet = load_trunk(name)
    state = model.state_dict()
    if same := [k for k, v in imagenet.items() if k in state and torch.equal(state[k].half(), v.half())]:
        raise WeightsError(f"{same} are still the ImageNet trunk's; give fewer bytes.")


def _parent(name: str, tag: str, trunk: str | os.PathLike[str] | None) -> tuple[ZooModel, dict[str, Any]]:
    """Return the parent, and its manifest entry or, for a run's folder, what that would be."""
    architecture = tag.partition(".")[0]
    check_name(architecture)
    if not re.fullmatch(r"\w+\.[\w-]+", tag):
        raise ArgumentError(f"{tag!r} names no weights; give ARCHITECTURE.NAME, such as {architecture}.tiny_cifar10.")
    if not (Path(name) / "result.json").is_file():
        weights = get_weights(name)
        if weights.architecture != architecture:
            raise ArgumentError(f"{name} is of {weights.architecture}, the tag {tag!r} of {architecture}; correct one.")
        entry = {k: v for k, v in dataclasses.asdict(weights).items() if k not in _OF_ITS_FILE and v is not None}
        entry["model_args"] = {k: v for k, v in weights.model_args.items() if k != "temperature"}  # fitted anew
        parent: ZooModel = create_model(name, pretrained=True, temperature=1.0, trunk=trunk)  # type: ignore[assignment]
        return parent, entry
    if "recipe" not in read_json(Path(name) / "result.json"):
        raise ArgumentError(
            f"{shown(name)} is a model of your own images; give a run on CIFAR-10, or make a small file of this one: "
            f"sqzoo export {shown(name)} --format onnx-4bit --data FOLDER."
        )
    result, tensors = read_run(name, architecture)
    entry = entry_of(result, tag, name)
    model: ZooModel = create_model(architecture, **entry["model_args"]).eval()  # type: ignore[assignment]
    if entry["holds"] == "head":
        with trunk_source(trunk):
            tensors |= {k: v for k, v in load_trunk(entry["trunk"]).items() if k in model.state_dict()}
    model.load_state_dict(tensors, strict=True)
    model.pretrained_cfg = {k: entry[k] for k in ("input_size", "crop_pct", "mean", "std")}
    return model, entry
