"""The recorded runs of the sweeps, and what they say: both protocols' figures, mean and deviation over the seeds."""

import hashlib
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.paper.experiments import Experiment, Setting
from benchmarks.record import check
from sqzoo.errors import DataError
from sqzoo.files import write_text

COLUMNS = ("train_loss", "held_out_loss", "held_out_top1", "test_loss", "test_top1")


def recorded(records: Path) -> dict[str, Any]:
    """Return the recorded runs: {"runs": {"SETTING,seed=N": {...}}, "environments": {...}, "data": {...}}."""
    if not records.is_file():
        return {"runs": {}, "environments": {}, "data": {}}
    return dict(json.loads(records.read_text(encoding="utf-8")))


def record(records: Path, results: dict[str, dict[str, Any]]) -> None:
    """Add results of training to the records; several processes may do so at once."""
    runs, environments = {}, {}
    for name, result in results.items():
        environment = json.dumps(result["environment"], sort_keys=True)
        key = hashlib.sha256(environment.encode()).hexdigest()[:8]
        environments[key] = result["environment"]
        data = {k: result[k] for k in ("train_digest", "test_digest")}
        runs[name] = {
            **{k: result[k] for k in ("recipe", "precision", "params", "weights_sha256") if k in result},
            "environment": key,
            "training_seconds": result["training_seconds"],
            "log": [
                [round(v, 5) for v in (row["train_loss"], *_metrics(row["val"]), *_metrics(row["test"]))]
                for row in result["log"]
            ],
        }
    join(records, {"runs": runs, "environments": environments, "data": data})


def join(records: Path, others: dict[str, Any]) -> None:
    """Add records, of another machine say; of two of the same run the longer stays.

    Raises `DataError` where they are of other data, and what `check` raises.
    """
    check(others)
    records.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(records.with_name(f".{records.name}.lock")):
        known = recorded(records)
        if known["data"] not in ({}, others["data"]):
            raise DataError(f"{records} holds runs on other images ({known['data']}); keep them in another folder.")
        runs = known["runs"]
        runs |= {n: r for n, r in others["runs"].items() if n not in runs or len(r["log"]) > len(runs[n]["log"])}
        environments = known["environments"] | others["environments"]
        used = {r["environment"] for r in runs.values()}
        whole = {
            "runs": dict(sorted(runs.items())),
            "environments": {k: v for k, v in sorted(environments.items()) if k in used},
            "data": others["data"],
        }
        write_text(records, _text(whole))


def _metrics(metrics: dict[str, Any]) -> tuple[float, float]:
    return metrics["loss"], metrics["top1"]


def _text(known: dict[str, Any]) -> str:
    """Return the records as JSON with a line a run."""
    runs = ",\n".join(f"  {json.dumps(name)}: {json.dumps(r)}" for name, r in known["runs"].items())
    rest = {k: known[k] for k in ("data", "environments")}
    head = json.dumps(rest | {"columns": COLUMNS}, indent=1).removesuffix("\n}")
    return f'{head},\n "runs": {{\n{runs}\n }}\n}}\n'


@dataclass(frozen=True)
class Outcome:
    """A setting's runs: one value a seed for each figure. Protocols: "paper" (best epoch on test) and "held_out"."""

    top1: dict[str, list[float]]
    loss: dict[str, list[float]]
    held_out: list[float]  # best top-1 on the held-out images: what may choose a setting
    curves: list[list[float]]  # test top-1 by epoch, a list a seed
    params: int

    def values(self, measure: str, protocol: str) -> list[float]:
        """Return "top1" (percent) or "loss" (nats) by seed."""
        found: list[float] = getattr(self, measure)[protocol]
        return found

    def mean(self, measure: str, protocol: str) -> float:
        """Return the mean over the seeds."""
        return statistics.fmean(self.values(measure, protocol))

    def deviation(self, measure: str, protocol: str) -> float:
        """Return the standard deviation over the seeds; 0 for a single one."""
        values = self.values(measure, protocol)
        return statistics.stdev(values) if len(values) > 1 else 0.0


PROTOCOLS = ("paper", "held_out")


def outcomes(experiment: Experiment, known: dict[str, Any], seeds: int) -> tuple[dict[Any, Outcome], int]:
    """Return the outcome of each of an experiment's settings by label, and the epochs that all were trained for.

    Settings that are not recorded for all seeds are left out; longer runs are cut to the shortest, so that all had
    the same chance.
    """
    logs = {label: _logs(setting, known, seeds) for label, setting in experiment.settings.items()}
    logs = {label: found for label, found in logs.items() if found}
    if not logs:
        return {}, 0
    epochs = min(experiment.epochs, *(len(log) for found in logs.values() for log in found))
    params = {label: known["runs"][experiment.settings[label].run(0)]["params"] for label in logs}
    return {label: _outcome([log[:epochs] for log in found], params[label]) for label, found in logs.items()}, epochs


def _logs(setting: Setting, known: dict[str, Any], seeds: int) -> list[list[list[float]]]:
    found = [known["runs"].get(setting.run(seed)) for seed in range(seeds)]
    return [r["log"] for r in found] if all(found) else []


def _outcome(logs: list[list[list[float]]], params: int) -> Outcome:
    held_loss, held_top1, loss, top1 = (COLUMNS.index(c) for c in COLUMNS[1:])
    chosen = {
        "paper": [max(log, key=lambda row: (row[top1], -row[loss])) for log in logs],
        "held_out": [max(log, key=lambda row: (row[held_top1], -row[held_loss])) for log in logs],
    }
    return Outcome(
        {p: [row[top1] for row in rows] for p, rows in chosen.items()},
        {p: [row[loss] for row in rows] for p, rows in chosen.items()},
        [row[held_top1] for row in chosen["held_out"]],
        [[row[top1] for row in log] for log in logs],
        params,
    )
