"""A finished run into the package: weights file, manifest entry and record. `python -m sqzoo.train.publish RUN TAG`."""

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from sqzoo.data import NORMALISATIONS
from sqzoo.errors import SqzooError, WeightsError
from sqzoo.registry import create_model
from sqzoo.train.checkpoint import write_text
from sqzoo.train.shared import take_out
from sqzoo.weights import load_trunk

_LICENCE = "BSD-3-Clause"
_PROVENANCE = (
    "Trained by sqzoo on CIFAR-10 from torchvision's {trunk} (ImageNet-1k), whose licence is BSD-3-Clause; ImageNet's "
    "own terms ask for non-commercial research use."
)


def publish(run: str | os.PathLike[str], tag: str, root: str | os.PathLike[str], *, record_only: bool = False) -> None:
    """Put the run's best weights and its record under `root` (a checkout), and its entry into the manifest.

    A frozen-trunk run is stored as a head file; an all-layers run as a complete file, none of whose tensors may be
    the trunk's own. `record_only` writes the record alone, for weights too large to ship.
    """
    result, tensors = read_run(run, tag.partition(".")[0])
    entry = entry_of(result, tag, f"benchmarks/results/runs/{tag}.json")
    if record_only:
        _write_record(Path(root), entry, result | {"tag": tag})
        return
    if entry["holds"] == "complete":
        trunk = load_trunk(entry["trunk"])
        unchanged = [k for k, v in trunk.items() if k in tensors and torch.equal(v, tensors[k])]
        if unchanged:
            raise WeightsError(f"{run} left {unchanged} as they were in the ImageNet trunk; train all layers.")
    add(Path(root), entry, save(tensors, {"format": "pt", "tag": tag}), result | {"tag": tag})


def read_run(run: str | os.PathLike[str], architecture: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return a finished run's result and best weights; of a run of several architectures, those of the one."""
    folder = Path(run)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    names, tensors = result["recipe"]["model"].split("+"), load_file(folder / "best.safetensors")
    if architecture not in names:
        raise WeightsError(f"{folder} holds a run of {'+'.join(names)}, the tag is of {architecture}; correct one.")
    if len(names) > 1:
        measured = result["models"][architecture]
        result |= {"test": measured["test"], "held_out": measured["held_out"]}
        tensors = take_out(tensors, architecture)
    return result, tensors


def entry_of(result: dict[str, Any], tag: str, source: str) -> dict[str, Any]:
    """Return the manifest's entry of a run's weights, but for what `add` reads off the file.

    source: where the record will lie, from the checkout's root.
    """
    plan = result["recipe"]
    architecture = tag.partition(".")[0]
    trunk = "alexnet" if architecture == "alexnet_cifar" else "squeezenet1_1"
    mean, std = NORMALISATIONS[plan["normalisation"]]
    side = result.get("side") or plan["sizes"][-1][0]  # records of part 1 lack it
    return {
        "dtype": "float32",
        "holds": "complete" if plan["trunk"] == "trained" else "head",
        "trunk": trunk,
        "num_classes": 10,
        "input_size": [3, side, side],
        "crop_pct": plan["crop_pct"],
        "mean": mean,
        "std": std,
        "interpolation": "bilinear",
        "params": sum(p.numel() for p in create_model(architecture, device="meta", **plan["model_args"]).parameters()),
        "licence": _LICENCE,
        "provenance": _PROVENANCE.format(trunk=trunk),
        "recipe": plan,
        "metrics": {
            "test_top1": result["test"]["top1"],
            "test_loss": result["test"]["loss"],
            "epoch": result["epoch"],
            "selected_on": plan["select"],
            "source": source,
        },
        "data": {"train_digest": result["train_digest"], "test_digest": result["test_digest"]},
    }


def add(root: Path, entry: dict[str, Any], data: bytes, record: dict[str, Any]) -> None:
    """Put a weights file, its record and, last, its entry into the package of the checkout `root`."""
    weights, tag = root / "sqzoo" / "weights", record["tag"]
    file = weights / f"{tag}.safetensors"
    temporary = file.with_suffix(".writing")
    temporary.write_bytes(data)  # with the usual rights, unlike save_file
    temporary.replace(file)
    about = {"tag": tag, "file": file.name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    manifest = weights / "manifest.json"
    entries = [e for e in json.loads(manifest.read_text(encoding="utf-8"))["weights"] if e["tag"] != tag]
    _write_record(root, entry, record)
    entries = sorted([*entries, about | entry], key=_place)
    write_text(manifest, json.dumps({"weights": entries}, indent=1) + "\n")  # last: it makes the rest count


def _place(entry: dict[str, Any]) -> tuple[str, bool, bool, int, str]:
    """Order the manifest: an architecture's default comes first, the complete and uncoded file for the largest images.

    An architecture without such a file has as its default the next best.
    """
    coded, side = entry.get("stored") == "coded", entry["input_size"][1]
    return entry["tag"].partition(".")[0], entry["holds"] != "complete", coded, -side, entry["tag"]


def _write_record(root: Path, entry: dict[str, Any], record: dict[str, Any]) -> None:
    file = root / entry["metrics"]["source"]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Read the arguments and publish into the checkout of the current folder."""
    parser = argparse.ArgumentParser(prog="python -m sqzoo.train.publish", description=__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("tag", help="weights tag, such as sq1.paper_cifar10")
    parser.add_argument("--record-only", action="store_true", help="write the record, not the weights")
    arguments = parser.parse_args()
    try:
        publish(arguments.run, arguments.tag, Path.cwd(), record_only=arguments.record_only)
    except SqzooError as e:
        raise SystemExit(f"publish: {e}") from e


if __name__ == "__main__":
    main()
