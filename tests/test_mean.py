"""The mean of runs: its weights, its figures, and the runs of which there is none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sqzoo.train.mean import mean_of_runs
from sqzoo.train.publish import read_run
from test_train import TEST, TRAIN, TRAINED, run

from sqzoo import create_model
from sqzoo.errors import ArgumentError
from sqzoo.hashing import file_sha256
from sqzoo.train import evaluate

PLAN = replace(TRAINED, model="sq1+fire_next", sizes=((64, 1),), select="last")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, trunks: Path) -> list[Path]:
    """Two runs of two networks on one trunk, the second from where the first ended."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    run(PLAN, first, trunks)
    run(replace(PLAN, start=str(first / "best.safetensors")), second, trunks)
    return [first, second]


def test_it_is_a_run_with_the_mean_of_the_weights_and_its_own_figures(runs: list[Path], tmp_path: Path) -> None:
    result = mean_of_runs(runs, tmp_path, TRAIN, TEST)
    one, two, mean = (load_file(folder / "best.safetensors") for folder in (*runs, tmp_path))
    assert mean.keys() == one.keys() == two.keys()
    for name in mean:
        torch.testing.assert_close(mean[name], (one[name] + two[name]) / 2)
    assert any(not torch.equal(mean[name], two[name]) for name in mean)
    assert [each["sha256"] for each in result["mean_of"]] == [file_sha256(f / "best.safetensors") for f in runs]
    held_out = TRAIN[TRAIN.split(PLAN.hold_out)[1]]
    for name in ("sq1", "fire_next"):
        found, tensors = read_run(tmp_path, name)
        model = create_model(name)
        model.load_state_dict(tensors)
        for looked_at, data in (("test", TEST), ("held_out", held_out)):
            wanted = evaluate(model, data, PLAN.preprocessing(64))
            assert found[looked_at] == pytest.approx(wanted.__dict__, rel=1e-5)
    assert result["test"]["loss"] == pytest.approx(sum(m["test"]["loss"] for m in result["models"].values()) / 2)


def test_a_mean_of_one_is_that_run(runs: list[Path], tmp_path: Path) -> None:
    result = mean_of_runs(runs[:1], tmp_path, TRAIN, TEST)
    before = json.loads((runs[0] / "result.json").read_text())
    for name, measured in before["models"].items():
        for looked_at in ("test", "held_out"):
            assert result["models"][name][looked_at] == pytest.approx(measured[looked_at], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (None, "holds no finished run"),
        ({"hold_out": 10}, "differ in hold_out"),
        ({"model": "sq1"}, "differ in model"),
    ],
)
def test_runs_without_a_mean(change: dict[str, Any] | None, told: str, runs: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    if change:
        result = json.loads((runs[0] / "result.json").read_text())
        result["recipe"] |= change
        (other / "result.json").write_text(json.dumps(result))
    with pytest.raises(ArgumentError, match=told):
        mean_of_runs([other, runs[1]], tmp_path / "mean", TRAIN, TEST)
    assert not (tmp_path / "mean").exists()


def test_other_data(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="was trained on other data"):
        mean_of_runs(runs, tmp_path / "mean", TEST, TEST)
