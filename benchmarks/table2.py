"""The paper's Table 2, measured: evaluates every shipped weights tag on CIFAR-10's 10,000 test images.

    python benchmarks/table2.py [--data FOLDER] [--trunk FOLDER] [--only PATTERN [--record]]

Prints the tables and verdicts, of all recorded seeds where paper/heads.py recorded some; writes
results/table2.json, the manifest's accuracies and the tables in README.md and docs/; and exits with 1 where a tag no
longer gave its recorded accuracy (to 0.05 points). `tools/readme.py` writes the tables anew, measuring nothing.
"""

import argparse
import fnmatch
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import RESULTS, ROOT, run_main
from benchmarks.paper.tables import paper_rows, render
from benchmarks.paper.verdict import PAPER
from benchmarks.record import write_record
from sqzoo import create_model, get_weights, list_models
from sqzoo.data import Dataset, cifar10
from sqzoo.environment import environment
from sqzoo.evaluation import logits, metrics
from sqzoo.report.page import calibration, confusion
from sqzoo.weights import read_manifest
from tools.readme import BENCHMARKS, README, ZOO, tags, write_into, zoo
from tools.readme import PAPER as PAPER_PAGE

MANIFEST = ROOT / "sqzoo" / "weights" / "manifest.json"
TOLERANCE = 0.05  # points of top-1


def measure(data: Dataset, trunk: str | None, only: str, inexact: np.ndarray) -> dict[str, Any]:
    """Evaluate the shipped tags that match `only`; `inexact` lists test images that are not the published pixels."""
    exact = np.setdiff1d(np.arange(len(data)), inexact)
    rows = {}
    for tag in list_models("*.*", pretrained=True):
        if not fnmatch.fnmatch(tag, only):
            continue
        entry = get_weights(tag)
        model = create_model(tag, pretrained=True, trunk=trunk)
        began = time.perf_counter()
        found, labels = logits(model, data), torch.from_numpy(data.labels)
        seconds = time.perf_counter() - began
        whole, published = metrics(found, labels), metrics(found[exact], labels[exact])
        rows[tag] = {
            "loss": whole.loss,
            "loss_error": loss_error(found, labels),
            "top1": whole.top1,
            "images": whole.images,
            "top1_exact_pixels": published.top1,
            "exact_images": published.images,
            "recorded_top1": entry.metrics["test_top1"],
            "params": sum(p.numel() for p in model.parameters()),
            "bytes": entry.size,
            "holds": entry.holds,
            "side": entry.resolution,
            "weights_sha256": entry.sha256,
            "selected_on": entry.metrics["selected_on"],
            "seconds": round(seconds, 1),
            "confusion": confusion(found, labels),
            "calibration": calibration(found, labels),
        }
        if entry.stored == "coded":
            rows[tag] |= {"parent": entry.recipe["parent"], "parent_top1": entry.metrics["parent_test_top1"]}
        print(f"{tag}: loss {whole.loss:.4f}, top-1 {whole.top1:.2f} %, {seconds:.0f} s", file=sys.stderr)
    return rows


def loss_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the standard error of the mean loss (nats) on these images."""
    losses = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    return float(losses.std() / len(losses) ** 0.5)


def drifted(rows: dict[str, Any]) -> list[str]:
    """Return a line for each tag whose accuracy is off its record by more than the tolerance."""
    return [
        f"{tag}: measured {row['top1']:.2f} %, recorded {row['recorded_top1']:.2f} %"
        for tag, row in rows.items()
        if abs(row["top1"] - row["recorded_top1"]) > TOLERANCE
    ]


def counts() -> dict[str, int]:
    """Return the exact parameter counts that the claims hang on."""

    def count(name: str, **args: Any) -> int:
        return sum(p.numel() for p in create_model(name, device="meta", **args).parameters())

    return {name: count(name) for name in PAPER} | {
        "sq1_mid64": count("sq1", mid=64),
        "squeezenet_100": count("squeezenet_cifar", num_classes=100),
    }


def write(results: dict[str, Any], rows: dict[str, Any]) -> None:
    """Write results/table2.json, the manifest's accuracies of the tags in `rows`, and the tables that show both."""
    write_record(RESULTS / "table2.json", results)
    into_manifest(rows)
    for page in (README, PAPER_PAGE):
        write_into(page, "table2", paper_rows(results))
    write_into(BENCHMARKS, "table2", render(results))
    write_into(README, "zoo", zoo())
    write_into(ZOO, "tags", tags())


def into_manifest(rows: dict[str, Any]) -> None:
    """Write what was measured into the manifest, the accuracy and loss that a tag is said to have."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    for entry in manifest["weights"]:
        if row := rows.get(entry["tag"]):
            entry["metrics"] |= {"test_top1": row["top1"], "test_loss": row["loss"]}
            entry["metrics"]["measured"] = "benchmarks/results/table2.json"
    MANIFEST.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    read_manifest.cache_clear()


def main() -> int:
    """Measure, print, record; return 1 where a tag has drifted from its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--trunk", help="folder with the ImageNet trunk (default: $SQZOO_TRUNKS, else torchvision's)")
    parser.add_argument("--only", default="*", help="tags to evaluate; with a pattern nothing is written")
    parser.add_argument("--record", action="store_true", help="with --only: put its tags into the recorded table")
    arguments = parser.parse_args()
    made_by = environment()  # before the manifest is written
    data = cifar10("test", arguments.data)
    listed = Path(arguments.data or os.environ.get("SQZOO_CIFAR10", ".")) / "test_not_exact.txt"
    inexact = np.loadtxt(listed, dtype=np.int64) if listed.is_file() else np.arange(0)
    rows = measure(data, arguments.trunk, arguments.only, inexact)
    results = {
        "environment": made_by,
        "test_digest": data.digest,
        "tags": rows,
        "params": counts(),
    }
    if arguments.only == "*":
        write(results, rows)
    elif arguments.record:
        before = json.loads((RESULTS / "table2.json").read_text(encoding="utf-8"))
        every = before["tags"] | rows
        results |= {"tags": {tag: every[tag] for tag in list_models("*.*", pretrained=True) if tag in every}}
        added = before.get("added", {}) | {tag: results["environment"] for tag in rows}
        write(results | {"environment": before["environment"], "added": added}, rows)
    print(render(results))
    wrong = drifted(rows)
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    run_main(main)
