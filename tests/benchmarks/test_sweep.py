"""The sweeps: what is planned, and what the records say."""

import csv
import io
import json
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import figures, plots
from benchmarks.paper.experiments import Experiment, Setting, experiments, runs, setting
from benchmarks.paper.records import COLUMNS, outcomes, record, recorded
from tests.support import ROOT
from tests.support.fork import python

FIGURES = ROOT / "benchmarks" / "results" / "paper"


def small(**changes: Any) -> Setting:
    """A setting of the sweeps' kind on 32-pixel images."""
    arguments = {"mid": changes.pop("mid", 8)}
    fields = {"layers": "head", "side": 32, "crop_pct": 1.0, "hold_out": 20, "select": "val"}
    fields |= {"batch_size": 16, "lr": 0.001, "model_args": arguments} | changes
    name = ",".join(["small", f"mid={arguments['mid']}", *(f"{k}={v}" for k, v in changes.items())])
    return Setting("sq1", name, json.dumps(fields))


# The plan


def test_each_setting_is_trained_once_a_seed_for_the_longest_that_asks() -> None:
    known = experiments()
    assert list(known) == ["table1", "table3", *(f"fig{n}" for n in range(5, 12))]
    plan = runs(list(known.values()), 2)
    assert len({figures.key(one) for one in plan}) == len(plan)
    epochs = {figures.key(one): one.recipe.epochs for one in plan}
    wanted = {s.run(seed) for e in known.values() for s in e.settings.values() for seed in (0, 1)}
    assert epochs.keys() == wanted
    for experiment in known.values():
        assert all(epochs[s.run(1)] >= experiment.epochs for s in experiment.settings.values())
    assert all(one.recipe.epochs == 2 for one in runs(list(known.values()), 1, 2))
    caches = [one.cache for one in plan]
    assert {"", "avg-max", "max-avg", "avg-avg"} == set(caches)
    assert sum(a != b for a, b in pairwise(caches)) <= 4  # those of one backbone stand together


def test_bfloat16_is_for_those_that_gain_by_it() -> None:
    """Sq-1's head reads non-zeros, for which there is no bfloat16 product."""
    plain, half = [
        [s.precision(wanted) for s in (setting("sq1", {}), setting("fire_next", {"add": True}))]
        for wanted in (False, True)
    ]
    assert plain == ["float32", "float32"] and half == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("fig5", 25),
        ("fig7", 8),
        ("fig8", 6),
        ("fig9", 4),
        ("fig10", 6),
        ("fig11", 4),
    ],
)
def test_the_papers_grids(name: str, count: int) -> None:
    assert len(experiments()[name].settings) == count


def test_base_settings_are_the_papers() -> None:
    table1, table3 = (next(iter(experiments()[n].settings.values())).recipe(0, 1) for n in ("table1", "table3"))
    assert (table1.lr, table1.model_args["mid"], table1.model_args["drop_rate"]) == (0.001, 64, 0.3)
    assert (table3.lr, table3.model_args["mid"], table3.model_args["drop_rate"]) == (0.0004, 32, 0.1)
    rates = {dict(label)["lr"] for label in experiments()["fig6"].settings}
    assert {0.00005, 0.0004, 0.0008, 0.001, 0.002, 0.01} <= rates
    assert {s.recipe(0, 50).lr for s in experiments()["fig8"].settings.values()} >= {0.005, 0.001, 0.0001, 8e-5, 2e-5}
    assert all(s.recipe(0, 1).hold_out == 5000 for e in experiments().values() for s in e.settings.values())
    assert setting("sq1", {"lr": 0.001, "mid": 64}) == next(iter(experiments()["table1"].settings.values()))


# The records


def result(tops: list[float], held: list[float]) -> dict[str, Any]:
    rows = [
        {"train_loss": 1.0, "val": {"loss": 1.0, "top1": h}, "test": {"loss": 100 - t, "top1": t}}
        for t, h in zip(tops, held, strict=True)
    ]
    about = {"recipe": {}, "params": 7, "environment": {"cpu": "x"}, "training_seconds": 1.0}
    return about | {"log": rows, "train_digest": "a", "test_digest": "b"}


def known(folder: Path) -> tuple[Experiment, dict[str, Any]]:
    one, other = small(mid=1), small(mid=2)
    experiment = Experiment("fig0", "Figure 0", 3, "lines", {(("mid", 1),): one, (("mid", 2),): other})
    file = folder / "runs.json"
    record(file, {f"{one.name},seed=0": result([80, 90, 85, 99], [50, 60, 70, 99])})
    record(file, {f"{one.name},seed=1": result([70, 72, 71], [50, 52, 51])})
    record(file, {f"{other.name},seed={k}": result([60, 61, 62], [40, 42, 41]) for k in (0, 1)})
    return experiment, recorded(file)


def test_outcomes_of_both_protocols_at_equal_epochs(tmp_path: Path) -> None:
    experiment, runs = known(tmp_path)
    found, epochs = outcomes(experiment, runs, 2)
    assert epochs == 3  # the fourth epoch of one run is left out
    first = found[(("mid", 1),)]
    assert first.top1 == {"paper": [90, 72], "held_out": [85, 72]} and first.held_out == [70, 52]
    assert first.loss["held_out"] == [15, 28] and first.params == 7
    assert first.mean("top1", "paper") == 81 and first.deviation("top1", "paper") == pytest.approx(12.7279, abs=1e-4)
    assert outcomes(experiment, runs, 3) == ({}, 0)
    assert len(recorded(tmp_path / "runs.json")["environments"]) == 1 and len(COLUMNS) == 5


def test_figures_are_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    experiment, runs = known(tmp_path)
    found, epochs = outcomes(experiment, runs, 2)
    for kind in ("lines", "curves", "cases"):
        drawn = [
            plots.draw(Experiment("fig0", "Figure 0", 3, kind, experiment.settings), found, epochs, 2, tmp_path / n)
            for n in ("a", "b")
        ]
        assert [f.suffix for f in drawn[0]] == [".csv", ".png", ".svg"]
        assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*drawn, strict=True))
    rows = list(csv.DictReader(io.StringIO(plots.csv_text(found, epochs, 2))))
    assert rows[0]["paper_top1_mean"] == "81.0000" and rows[0]["held_out_top1_mean"] == "78.5000"
    assert rows[1]["mid"] == "2" and rows[1]["seeds"] == "2"


@pytest.mark.parametrize("name", list(experiments()))
def test_tables_are_those_of_the_records(name: str) -> None:
    """A figure's table, title and number of seeds are what the committed records give."""
    experiment = experiments()[name]
    found, epochs = outcomes(experiment, recorded(FIGURES / "runs.json"), 3)
    if not found:
        pytest.skip(f"{name} is not recorded for three seeds")
    assert (FIGURES / f"{name}.csv").read_text(encoding="utf-8") == plots.csv_text(found, epochs, 3)
    for kind in ("png", "svg") if experiment.draw != "table" else ():
        assert (FIGURES / f"{name}.{kind}").stat().st_size > 1000


@pytest.mark.slow
def test_unknown_experiment_suggests_the_nearest() -> None:
    command = [python(), "benchmarks/paper/figures.py", "--only", "fig55", "--plan"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Did you mean 'fig5'?" in done.stderr and "Traceback" not in done.stderr
