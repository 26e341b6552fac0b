"""Wall time of training eight heads in one pass over the cached trunk, against training them one by one.

    python benchmarks/together.py [--heads 8] [--epochs 1] [--cache FOLDER] [--data FOLDER] [--trunk FOLDER]

The heads are Sq-1's, of as many learning rates. Both ways run in this process, on the same cache, and end in the same
weights, which is checked. Writes results/together.json.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from experiments import setting
from safetensors.torch import load_file

from sqzoo import SqzooError
from sqzoo.data import cifar10
from sqzoo.environment import environment
from sqzoo.train import train, train_together

RESULT = Path(__file__).resolve().parent / "results" / "together.json"


def main() -> None:
    """Time both ways, compare the weights, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--cache", default="cache", help="folder for trunk features")
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--trunk", help="folder with the ImageNet trunk (default: $SQZOO_TRUNKS, else torchvision's)")
    arguments = parser.parse_args()
    data = (cifar10("train", arguments.data), cifar10("test", arguments.data))
    where = {"trunk": arguments.trunk, "cache": arguments.cache, "progress": False}
    rates = [round(0.0001 * 1.5**i, 6) for i in range(arguments.heads)]
    recipes = [setting("sq1", {"lr": lr}).recipe(0, arguments.epochs) for lr in rates]
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / "together" / str(lr) for lr in rates]
        alone = [Path(folder) / "alone" / str(lr) for lr in rates]
        # The first run in a process reads the cache from disk, and makes it if it is not there: neither way shall pay.
        train(setting("sq1", {"lr": 0.002}).recipe(0, 1), *data, Path(folder) / "first", **where)
        began = time.perf_counter()
        train_together(recipes, *data, runs, **where)
        together_seconds = time.perf_counter() - began
        began = time.perf_counter()
        for recipe, run in zip(recipes, alone, strict=True):
            train(recipe, *data, run, **where)
        alone_seconds = time.perf_counter() - began
        pairs = [
            (load_file(a / "best.safetensors"), load_file(b / "best.safetensors"))
            for a, b in zip(runs, alone, strict=True)
        ]
    difference = max((a[k] - b[k]).abs().max().item() for a, b in pairs for k in a)
    result = {
        "environment": environment(),
        "data": {"train_digest": data[0].digest, "test_digest": data[1].digest},
        "seed": 0,
        "heads": arguments.heads,
        "epochs": arguments.epochs,
        "seconds": {"together": round(together_seconds, 2), "one_by_one": round(alone_seconds, 2)},
        "share": round(together_seconds / alone_seconds, 4),
        "largest_difference_of_a_weight": difference,
        "threads": torch.get_num_threads(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"{arguments.heads} heads, {arguments.epochs} epoch(s): together {together_seconds:.1f} s, one by one "
        f"{alone_seconds:.1f} s: {100 * result['share']:.0f} %; weights differ by at most {difference:.1e}"
    )


if __name__ == "__main__":
    try:
        main()
    except SqzooError as e:
        sys.exit(f"together: {e}")
