"""Runs passes, each with all its seeds, and keeps the books of them in an Optuna study that processes can share."""

import hashlib
import json
import os
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.trial import TrialState

from benchmarks.paper.experiments import Pass
from benchmarks.paper.records import record, recorded
from sqzoo.data import Dataset
from sqzoo.errors import BusyError
from sqzoo.train import train

HEARTBEAT = 15  # seconds; a pass whose process is silent for three is given to another


@dataclass(frozen=True)
class Place:
    """Where a sweep runs: its folder (run folders, journal), the trunk's file, the feature cache, the device."""

    folder: Path
    records: Path
    trunk: str | None
    cache: Path
    device: str = "cpu"
    progress: bool = True
    bfloat16: bool = False  # for the settings that gain by it


def missing(one: Pass, seed: int, runs: dict[str, Any]) -> Pass:
    """Return the pass without the settings that are recorded for this seed and as many epochs."""
    epochs = {s: len(runs.get(s.run(seed), {"log": []})["log"]) for s in one.settings}
    return Pass(one.name, {s: e for s, e in one.settings.items() if epochs[s] < e})


def run(plan: list[Pass], seeds: int, data: tuple[Dataset, Dataset], place: Place, storage: str | None = None) -> None:
    """Train passes until all are recorded, sharing them with other processes that were given the same plan.

    storage: any of Optuna's databases; by default a SQLite file in the sweep's folder.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    names = {p.name: p for p in plan}
    with FileLock(place.folder / ".optuna.lock"):  # two processes that make its tables at once trip over each other
        books = _books(storage or f"sqlite:///{place.folder / 'optuna.db'}", sorted(names), seeds)

    def objective(trial: optuna.Trial) -> float:
        try:
            return _train(names[trial.suggest_categorical("pass", sorted(names))], seeds, data, place)
        except BusyError as e:  # another process took it in the same moment
            time.sleep(2)
            raise optuna.TrialPruned from e

    while True:
        optuna.storages.fail_stale_trials(books)
        state = {s: [t for t in books.get_trials(deepcopy=False) if t.state == s] for s in TrialState}
        done, taken = ({t.params.get("pass") for t in state[s]} for s in (TrialState.COMPLETE, TrialState.RUNNING))
        if done >= names.keys():
            return
        waiting = {t.system_attrs.get("fixed_params", {}).get("pass") for t in state[TrialState.WAITING]}
        for name in {t.params.get("pass") for t in state[TrialState.FAIL]} - done - taken - waiting - {None}:
            books.enqueue_trial({"pass": name})  # it was interrupted; its run folders go on where they stopped
        if names.keys() - done - taken:
            books.optimize(objective, n_trials=1)
        else:
            time.sleep(2)  # the last passes are with other processes, which may be killed


class _Grid(optuna.samplers.GridSampler):
    """A grid that leaves it to `run` to know the end: Optuna's looks for a number that a retried trial may lack."""

    def after_trial(self, *_: Any) -> None:
        pass


def _books(storage: str, names: list[str], seeds: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # which its heartbeat says that it is
    database = optuna.storages.RDBStorage(
        storage,
        engine_kwargs={"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else None,
        heartbeat_interval=HEARTBEAT,
        grace_period=3 * HEARTBEAT,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
    )
    digest = hashlib.sha256(json.dumps([names, seeds]).encode()).hexdigest()[:16]
    return optuna.create_study(
        study_name=f"sweep-{digest}",
        storage=database,
        sampler=_Grid({"pass": names}, seed=0),
        direction="maximize",
        load_if_exists=True,
    )


def _train(one: Pass, seeds: int, data: tuple[Dataset, Dataset], place: Place) -> float:
    """Train what is not recorded of a pass, seed by seed; return the best held-out accuracy among its runs."""
    cache = place.cache if one.any.ordinary_trunk else place.folder / f"cache-{os.getpid()}"
    for seed in range(seeds):
        left = missing(one, seed, recorded(place.records)["runs"]).settings
        for s, epochs in left.items():
            result = train(
                s.recipe(seed, epochs),
                *data,
                place.folder / "runs" / f"{s.run(seed)},epochs={epochs}",
                trunk=place.trunk,
                cache=cache,
                device=place.device,
                precision=s.precision(place.bfloat16),
                log_test=True,
                progress=place.progress,
            )
            record(place.records, {s.run(seed): result})
    if not one.any.ordinary_trunk:
        shutil.rmtree(cache, ignore_errors=True)  # gigabytes that no other pass reads
    runs = recorded(place.records)["runs"]
    return max(max(e[2] for e in runs[s.run(k)]["log"]) for s in one.settings for k in range(seeds))
