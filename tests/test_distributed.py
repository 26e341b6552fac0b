"""torchrun: two processes end in the weights of one, resume each other's runs, and refuse what one process does."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import TEST, TRAIN, TRAINED

from sqzoo.train import train

# Fire-Next has no dropout, whose masks each process draws by itself. 80 images in batches of 27 leave one of 26 for
# the end, and a hold-out of 19 a batch of a single image, of which one process has none.
PLAN = replace(TRAINED, model="fire_next", batch_size=27, ema=0.9, label_smoothing=0.1)
SCRIPT = """
import dataclasses, json, sys
from test_train import TEST, TRAIN
from sqzoo.errors import SqzooError
from sqzoo.train import Recipe, train
plan = json.loads(sys.argv[1])
plan["sizes"] = tuple(map(tuple, plan["sizes"]))
try:
    train(Recipe(**plan), TRAIN, TEST, sys.argv[2], trunk=sys.argv[3], progress=False)
except SqzooError as e:
    sys.exit(f"refused: {e}")
"""


def torchrun(plan: object, folder: Path, trunks: Path) -> subprocess.CompletedProcess[str]:
    script = folder.parent / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{SCRIPT}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    recipe = json.dumps(plan.to_json())  # type: ignore[attr-defined]
    return subprocess.run([*command, recipe, str(folder), str(trunks)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("batch_size", [27, 79], ids=["uneven", "one_left_over"])
def test_two_processes_end_in_the_weights_of_one(batch_size: int, tmp_path: Path, trunks: Path) -> None:
    plan = replace(PLAN, batch_size=batch_size)
    alone = train(plan, TRAIN, TEST, tmp_path / "alone", trunk=trunks, progress=False)
    done = torchrun(plan, tmp_path / "two", trunks)
    assert done.returncode == 0, done.stderr
    together = json.loads((tmp_path / "two" / "result.json").read_text())
    one, two = (load_file(tmp_path / name / "best.safetensors") for name in ("alone", "two"))
    assert one.keys() == two.keys()
    start = load_file(tmp_path / "alone" / "last.safetensors")
    for name in one:
        # Rounding alone: three epochs move the weights by a hundred times as much.
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5)
    assert [row["train_loss"] for row in together["log"]] == pytest.approx(
        [row["train_loss"] for row in alone["log"]], abs=1e-3
    )
    assert together["held_out"]["top1"] == pytest.approx(alone["held_out"]["top1"], abs=5.1)  # one image of 20
    assert any(not torch.equal(start[f"model.{n}"], start[f"best.{n}"]) for n in one)  # the average was kept


def test_two_processes_climb_the_gradient_of_all_images(tmp_path: Path, trunks: Path) -> None:
    """Where rounding sends a pooling layer to another value the ways part, so the weights agree roughly alone."""
    plan = replace(PLAN, batch_size=40, sizes=((64, 1),), sharpness=0.5)
    for name, sharpness in (("alone", 0.5), ("flat_or_not", 0.0)):
        train(replace(plan, sharpness=sharpness), TRAIN, TEST, tmp_path / name, trunk=trunks, progress=False)
    done = torchrun(plan, tmp_path / "two", trunks)
    assert done.returncode == 0, done.stderr
    one, two, neither = (load_file(tmp_path / n / "best.safetensors") for n in ("alone", "two", "flat_or_not"))

    def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return torch.cat([(a[name] - b[name]).flatten() for name in a]).norm().item()

    assert apart(one, two) < 0.1 * apart(one, neither)


def test_one_process_goes_on_where_two_stopped(tmp_path: Path, trunks: Path) -> None:
    done = torchrun(PLAN, tmp_path / "two", trunks)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "two"
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    again = train(PLAN, TRAIN, TEST, folder, trunk=trunks, progress=False)
    assert again["log"] == result["log"]
    # The same weights, looked at with another number of threads, which add up in another order.
    assert again["test"]["loss"] == pytest.approx(result["test"]["loss"], rel=1e-5)
    assert again["test"]["top1"] == result["test"]["top1"]


def test_heads_of_a_frozen_trunk_train_in_one_process(tmp_path: Path, trunks: Path) -> None:
    plan = replace(PLAN, trunk="frozen", sizes=((32, 1),), flip=False, pad=0)
    done = torchrun(plan, tmp_path / "two", trunks)
    assert done.returncode != 0
    assert "refused: A frozen trunk's heads train in one process" in done.stderr


def test_a_mistake_that_one_process_finds_ends_both_in_one_sentence(tmp_path: Path, trunks: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "recipe.json").write_text("{}")
    done = torchrun(PLAN, tmp_path / "two", trunks)
    assert done.returncode != 0
    assert done.stderr.count("refused: ") == 1 and "holds a run of another recipe" in done.stderr
    assert "[rank1]" not in done.stderr, "the other shows a traceback"  # torchrun itself shows one
