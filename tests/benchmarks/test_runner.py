"""The runner: runs survive kills, are shared by processes and not repeated; what a plan says about its time."""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import expected
from benchmarks.paper.runner import Run, work
from sqzoo.files import write_json
from sqzoo.train import Recipe, recipe, train
from tests.support.runs import FROZEN, TEST, TRAIN

ODD = {"pool2": "avg"}
PLAN = [
    Run("first", FROZEN, True, True),
    Run(
        "second", Recipe("sq1", sizes=((32, 2),), crop_pct=1.0, hold_out=20, select="val", batch_size=16, seed=1), False
    ),
    Run("odd", Recipe("sq1", ODD, sizes=((32, 2),), crop_pct=1.0, batch_size=16), True, True, cache="odd"),
]

SCRIPT = """
import sys
from pathlib import Path
from tests.benchmarks.test_runner import work_in
work_in(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def work_in(folder: Path, trunks: Path) -> None:
    """Do the plan in a folder; a run's record is its result."""
    records = folder / "records"
    records.mkdir(parents=True, exist_ok=True)

    def kept() -> set[str]:
        return {f.stem for f in records.glob("*.json")}

    args = argparse.Namespace(work=folder, cache=folder / "cache", trunk=str(trunks), device="cpu")
    work(PLAN, kept, lambda run, result: write_json(records / f"{run.name}.json", result), (TRAIN, TEST), args)


def start(folder: Path, trunks: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(trunks)], env=os.environ)


def logs(folder: Path) -> dict[str, Any]:
    """Return each record's epochs, without times."""
    found = {f.stem: json.loads(f.read_text())["log"] for f in (folder / "records").glob("*.json")}
    return {
        n: [{k: v for k, v in row.items() if k not in ("seconds", "time")} for row in log] for n, log in found.items()
    }


def test_runs_are_those_of_training_alone_and_are_not_repeated(tmp_path: Path, trunks: Path) -> None:
    work_in(tmp_path, trunks)
    assert logs(tmp_path).keys() == {run.name for run in PLAN}
    first = json.loads((tmp_path / "records" / "first.json").read_text())
    alone = train(FROZEN, TRAIN, TEST, tmp_path / "alone", trunk=trunks, log_test=True, progress=False)
    assert first["weights_sha256"] == alone["weights_sha256"] and first["recipe"] == FROZEN.to_json()
    assert (
        json.loads((tmp_path / "records" / "second.json").read_text())["test"] is None
    )  # the test images are not asked
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")}
    work_in(tmp_path, trunks)
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")} == before


def test_features_of_an_odd_backbone_are_removed(tmp_path: Path, trunks: Path) -> None:
    work_in(tmp_path, trunks)
    assert list((tmp_path / "cache").glob("*.safetensors")) and not (tmp_path / "cache" / "odd").exists()


@pytest.mark.slow
def test_killed_at_random_it_loses_at_most_the_epoch_under_way(tmp_path: Path, trunks: Path) -> None:
    """Killed again and again: no epoch that was logged is trained again, and the end is that of an unbroken list."""
    rng = random.Random(int(time.time()))
    known: dict[str, list[str]] = {}
    kills = 0
    while True:
        process = start(tmp_path / "killed", trunks)
        try:
            code = process.wait(timeout=3 + 2 * rng.random() + 2 * kills)  # 3 seconds are imports; more room each time
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            for file in (tmp_path / "killed").glob("*/log.jsonl"):
                rows = file.read_text().splitlines()
                assert rows[: len(known.get(file.parent.name, []))] == known.get(file.parent.name, [])
                known[file.parent.name] = rows
        else:
            assert code == 0
            break
    assert kills
    work_in(tmp_path / "whole", trunks)
    assert logs(tmp_path / "killed") == logs(tmp_path / "whole")


@pytest.mark.slow
def test_processes_share_the_work(tmp_path: Path, trunks: Path) -> None:
    both = [start(tmp_path, trunks) for _ in range(2)]
    assert [p.wait(timeout=300) for p in both] == [0, 0]
    assert logs(tmp_path).keys() == {run.name for run in PLAN}


@pytest.mark.parametrize(("epochs", "images"), [(1, 0), (3, 10_000)])
def test_the_time_that_a_plan_takes_is_counted(monkeypatch: pytest.MonkeyPatch, epochs: int, images: int) -> None:
    monkeypatch.setattr(expected, "_cost", lambda recipe: (0.001, 0.0001))
    plan = recipe("held_out_cifar10", "sq1", sizes=((224, epochs),))
    text = expected.report([(plan, images)] * 4, 2, 1, True, "cpu")
    hours = 4 * epochs * (45_000 * 0.001 + images * 0.0001) / 2 / 3600
    assert f"4 runs, {4 * epochs} epochs, 50 s for 50,000 images: {hours:.1f} hours" in text
    assert "hours" not in expected.report([(plan, images)], 2, 1, True, "cuda")
