"""Temperature and "none of the ten" threshold of each weights tag, and how well they do.

    python benchmarks/accuracy/calibrate.py [--only PATTERN] [--limit N]
        [--data FOLDER] [--trunk FOLDER] [--outside FOLDER]

Fits both on the training images that a tag's recipe held out (a tag that held none out is left as it is), writes them
into the manifest, measures on the test images and on pictures of none of the classes (`outside.py` says how to get
them), and records all in results/accuracy/uncertainty.json, which the cards show. Tags not asked for keep their
rows. With --limit N only N images of each kind are taken, and nothing is written. Then run
tools/model_cards.py and tools/sbom.py.
"""

import argparse
import fnmatch
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from scipy.stats import mannwhitneyu

from benchmarks import RESULTS, ROOT
from benchmarks.accuracy.outside import sets
from benchmarks.record import write_record
from sqzoo import create_model, get_weights, list_models
from sqzoo.data import Normalise, cifar10
from sqzoo.environment import environment
from sqzoo.files import write_text
from sqzoo.images.reader import ImageReader
from sqzoo.report.page import calibration
from sqzoo.uncertainty import TPR, calibrate, ood_score, ood_threshold

RESULT = RESULTS / "accuracy" / "uncertainty.json"
MANIFEST = ROOT / "sqzoo" / "weights" / "manifest.json"
SHIPPED = "generalised entropy"  # the candidate that `sqzoo.uncertainty` is
KNOWN = 5000  # training images whose features the feature distance is made from


