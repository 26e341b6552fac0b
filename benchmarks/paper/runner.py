"""Train a list of runs, shared by processes and resumable: a run is a folder, whose lock says who trains it."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.expected import TEST, report
from sqzoo.data import Dataset, cifar10
from sqzoo.errors import ArgumentError, BusyError, DataError
from sqzoo.train import Recipe, train

CHILD = "SQZOO_WORKER"  # in the environment of the processes that share the work


@dataclass(frozen=True)
class Run:
    """A run to train, by the name of its folder."""

    name: str
    recipe: Recipe
    test: bool = True  # whether the test images are evaluated at all
    log_test: bool = False  # whether after each epoch
    precision: str = "float32"
    cache: str = ""  # a folder of its own for backbone features that few runs read; deleted when the last has


def parser(doc: str, work: str, rows: Iterable[str] = ()) -> argparse.ArgumentParser:
    """Return a parser of what all benchmarks that train take.

    Args:
        doc: of the benchmark.
        work: default folder of its runs.
        rows: what `--only` chooses from, if anything.
    """
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that share the work")
    result.add_argument("--plan", action="store_true", help="print the plan and its time, train nothing")
    result.add_argument("--work", default=work, help="folder for run folders")
    result.add_argument("--cache", default="runs/cache", help="folder for backbone features")
    result.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    result.add_argument(
        "--trunk", help="folder with the ImageNet backbone (default: $SQZOO_TRUNKS, else torchvision's)"
    )
    result.add_argument("--device", default="cpu")
    if rows := list(rows):
        result.add_argument("--only", nargs="+", choices=rows, default=rows, metavar="ROW", help=", ".join(rows))
    return result


def carry_out(
    runs: list[Run],
    kept: Callable[[], set[str]],
    keep: Callable[[Run, dict[str, Any]], None],
    args: argparse.Namespace,
    trained: int | None = None,
) -> bool:
    """Print the plan, then train the runs that are not kept yet, in this process or in several.

    Args:
        runs: in the order in which they begin.
        kept: returns the names of the runs that are recorded.
        keep: records a result, as soon as its run ends.
        args: of `parser`.
        trained: train on so many images, beside those held out; None on all.

    Returns:
        Whether all is kept and this process may go on to show it; False for `--plan` and in a worker.

    Raises:
        DataError: a worker failed.
    """
    if args.workers < 1:
        raise ArgumentError(f"--workers must be at least 1, not {args.workers}.")
    if CHILD in os.environ:
        work(runs, kept, keep, _data(args, runs, trained), args)
        return False
    threads = max(1, (os.cpu_count() or 1) // args.workers)
    recorded = kept()
    if left := [run for run in runs if run.name not in recorded]:
        plan = [(run.recipe, _looked_at(run)) for run in left]
        print(report(plan, args.workers, threads, Path(args.cache).is_dir(), args.device, trained), flush=True)
    else:
        print("All of it is recorded.")
    if args.plan:
        return False
    if left and args.workers == 1:
        work(runs, kept, keep, _data(args, runs, trained), args)
    elif left:
        surroundings = os.environ | {CHILD: "1", "OMP_NUM_THREADS": str(threads)}
        workers = [subprocess.Popen(sys.orig_argv, env=surroundings) for _ in range(args.workers)]
        if any([worker.wait() for worker in workers]):
            raise DataError("A worker failed, its message is above; the same command goes on where it stopped.")
    return True


def _looked_at(run: Run) -> int:
    """Return how many images are evaluated after an epoch."""
    return run.recipe.hold_out + (TEST if run.log_test or run.recipe.select == "test" else 0)


def _data(args: argparse.Namespace, runs: list[Run], trained: int | None) -> tuple[Dataset, Dataset]:
    train_set = cifar10("train", args.data)
    return subset(train_set, trained, runs[0].recipe.hold_out) if trained else train_set, cifar10("test", args.data)


def subset(data: Dataset, trained: int, held_out: int) -> Dataset:
    """Return the first `trained` images, as many of each class, and the `held_out` ones of all the images."""
    each = [np.flatnonzero(data.labels == c) for c in np.unique(data.labels)]
    few, last = trained // len(each), held_out // len(each)
    return data[np.sort(np.concatenate([np.concatenate([own[:few], own[len(own) - last :]]) for own in each]))]


def work(
    runs: list[Run],
    kept: Callable[[], set[str]],
    keep: Callable[[Run, dict[str, Any]], None],
    data: tuple[Dataset, Dataset],
    args: argparse.Namespace,
) -> None:
    """Train what is not kept, beside other processes that were given the same; return when all is kept.

    Args:
        data: training and test images. The rest as in `carry_out`.
    """
    train_set, test_set = data
    while {run.name for run in runs} - kept():
        done = False
        for run in runs:
            if run.name in kept():
                continue
            cache = Path(args.cache) / run.cache
            try:
                result = train(
                    run.recipe,
                    train_set,
                    test_set if run.test else None,
                    Path(args.work) / run.name,
                    trunk=args.trunk,
                    cache=cache,
                    device=args.device,
                    precision=run.precision,
                    log_test=run.log_test,
                )
            except BusyError:  # another process trains it
                continue
            keep(run, result)
            done = True
            if run.cache and {other.name for other in runs if other.cache == run.cache} <= kept():
                shutil.rmtree(cache, ignore_errors=True)
        if not done:
            time.sleep(2)  # the last runs are with other processes, which may be killed
