"""A finished run into the package: weights file, manifest entry and record. `python -m sqzoo.train.publish RUN TAG`."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from sqzoo.data import NORMALISATIONS
from sqzoo.errors import SqzooError, WeightsError
from sqzoo.hashing import file_sha256
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
    folder, root = Path(run), Path(root)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    plan = result["recipe"]
    architecture = tag.partition(".")[0]
    if architecture not in plan["model"].split("+"):
        raise WeightsError(
            f"{folder} holds a run of {plan['model']}, the tag {tag!r} is of {architecture}; correct one."
        )
    measured = result["models"][architecture] if "+" in plan["model"] else result
    record_text = (
        json.dumps(result | {"tag": tag, "test": measured["test"], "held_out": measured["held_out"]}, indent=1) + "\n"
    )
    record = root / "benchmarks" / "results" / "runs" / f"{tag}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    if record_only:
        write_text(record, record_text)
        return
    trunk = "alexnet" if architecture == "alexnet_cifar" else "squeezenet1_1"
    tensors = load_file(folder / "best.safetensors")
    if "+" in plan["model"]:
        tensors = take_out(tensors, architecture)
    complete = plan["trunk"] == "trained"
    if complete:
        unchanged = [k for k, v in load_trunk(trunk).items() if k in tensors and torch.equal(v, tensors[k])]
        if unchanged:
            raise WeightsError(f"{folder} left {unchanged} as they were in the ImageNet trunk; train all layers.")
    weights = root / "sqzoo" / "weights"
    file = weights / f"{tag}.safetensors"
    temporary = file.with_suffix(".writing")
    temporary.write_bytes(save(tensors, {"format": "pt", "tag": tag}))  # with the usual rights, unlike save_file
    temporary.replace(file)
    mean, std = NORMALISATIONS[plan["normalisation"]]
    side = plan["sizes"][-1][0]
    entry = {
        "tag": tag,
        "file": file.name,
        "sha256": file_sha256(file),
        "size": file.stat().st_size,
        "dtype": "float32",
        "holds": "complete" if complete else "head",
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
            "test_top1": measured["test"]["top1"],
            "test_loss": measured["test"]["loss"],
            "epoch": result["epoch"],
            "selected_on": plan["select"],
            "source": record.relative_to(root).as_posix(),
        },
        "data": {"train_digest": result["train_digest"], "test_digest": result["test_digest"]},
    }
    manifest = weights / "manifest.json"
    entries = [e for e in json.loads(manifest.read_text(encoding="utf-8"))["weights"] if e["tag"] != tag]
    # Complete files come before head files, so that an architecture's default needs no network.
    entries = sorted([*entries, entry], key=lambda e: (e["tag"].partition(".")[0], e["holds"] != "complete", e["tag"]))
    write_text(record, record_text)
    write_text(manifest, json.dumps({"weights": entries}, indent=1) + "\n")  # last: it makes the rest count


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
