"""What the paper leaves open: the readings, the rule that decides, and that the recipes are what was decided."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.paper import open_choices, runner
from benchmarks.paper.open_choices import BASE, READINGS, SEEDS, decide, fields, render, run
from sqzoo.train import recipe
from tests.support.runs import TEST, coloured


def made(gains: dict[tuple[str, str], float], rows: tuple[str, ...] = tuple(READINGS)) -> dict[str, Any]:
    """Return runs that all have 80 % give or take 0.1, but for the readings (choice, value) that gain."""
    found = {}
    for row in rows:
        for reading in READINGS[row]:
            for seed in range(SEEDS):
                top1 = 80 + gains.get((reading.choice, reading.value), 0.0) + (0.1 if seed else -0.1)
                found[run(row, reading, seed, Path()).name] = {"val": {"top1": top1}}
    return found


def test_each_reading_differs_from_the_base_in_one_choice() -> None:
    for row, readings in READINGS.items():
        names = [run(row, r, s, Path("x")).name for r in readings for s in range(SEEDS)]
        assert len(set(names)) == len(names) and readings[0] is BASE
        base = run(row, BASE, 0, Path("x")).recipe
        assert base.hold_out == 5000 and base.select == "val" and base.normalisation == "imagenet"
        for reading in readings[1:]:
            one = run(row, reading, 0, Path("x"))
            assert not one.test and not one.log_test  # the test images are not evaluated
            differing = [k for k, v in base.to_json().items() if one.recipe.to_json()[k] != v]
            assert len(differing) == 1, (row, reading)


def test_noise_decides_nothing() -> None:
    assert decide(made({})) == {"squeezenet_cifar": {}, "sq1": {}, "fire_next": {}}
    assert decide(made({("classifier", "with both"): 0.1}))["fire_next"] == {}  # two standard errors are 0.28


def test_a_clear_gain_replaces_the_base_in_its_row_and_the_best_value_counts() -> None:
    found = decide(made({("classifier", "with both"): 0.5, ("classifier", "with ReLU"): 0.4}))
    assert found == {"squeezenet_cifar": {}, "sq1": {}, "fire_next": {"classifier": "with both"}}
    assert fields("fire_next", found["fire_next"])["model_args"] == {"drop_rate": 0.5, "logit_relu": True}


def test_a_shared_choice_is_decided_for_all_rows_once_all_are_recorded() -> None:
    gains = {("batch size", "128"): 0.5, ("normalisation", "CIFAR-10's"): -3.0}
    assert all(choices == {"batch size": "128"} for choices in decide(made(gains)).values())
    assert fields("sq1", {"batch size": "128"}) == {"batch_size": 128, "lr": 0.0004, "model_args": {}}
    part = made(gains, ("sq1",))
    assert decide(part) == {"sq1": {}}
    assert "Not recorded yet: squeezenet_cifar, fire_next" in render({"runs": part})


def test_the_table_says_what_is_decided_and_what_is_closest() -> None:
    assert "Not measured yet" in render({})
    text = render({"runs": made({("between the linear layers", "ReLU"): 2.0})})
    assert "| `sq1` | between the linear layers | ReLU | 82.00 ± 0.14 | +2.00 | yes |" in text
    assert "| `sq1` | batch size | 32 | 80.00 ± 0.14 | +0.00 | no |" in text
    assert "`sq1`: between the linear layers ReLU, 82.00 % (paper 86.7 %)" in text and "Not the same for all" in text
    assert "Decided for `sq1`: between the linear layers: ReLU." in text


def test_other_initial_weights_are_torchvisions(tmp_path: Path, trunks: Path) -> None:
    reading = next(r for r in READINGS["fire_next"] if r.choice == "initial weights")
    plan = run("fire_next", reading, 0, tmp_path).recipe
    open_choices.write_start(Path(plan.start), plan, str(trunks))
    tensors = load_file(plan.start)
    assert 0.008 < tensors["classifier.weight"].std() < 0.012  # normal with 0.01
    assert 0.9 < tensors["block.expand.0.weight"].abs().max() / (6 / 128) ** 0.5 <= 1  # Kaiming-uniform's bound
    assert all(torch.count_nonzero(t) == 0 for n, t in tensors.items() if n.endswith("bias") and "features" not in n)


@pytest.mark.filterwarnings("ignore:Precision loss occurred")  # scipy's, of scores that 20 images make equal
def test_it_trains_and_records(tmp_path: Path, trunks: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The command from its start to its table, on few and small images; twice, the second time it trains nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(open_choices, "RECORD", tmp_path / "open_choices.json")
    monkeypatch.setattr(open_choices, "READINGS", {"sq1": READINGS["sq1"]})
    small = {"sizes": ((32, 1),), "crop_pct": 1.0, "batch_size": 16, "hold_out": 20, "select": "val"}
    monkeypatch.setattr(open_choices, "BASE_FIELDS", small)
    monkeypatch.setattr(open_choices, "write_into", lambda *_: None)
    monkeypatch.setattr(runner, "_data", lambda args, *_: (coloured(100, 1), TEST))
    words = ["open_choices.py", "--only", "sq1", "--workers", "1", "--work", str(tmp_path / "runs"), "--cache", "cache"]
    monkeypatch.setattr("sys.argv", [*words, "--trunk", str(trunks)])
    monkeypatch.setattr(open_choices, "write_record", lambda file, record: file.write_text(json.dumps(record)))
    for said in ("14 runs, 14 epochs", "All of it is recorded."):
        assert open_choices.main() == 0
        assert said in capsys.readouterr().out
    found = json.loads((tmp_path / "open_choices.json").read_text())["runs"]
    assert len(found) == 14 and all("test" not in r and len(r["weights_sha256"]) == 64 for r in found.values())
    assert {r["recipe"]["start"] for r in found.values()} == {
        "imagenet",
        "runs/start/sq1-0.safetensors",
        "runs/start/sq1-1.safetensors",
    }


def test_the_recipes_are_what_was_decided() -> None:
    """Edit `sqzoo/train/recipes.py` where this fails: `open_choices.py --render` prints the fields."""
    decided = decide(open_choices.known())
    for row in READINGS:
        expected = fields(row, decided.get(row, {}))
        for name in ("paper_cifar10", "held_out_cifar10"):
            plan = recipe(name, row)
            assert {k: getattr(plan, k) for k in expected} == expected, row
        assert "initial weights" not in decided.get(row, {}), "recipes have no such field yet"
        assert plan.normalisation == expected.get("normalisation", "imagenet")
