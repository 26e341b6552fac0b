"""The paper's sweeps, re-run: Tables 1 and 3, figures 5 to 11.

    python benchmarks/paper/figures.py [--only fig6] [--seeds 3] [--epochs N] [--workers N] [--plan | --draw]

Prints the plan with the time it will take, trains what is not recorded yet, and draws each figure (PNG, SVG) with its
table (CSV) in results/paper/. It may be stopped at any time and started again. Several machines share the work where
each is given the same `--storage` (a database that Optuna knows); `--join` then adds the others' runs.json to one's
own. The experiments are in experiments.yaml.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import RESULTS
from benchmarks.paper.expected import report
from benchmarks.paper.experiments import Experiment, Pass, experiments, passes
from benchmarks.paper.plots import csv_text, draw
from benchmarks.paper.records import join, outcomes, recorded
from benchmarks.paper.sweep import Place, missing, run
from sqzoo import SqzooError
from sqzoo.data import cifar10
from sqzoo.errors import ArgumentError, DataError, did_you_mean

FIGURES = RESULTS / "paper"
RECORDS = FIGURES / "runs.json"
CHILD = "SQZOO_SWEEP_WORKER"  # in the environment of the processes that share a sweep's work


def main() -> int:
    """Plan, train, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="experiments, separated by commas: fig5,fig6 (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="at most so many epochs a setting (default: experiments.yaml's)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that share the work")
    parser.add_argument("--plan", action="store_true", help="print the plan alone")
    parser.add_argument("--draw", action="store_true", help="draw from the records, train nothing")
    parser.add_argument("--join", metavar="FILE", help="add the records of another machine, then draw")
    parser.add_argument("--work", default="runs/figures", help="folder for run folders and the journal")
    parser.add_argument("--cache", help="folder for trunk features (default: in --work)")
    parser.add_argument("--storage", help="Optuna database (default: SQLite in --work)")
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--trunk", help="folder with the ImageNet trunk (default: $SQZOO_TRUNKS, else torchvision's)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="train Fire-Next in bfloat16, 1.5 to 3 times as fast where `sqzoo doctor` calls it fast, slower elsewhere",
    )
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.workers < 1 or (arguments.epochs is not None and arguments.epochs < 1):
        raise ArgumentError("--seeds, --workers and --epochs must be at least 1; correct the one that is not.")
    known = experiments()
    names = arguments.only.split(",") if arguments.only else list(known)
    for name in names:
        if name not in known:
            raise ArgumentError(
                f"Unknown experiment {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}."
            )
    chosen = [known[name] for name in names]
    if arguments.join:
        if not Path(arguments.join).is_file():
            raise ArgumentError(f"No file {arguments.join!r} to join; give another machine's figures/runs.json.")
        join(RECORDS, recorded(Path(arguments.join)))
    elif not arguments.draw:
        train(passes(chosen, arguments.epochs), arguments)
    if not arguments.plan and not os.environ.get(CHILD):
        render(chosen, arguments.seeds)
    return 0


def train(plan: list[Pass], arguments: argparse.Namespace) -> None:
    """Print the plan, then train it in this process, or in several that share the work."""
    folder = Path(arguments.work)
    cache = Path(arguments.cache) if arguments.cache else folder / "cache"
    if CHILD not in os.environ:
        runs = recorded(RECORDS)["runs"]
        open_ = {p: max((missing(p, s, runs).settings for s in range(arguments.seeds)), key=len) for p in plan}
        left = [Pass(p.name, settings) for p, settings in open_.items() if settings]
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // arguments.workers))
        cached, device, half = cache.is_dir(), arguments.device, arguments.bfloat16
        print(report(left, arguments.seeds, arguments.workers, cached, device, half), flush=True)
        torch.set_num_threads(threads)
        if arguments.plan or not left:
            return
    if arguments.workers > 1 and CHILD not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // arguments.workers)
        surroundings = os.environ | {CHILD: "1", "OMP_NUM_THREADS": str(threads)}
        workers = [subprocess.Popen(sys.orig_argv, env=surroundings) for _ in range(arguments.workers)]
        if any([w.wait() for w in workers]):
            raise DataError("A worker failed, its message is above; start again to go on where it stopped.")
        return
    data = (cifar10("train", arguments.data), cifar10("test", arguments.data))
    place = Place(folder, RECORDS, arguments.trunk, cache, arguments.device, bfloat16=arguments.bfloat16)
    run(plan, arguments.seeds, data, place, arguments.storage)


def render(chosen: list[Experiment], seeds: int) -> None:
    """Draw the experiments that are recorded for so many seeds."""
    known = recorded(RECORDS)
    for experiment in chosen:
        found, epochs = outcomes(experiment, known, seeds)
        if not found:
            print(f"{experiment.name}: nothing recorded for {seeds} seeds; train it first.")
            continue
        draw(experiment, found, epochs, seeds, RESULTS)
        print(f"{experiment.title} ({seeds} seeds, {epochs} epochs)\n{csv_text(found, epochs, seeds)}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SqzooError as e:
        sys.exit(f"figures: {e}")
