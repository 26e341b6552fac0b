"""The mean of several runs' weights as a run of its own: `python -m sqzoo.train.mean RUN RUN … --run FOLDER`.

Runs of which one began where another ended often lie around the same hollow of the loss, whose middle fits images that
none has learnt better than its rim does (Wortsman and others 2022). One network, so it takes no longer than one.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file

from sqzoo.data import NORMALISATIONS, Dataset, Preprocessing, cifar10
from sqzoo.environment import environment
from sqzoo.errors import ArgumentError, SqzooError
from sqzoo.hashing import file_sha256
from sqzoo.registry import create_model
from sqzoo.train.checkpoint import read_json, write_tensors, write_text
from sqzoo.train.evaluate import evaluate
from sqzoo.train.shared import take_out

_ALIKE = ("model", "model_args", "trunk", "crop_pct", "normalisation", "hold_out")


def mean_of_runs(
    runs: Sequence[str | os.PathLike[str]], run: str | os.PathLike[str], train_set: Dataset, test_set: Dataset
) -> dict[str, Any]:
    """Write the mean of the weights of finished all-layers runs into the folder `run`; return its result.

    Images are of the last run's size, and recipe and log are that run's; "mean_of" tells of each run, in order, which
    file it left, how and in what time. Raise `ArgumentError` where the runs are of other networks, held-out images or
    data.
    """
    folders = [Path(name) for name in runs]
    for folder in folders:
        if not (folder / "result.json").is_file():
            raise ArgumentError(f"{folder} holds no finished run; give folders that `sqzoo train` wrote to its end.")
    results = [read_json(folder / "result.json") for folder in folders]
    last = results[-1]
    for folder, result in zip(folders, results, strict=True):
        apart = [name for name in _ALIKE if result["recipe"][name] != last["recipe"][name]]
        apart += [name for name in ("train_digest", "test_digest") if result[name] != last[name]]
        if apart:
            raise ArgumentError(f"{folder} and {folders[-1]} differ in {', '.join(apart)}; give runs alike in these.")
    if [last["train_digest"], last["test_digest"]] != [train_set.digest, test_set.digest]:
        raise ArgumentError(f"{folders[-1]} was trained on other data; give the data that it was trained on.")
    plan = last["recipe"]
    if plan["trunk"] == "frozen" or not plan["hold_out"]:
        raise ArgumentError(f"{folders[-1]} has a frozen trunk or held no images out; give runs of a finetune recipe.")
    files = [folder / "best.safetensors" for folder in folders]
    weights = [load_file(file) for file in files]
    tensors = {name: torch.stack([each[name] for each in weights]).mean(0) for name in weights[-1]}
    held_out = train_set[train_set.split(plan["hold_out"])[1]]
    prepare = Preprocessing(last["side"], plan["crop_pct"], *NORMALISATIONS[plan["normalisation"]])
    names = plan["model"].split("+")
    looks = {"test": test_set, "held_out": held_out}
    measured = {}
    for name in names:
        model = create_model(name, **plan["model_args"])
        model.load_state_dict(take_out(tensors, name) if len(names) > 1 else tensors)
        measured[name] = {n: dataclasses.asdict(evaluate(model, data, prepare)) for n, data in looks.items()}
    result = last | {n: _mean([measured[name][n] for name in names]) for n in looks}
    told = [{n: each[n] for n in ("training_seconds", "environment")} for each in results]
    result["mean_of"] = [{"sha256": file_sha256(file)} | each for file, each in zip(files, told, strict=True)]
    result["environment"] = environment()
    result["training_seconds"] = round(sum(each["training_seconds"] for each in results), 1)
    if len(names) > 1:
        result["models"] = measured
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "best.safetensors", tensors, {"format": "pt"})
    write_text(folder / "result.json", json.dumps(result, indent=1))  # last: it makes the rest count
    return result


def _mean(seen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    means = {name: fmean(metrics[name] for metrics in seen) for name in ("loss", "top1")}
    return means | {"images": sum(metrics["images"] for metrics in seen)}


def main() -> None:
    """Read the arguments, take the mean, print what it reaches."""
    parser = argparse.ArgumentParser(prog="python -m sqzoo.train.mean", description=__doc__)
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    parser.add_argument("--run", required=True, help="folder to write")
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    arguments = parser.parse_args()
    try:
        data = [cifar10(part, arguments.data) for part in ("train", "test")]
        result = mean_of_runs(arguments.runs, arguments.run, *data)
    except SqzooError as e:
        raise SystemExit(f"mean: {e}") from e
    for name, seen in result.get("models", {result["recipe"]["model"]: result}).items():
        held_out, test = seen["held_out"], seen["test"]
        print(f"{name}: held out {held_out['top1']:.2f} % and {held_out['loss']:.4f}, ", end="")
        print(f"test {test['top1']:.2f} % and {test['loss']:.4f}")


if __name__ == "__main__":
    main()
