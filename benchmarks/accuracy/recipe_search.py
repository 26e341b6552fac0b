"""Choose the `ft_cifar10` recipe by short runs, scored on 10,000 training images held out of all of them.

    python benchmarks/accuracy/recipe_search.py [--work runs/recipe_search] [--data FOLDER] [--trunk FOLDER]

The plan, stated before the runs: `BASE` trains all layers of fire_next at 64 pixels on 12,000 images for 8 epochs;
each other run changes one thing. Fewer images for more epochs than a short run of all would have, because the full
recipe is limited by generalisation: what regularises must be able to pay. A change is taken into `ft_cifar10` where it
is better by more than two standard errors of the paired difference (McNemar); otherwise the simpler one of the two is.

Amended after the first four runs, which were recorded: 8 epochs end at a training loss of 0.95, long before the images
are known by heart, where cutout can only cost (3.5 points). So cutout is judged by a second pair of three times the
epochs: it stays where its loss there is under half of that after 8, since the full recipe has 120.

No test image is read. Each run is recorded in results/accuracy/recipe_search.json as it ends; a second call goes on.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import RESULTS
from benchmarks.paper.runner import subset
from benchmarks.record import write_record
from sqzoo import create_model
from sqzoo.data import Dataset, cifar10
from sqzoo.environment import environment
from sqzoo.evaluation import logits
from sqzoo.models.upsample import Upsample
from sqzoo.train import Recipe, recipe, train
from sqzoo.train.checkpoint import best_weights

RESULT = RESULTS / "accuracy" / "recipe_search.json"
TRAINED, HELD_OUT, SIZE, EPOCHS = 12_000, 10_000, 64, 8
BASE: dict[str, Any] = {
    **{"sizes": ((SIZE, EPOCHS),), "hold_out": HELD_OUT, "batch_norm": True},
    **{"muon_lr": 3e-3, "cutout": 14, "label_smoothing": 0.1, "ema": 0.998},
}
LONGER: dict[str, Any] = {"sizes": ((SIZE, 3 * EPOCHS),)}
RUNS: dict[str, dict[str, Any]] = {
    "base": {},
    "AdamW on the backbone too": {"muon_lr": 0.0},
    "no cutout": {"cutout": 0},
    "no label smoothing": {"label_smoothing": 0.0},
    "Muon at half the rate": {"muon_lr": 1.5e-3},
    "no batch norm": {"batch_norm": False},
    "no EMA": {"ema": 0.0},
    "base, 24 epochs": LONGER,
    "no cutout, 24 epochs": LONGER | {"cutout": 0},
}


def right(plan: Recipe, folder: Path, result: dict[str, Any], data: Dataset) -> np.ndarray:
    """Return which held-out images a finished run's network gets right, as booleans."""
    model = create_model(plan.model, num_classes=10)
    model.upsample = Upsample(SIZE)
    model.load_state_dict(best_weights(folder, result))
    held = data[data.split(HELD_OUT)[1]]
    hits: np.ndarray = (logits(model, held).argmax(1) == torch.from_numpy(held.labels)).numpy()
    return hits


def main() -> None:
    """Train what is not yet recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/recipe_search", help="folder of the runs")
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--trunk", help="folder with the ImageNet trunk (default: $SQZOO_TRUNKS, else torchvision's)")
    arguments = parser.parse_args()
    data = subset(cifar10("train", arguments.data), TRAINED, HELD_OUT)
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"runs": {}}
    base = np.empty(0)
    for name, changes in RUNS.items():
        plan = recipe("ft_cifar10", "fire_next", **(BASE | changes))
        folder = Path(arguments.work) / name.replace(" ", "_")
        if name in known["runs"] and not name.startswith("base"):
            continue
        result = train(plan, data, None, folder, trunk=arguments.trunk)
        hits = right(plan, folder, result, data)
        base = hits if name.startswith("base") else base  # the one before, of as many epochs
        gained, lost = int((hits & ~base).sum()), int((base & ~hits).sum())
        known["runs"][name] = {
            "changes": changes,
            "simpler": name.startswith(("no ", "AdamW")),
            "val": result["val"],
            "points_over_base": 100 * (gained - lost) / len(hits),
            "standard_error": 100 * math.sqrt(gained + lost) / len(hits),
            "train_loss": result["log"][-1]["train_loss"],
            "weights_sha256": result["weights_sha256"],
            "seconds": result["training_seconds"],
            "environment": environment(),
        }
        known |= {"recipe": recipe("ft_cifar10", "fire_next", **BASE).to_json(), "train_digest": data.digest}
        write_record(RESULT, known)


if __name__ == "__main__":
    main()
