"""The paper's sweeps, re-run: Tables 1 and 3, figures 5 to 11.

    python benchmarks/figures.py [--only fig6] [--seeds 3] [--epochs N] [--workers N] [--plan | --draw]

Prints the plan with the time it will take, trains what is not recorded yet, and draws each figure (PNG, SVG) with its
table (CSV) in results/figures/. It may be stopped at any time and started again. Several machines share the work where
each is given the same `--storage` (a database that Optuna knows) and its own `--work` folder; their records are joined
by copying results/figures/runs.json lines. The experiments are in experiments.yaml.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from experiments import experiments, passes
from sweep import Place, run

from sqzoo import SqzooError
from sqzoo.data import cifar10

RESULTS = Path(__file__).resolve().parent / "results" / "figures"


def main() -> int:
    """Plan, train, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="experiments, separated by commas: fig5,fig6 (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="at most so many epochs a setting (default: experiments.yaml's)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that share the work")
    parser.add_argument("--plan", action="store_true", help="print the plan alone")
    parser.add_argument("--draw", action="store_true", help="draw from the records, train nothing")
    parser.add_argument("--work", default="runs/figures", help="folder for run folders and the journal")
    parser.add_argument("--cache", help="folder for trunk features (default: in --work)")
    parser.add_argument("--storage", help="Optuna database (default: SQLite in --work)")
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--trunk", help="folder with the ImageNet trunk (default: $SQZOO_TRUNKS, else torchvision's)")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    known = experiments()
    chosen = [known[name] for name in (arguments.only.split(",") if arguments.only else known)]
    plan = passes(chosen, arguments.epochs)
    folder = Path(arguments.work)
    if arguments.workers > 1:
        threads = str(max(1, (os.cpu_count() or 1) // arguments.workers))
        command = [sys.executable, *sys.argv, "--workers", "1"]
        workers = [
            subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": threads}) for _ in range(arguments.workers)
        ]
        codes = [w.wait() for w in workers]
        return max(codes)
    place = Place(
        folder,
        RESULTS / "runs.json",
        arguments.trunk,
        Path(arguments.cache) if arguments.cache else folder / "cache",
        arguments.device,
    )
    data = (cifar10("train", arguments.data), cifar10("test", arguments.data))
    run(plan, arguments.seeds, data, place, arguments.storage)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SqzooError as e:
        sys.exit(f"figures: {e}")
