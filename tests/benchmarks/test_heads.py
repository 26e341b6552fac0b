"""Table 2's heads: the order, the records, the seed that ships."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import heads, runner
from sqzoo.errors import ArgumentError
from sqzoo.train import recipe
from tests.support.runs import TEST, TRAIN


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of records."""
    monkeypatch.setattr(heads, "HEADS", tmp_path / "heads")
    (tmp_path / "heads").mkdir()
    return tmp_path


def write(one: runner.Run, top1: float, val: float | None = None, **changes: Any) -> None:
    record = {"recipe": one.recipe.to_json(), "test": {"top1": top1, "loss": 0.5}, "log": [{}] * 50, "params": 7}
    record |= {"val": None if val is None else {"top1": val}} | changes
    (heads.HEADS / f"{one.name}.json").write_text(json.dumps(record))


def test_cheap_rows_come_first_and_every_seed_has_both_protocols() -> None:
    plan = heads.runs(list(heads.ROWS), 3)
    assert len({one.name for one in plan}) == len(plan) == 24
    assert [one.recipe.model for one in plan[::6]] == ["squeezenet_cifar", "sq1", "fire_next", "alexnet_cifar"]
    assert all(one.recipe.epochs == 50 and one.recipe.batch_size == 64 for one in plan)
    assert {(one.recipe.hold_out, one.recipe.select) for one in plan} == {(0, "test"), (5000, "val")}
    assert {one.recipe.layers for one in plan} == {"head"}
    for one in plan[:18]:
        row, _, rest = one.name.partition(".")
        name, _, seed = rest.partition("-")
        assert one.recipe == recipe(name, row, seed=int(seed))  # `sqzoo train` makes it again


def test_a_record_of_another_recipe_does_not_count(folder: Path) -> None:
    one = heads.run("sq1", "paper", 0)
    assert heads.summary("sq1", "paper") is None
    write(one, 86.0)
    write(heads.run("sq1", "paper", 1), 87.0, recipe=replace(one.recipe, lr=0.1, seed=1).to_json())
    found = heads.summary("sq1", "paper")
    assert found == {"seeds": [0], "top1": [86.0], "loss": [0.5], "epochs": 50, "params": 7}


def test_the_median_is_that_of_the_images_that_chose_the_epoch(folder: Path) -> None:
    for seed, (test, val) in enumerate(((86.0, 87.0), (87.0, 85.0), (88.0, 86.0))):
        write(heads.run("sq1", "paper", seed), test)
        write(heads.run("sq1", "held_out", seed), test, val)
    assert heads.median("sq1", "paper", 3).recipe.seed == 1
    assert heads.median("sq1", "held_out", 3).recipe.seed == 2
    with pytest.raises(ArgumentError, match=r"sq1\.paper_cifar10-3: not recorded"):
        heads.median("sq1", "paper", 4)


def test_it_trains_and_records(folder: Path, trunks: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The command from its start to its end, on few and small images; the second time it trains nothing."""
    monkeypatch.chdir(folder)
    small = {"sizes": ((32, 2),), "crop_pct": 1.0, "batch_size": 16}

    def plan(name: str, row: str, seed: int) -> Any:
        return recipe(name, row, seed=seed, **small, hold_out=20 if name == "held_out_cifar10" else 0)

    monkeypatch.setattr(heads, "recipe", plan)
    monkeypatch.setattr(runner, "_data", lambda args, *_: (TRAIN, TEST))
    monkeypatch.setattr(heads, "write_record", lambda file, record: file.write_text(json.dumps(record)))
    words = ["heads.py", "--only", "squeezenet_cifar", "sq1", "--seeds", "1", "--workers", "1", "--trunk", str(trunks)]
    monkeypatch.setattr("sys.argv", words)
    for said in ("squeezenet_cifar: 2 runs, 4 epochs", "All of it is recorded."):
        assert heads.main() == 0
        assert said in capsys.readouterr().out
    record = json.loads((folder / "heads" / "sq1.held_out_cifar10-0.json").read_text())
    assert record["tag"] == "sq1.held_out_cifar10" and len(record["weights_sha256"]) == 64
    assert record["test"]["images"] == 40 and len(record["log"]) == 2 and record["log"][0].keys() >= {"epoch", "val"}
    assert (folder / "runs" / "heads" / "sq1.held_out_cifar10-0" / "best.safetensors").is_file()


def test_mistakes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["heads.py", "--only", "sq2"])
    with pytest.raises(SystemExit):
        heads.main()
    assert "invalid choice: 'sq2'" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["heads.py", "--seeds", "0"])
    with pytest.raises(ArgumentError, match="--seeds"):
        heads.main()
