"""Turn a finished run into a weights tag: add its file, manifest entry and record to a checkout."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from sqzoo.data import NORMALISATIONS
from sqzoo.errors import WeightsError
from sqzoo.files import read_json, write_bytes, write_text
from sqzoo.registry import create_model
from sqzoo.train.checkpoint import best_weights
from sqzoo.weights import trunk_name

_LICENCE = "BSD-3-Clause"
_PROVENANCE = (
    "Trained by sqzoo on CIFAR-10 from torchvision's {trunk} (ImageNet-1k), whose licence is BSD-3-Clause; ImageNet's "
    "own terms ask for non-commercial research use."
)


def read_run(run: str | os.PathLike[str], architecture: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read a finished run's result and best weights.

    Raises:
        WeightsError: the folder holds no finished run, or one of another architecture.
    """
    folder = Path(run)
    if not (folder / "result.json").is_file():
        raise WeightsError(f"{folder} holds no finished run; give a folder that `sqzoo train` wrote to its end.")
    result = read_json(folder / "result.json")
    model = result["recipe"]["model"]
    if model != architecture:
        raise WeightsError(f"{folder} holds a run of {model}, the tag is of {architecture}; correct one.")
    return result, best_weights(folder, result)


def entry_of(result: dict[str, Any], tag: str, source: str) -> dict[str, Any]:
    """Return the manifest entry of a run's weights, without what `add` reads from the file.

    Args:
        result: of `sqzoo.train.train`.
        tag: ARCHITECTURE.RECIPE.
        source: path of the record, from the checkout's root.
    """
    plan = result["recipe"]
    architecture, _, name = tag.partition(".")
    trunk = trunk_name(architecture)
    mean, std = NORMALISATIONS[plan["normalisation"]]
    upsample = result["upsample"]
    square = upsample and upsample[0] == upsample[1]
    model_args = plan["model_args"] | {"upsample": upsample[0] if square else upsample}
    model = create_model(architecture, device="meta", **model_args)
    origin = {"name": name, "commit": result["environment"]["commit"]}
    return {
        "dtype": "float32",
        "holds": "complete" if plan["layers"] == "all" else "head",
        "trunk": trunk,
        "num_classes": 10,
        "input_size": [3, 32, 32],
        "crop_pct": 1.0,
        "mean": mean,
        "std": std,
        "interpolation": "bilinear",
        "params": sum(p.numel() for p in model.parameters()),
        "macs": multiply_adds(model, (3, 32, 32)),
        "licence": _LICENCE,
        "provenance": _PROVENANCE.format(trunk=trunk),
        "model_args": model_args,
        "recipe": origin | {k: result[k] for k in ("device", "precision")} | plan,
        "metrics": {
            "test_top1": result["test"]["top1"],
            "test_loss": result["test"]["loss"],
            "epoch": result["epoch"],
            "selected_on": plan["select"],
            "source": source,
        },
        "data": {"train_digest": result["train_digest"], "test_digest": result["test_digest"]},
    }


def multiply_adds(model: nn.Module, input_size: Sequence[int]) -> int:
    """Count the multiply-adds of a model's convolutions and linear layers for one image.

    Args:
        model: on the meta device, where nothing is calculated.
        input_size: of an image, (3, H, W).
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.empty(1, *input_size, device="meta"))
    return int(counter.get_total_flops() // 2)


def add(root: Path, entry: dict[str, Any], data: bytes, record: dict[str, Any]) -> None:
    """Add a weights file, its record and, last, its manifest entry to the package in a checkout."""
    weights, tag = root / "sqzoo" / "weights", record["tag"]
    file = weights / f"{tag}.safetensors"
    write_bytes(file, data)
    facts = {"tag": tag, "file": file.name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    manifest = weights / "manifest.json"
    entries = [e for e in json.loads(manifest.read_text(encoding="utf-8"))["weights"] if e["tag"] != tag]
    write_record(root, entry, record)
    entries = sorted([*entries, facts | entry], key=_sort_key)
    write_text(manifest, json.dumps({"weights": entries}, indent=1) + "\n")  # last, because it makes the tag exist


def _sort_key(entry: dict[str, Any]) -> tuple[str, bool, bool, int, str]:
    """Sort an architecture's default first: a complete file before a head, uncoded before coded, large images first."""
    upsample = entry["model_args"]["upsample"] or 32  # none: images stay as CIFAR-10 has them
    size = upsample if isinstance(upsample, int) else upsample[-1]
    architecture = entry["tag"].partition(".")[0]
    return architecture, entry["holds"] != "complete", entry.get("stored") == "coded", -size, entry["tag"]


def write_record(root: Path, entry: dict[str, Any], record: dict[str, Any]) -> None:
    """Write a run's record to its entry's source."""
    file = root / entry["metrics"]["source"]
    write_text(file, json.dumps(record, indent=1) + "\n")