@torch.inference_mode()
def outputs(model: nn.Module, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (N, classes) and the trunk's pooled features, of length 1 (N, num_features)."""
    prepare = Normalise.of(model)
    logits, features = [], []
    for start in range(0, len(images), 8):
        maps = model.forward_features(prepare(images[start : start + 8]))  # type: ignore[operator]
        logits.append(model.forward_head(maps).float())  # type: ignore[operator]
        features.append(torch.nn.functional.normalize(maps.mean((2, 3))))
    return torch.cat(logits), torch.cat(features)


def scores(
    logits: torch.Tensor, features: torch.Tensor, temperature: float, distance: "Distance"
) -> dict[str, torch.Tensor]:
    """Return each candidate's score (N,), high for what is like training; the first is the one that ships."""
    probabilities = (logits.double() / temperature).softmax(1)
    return {
        "generalised entropy": ood_score(probabilities),
        "energy": logits.double().logsumexp(1),
        "largest probability": probabilities.max(1).values,
        "largest logit": logits.max(1).values.double(),
        "feature distance": distance(features),
    }


class Distance:
    """Minus the Mahalanobis distance to the nearest class of training images (Lee et al. 2018), from their features."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        features = features.double()
        self.means = torch.stack([features[labels == c].mean(0) for c in labels.unique()])
        within = features - self.means[labels]
        covariance = within.T @ within / len(features)
        flat = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
        self.precision = torch.linalg.inv(0.8 * covariance + 0.2 * flat)  # fewer images than it takes without

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        away = features.double()[:, None] - self.means
        return -torch.einsum("nci,ij,ncj->nc", away, self.precision, away).min(1).values


def auroc(inside: torch.Tensor, outside: torch.Tensor) -> float:
    """Return the chance that an image of the classes has a higher score than one of none; ties count half."""
    return float(mannwhitneyu(inside.numpy(), outside.numpy()).statistic) / (len(inside) * len(outside))


def measure(model: nn.Module, labels: dict[str, np.ndarray], images: dict[str, np.ndarray]) -> dict[str, Any]:
    """Fit on images["held out"], measure on images["test"] and the sets of pictures outside."""
    found = {name: outputs(model, each) for name, each in images.items()}
    distance = Distance(found.pop("known")[1], torch.from_numpy(labels["known"]))
    held_labels, test_labels = (torch.from_numpy(labels[name]) for name in ("held out", "test"))
    held, test = found["held out"][0], found["test"][0]
    fitted = calibrate(held, held_labels)
    cold = test.double() / fitted["temperature"]
    by_score = {name: scores(*each, fitted["temperature"], distance) for name, each in found.items()}
    limits = {kind: ood_threshold(values) for kind, values in by_score["held out"].items()}
    inside = by_score["test"]
    below = {
        name: {kind: round(100 * (each[kind] < limits[kind]).double().mean().item(), 2) for kind in limits}
        for name, each in by_score.items()
    }
    wrong = test.argmax(1) != test_labels
    return {
        **fitted,
        "held_out_images": len(held),
        "calibration_error": {"before": _error(test, test_labels), "after": _error(cold, test_labels)},
        "loss": {"before": _loss(test, test_labels), "after": _loss(cold, test_labels)},
        "unsure_of_test": below["test"],
        "unsure_of_wrong_answers": round(100 * (inside[SHIPPED][wrong] < limits[SHIPPED]).double().mean().item(), 2),
        "outside": {
            name: {
                "images": len(each[SHIPPED]),
                "auroc": {kind: round(100 * auroc(inside[kind], each[kind]), 2) for kind in inside},
                "unsure": below[name],
            }
            for name, each in by_score.items()
            if name not in ("held out", "test")
        },
    }


def _error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float(calibration(logits, labels)["error"])


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return torch.nn.functional.cross_entropy(logits.double(), labels).item()


def main() -> int:
    """Fit, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="shell pattern of tags")
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--trunk", help="file or folder with the ImageNet trunk")
    parser.add_argument("--outside", type=Path, help="folder with the unpacked packages of outside.py")
    parser.add_argument("--limit", type=int, help="take only so many images of each kind, write nothing")
    arguments = parser.parse_args()
    about = environment()  # before the manifest is written, which is a change to the commit
    train, test = (cifar10(split, arguments.data) for split in ("train", "test"))
    pictures = sets(arguments.outside)
    rows = {}
    for tag in fnmatch.filter(list_models("*.*", pretrained=True), arguments.only):
        count = get_weights(tag).recipe.get("hold_out")
        if not count:
            print(f"{tag}: its recipe held no training images out, it stays uncalibrated", file=sys.stderr)
            continue
        model = create_model(tag, pretrained=True, temperature=1.0, trunk=arguments.trunk)
        rest, held = train.split(count)
        known = rest[:: len(rest) // KNOWN][:KNOWN]
        images = {"held out": train.images[held], "test": test.images, "known": train.images[known]}
        read = ImageReader.of(model)
        images |= {name: np.stack([read(picture) for picture in each]) for name, (_, each) in pictures.items()}
        labels = {"held out": train.labels[held], "test": test.labels, "known": train.labels[known]}
        if arguments.limit:
            spread = {name: slice(None, None, max(1, len(each) // arguments.limit)) for name, each in images.items()}
            images = {name: each[spread[name]] for name, each in images.items()}
            labels = {name: each[spread[name]] for name, each in labels.items()}
        row = measure(model, labels, images)
        rows[tag] = row
        error, unsure = row["calibration_error"], row["unsure_of_test"]
        print(
            f"{tag}: temperature {row['temperature']:.3f}, calibration error {error['before']:.1f} to "
            f"{error['after']:.1f} points; unsure of {unsure[SHIPPED]:.1f} % of the test images, "
            f"{row['unsure_of_wrong_answers']:.0f} % of those called wrongly"
        )
        for name, r in row["outside"].items():
            cells = (f"{kind} {value:.1f} ({r['unsure'][kind]:.0f} %)" for kind, value in r["auroc"].items())
            print(f"  {name}: AUROC (and share called unsure): {', '.join(cells)}", flush=True)
        if not arguments.limit:
            record(tag, row | {"weights_sha256": get_weights(tag).sha256, "environment": about}, pictures)
    return 0


def record(tag: str, row: dict[str, Any], pictures: dict[str, tuple[str, list[Image.Image]]]) -> None:
    """Put a row into the results, then its calibration into the manifest."""
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"tags": {}}
    tags = {k: v for k, v in sorted((known["tags"] | {tag: row}).items()) if k in list_models("*.*", pretrained=True)}
    what = {name: {"what": text, "pictures": len(each)} for name, (text, each) in pictures.items()}
    write_record(RESULT, {"kept": TPR, "outside": what, "tags": tags})
    entries = json.loads(MANIFEST.read_text(encoding="utf-8"))["weights"]
    (entry,) = (e for e in entries if e["tag"] == tag)
    entry["model_args"]["temperature"] = row["temperature"]
    entry["ood_threshold"] = row["threshold"]
    entry["calibration"] = {
        "held_out_images": row["held_out_images"],
        "source": os.fspath(RESULT.relative_to(ROOT)),
    }
    write_text(MANIFEST, json.dumps({"weights": entries}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
