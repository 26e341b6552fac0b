"""What only a GPU can measure: smoke, training speed, Table 2's heads and `ft` with three seeds, latency.

    python benchmarks/speed/gpu.py [--only STEP] [--minutes 8] [--work runs/gpu] [--data FOLDER] [--trunk FOLDER]

Resumable: every step is cut into parts that are recorded as they end in results/speed/gpu.json, and a training run that
the time limit interrupts goes on from its last epoch when the command is started again. Needs one CUDA GPU, CIFAR-10
(163 MB of parquet; carry it in pieces under 64 MB and join them) and the ImageNet backbones (5 MB).
Measured by nobody yet: the project had no GPU when this was written.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS, run_main
from benchmarks.record import write_record
from sqzoo import create_model
from sqzoo.data import Dataset, cifar10
from sqzoo.environment import environment
from sqzoo.errors import ArgumentError
from sqzoo.train import recipe, train

RESULT = RESULTS / "speed" / "gpu.json"
HEADS = ("sq1", "squeezenet_cifar", "fire_next")
SEEDS = 3
Part = Callable[[], dict[str, Any]]


class OutOfTimeError(Exception):
    """The minutes are over; the same command goes on."""


def parts(data: tuple[Dataset, Dataset], work: Path, trunk: str | None, until: float) -> dict[str, Part]:
    """Return what is measured, by name, in order."""

    def in_time(_: dict[str, Any]) -> None:
        if time.monotonic() > until:
            raise OutOfTimeError

    def run(name: str, model: str, seed: int, **changes: Any) -> dict[str, Any]:
        plan = recipe(name, model, seed=seed, **changes)
        sizes = "" if not changes else f"-{plan.epochs}"
        folder = work / f"{model}-{name}-{seed}{sizes}"
        result = train(plan, *data, folder, trunk=trunk, device="cuda", progress=False, on_epoch=in_time)
        keys = ("test", "val", "epoch", "training_seconds", "feature_seconds", "precision")
        return {k: result[k] for k in keys} | {"seconds_per_epoch": [row["seconds"] for row in result["log"]]}

    every: dict[str, Part] = {}
    every |= {f"smoke {m}": lambda m=m: run("ft_cifar10", m, 0, sizes=((96, 1),)) for m in HEADS}  # type: ignore[misc]
    every |= {
        f"speed {size} px": lambda size=size: run("ft_cifar10", "sq1", 0, sizes=((size, 2),))  # type: ignore[misc]
        for size in (96, 128, 160)
    }
    for name in ("paper_cifar10", "held_out_cifar10", "ft_cifar10"):
        for seed in range(SEEDS):
            every |= {f"{name} {m} {seed}": lambda n=name, m=m, s=seed: run(n, m, s) for m in HEADS}  # type: ignore[misc]
    every |= {f"latency {m}": lambda m=m: latency(m) for m in HEADS}  # type: ignore[misc]
    return every


def latency(model: str) -> dict[str, Any]:
    """Measure the milliseconds per batch of a network on the GPU, as the median of a hundred."""
    network = create_model(f"{model}.ft_cifar10", pretrained=True).cuda().eval()
    result = {}
    for size in (1, 32, 1024):
        images, times = torch.randn(size, 3, 32, 32, device="cuda"), []
        with torch.inference_mode():
            for number in range(120):
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                network(images)
                end.record()
                torch.cuda.synchronize()
                if number >= 20:
                    times.append(start.elapsed_time(end))
        result[f"batch {size}"] = round(sorted(times)[50], 4)
    return {"milliseconds": result}


def main() -> int:
    """Measure what is not recorded yet, until the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts whose name begins so, such as 'ft_cifar10 sq1'")
    parser.add_argument("--minutes", type=float, default=8, help="stop after the epoch that ends behind so many")
    parser.add_argument("--work", default="runs/gpu", help="folder of the runs")
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument(
        "--trunk", help="folder with the ImageNet backbone (default: $SQZOO_TRUNKS, else torchvision's)"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise ArgumentError("This measures a GPU, and PyTorch finds none here; run it on a machine with one.")
    until = time.monotonic() + 60 * arguments.minutes
    data = (cifar10("train", arguments.data), cifar10("test", arguments.data))
    done: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"parts": {}}
    every = parts(data, Path(arguments.work), arguments.trunk, until)
    try:
        for name, part in every.items():
            if name.startswith(arguments.only) and name not in done["parts"]:
                done["parts"][name] = part() | {"environment": environment()}
                write_record(RESULT, done)
                print(name, json.dumps({k: v for k, v in done["parts"][name].items() if k != "environment"}))
                if time.monotonic() > until:
                    raise OutOfTimeError
    except OutOfTimeError:
        print(f"{len(done['parts'])} of {len(every)} parts are recorded; the same command goes on.")
        return 3
    return 0


if __name__ == "__main__":
    run_main(main)
