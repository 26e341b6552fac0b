"""torchrun: two processes end in the weights of one, resume each other's runs, and refuse what one process does."""

import json
import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sqzoo.train import Recipe, train
from tests.support.fork import python
from tests.support.runs import TEST, TRAIN, TRAINED

# Fire-Next has no dropout, whose masks each process draws by itself. 80 images in batches of 27 leave one of 26 for
# the end, and a hold-out of 19 a batch of a single image, of which one process has none.
PLAN = replace(TRAINED, model="fire_next", batch_size=27, ema=0.9, label_smoothing=0.1)
SCRIPT = """
import json, sys
from tests.support.runs import TEST, TRAIN
from sqzoo.errors import SqzooError
from sqzoo.train import Recipe, train
try:
    recipe = Recipe(**json.loads(sys.argv[1]))
    train(recipe, TRAIN, TEST, sys.argv[2], trunk=sys.argv[3], progress=False, precision="float32")
except SqzooError as e:
    sys.exit(f"refused: {e}")
"""


def alone(plan: Recipe, folder: Path, trunks: Path) -> dict[str, Any]:
    return train(plan, TRAIN, TEST, folder, trunk=trunks, progress=False, precision="float32")


ONE_MACHINE = ("--standalone", "--nproc-per-node", "2")


def command(plan: Recipe, folder: Path, trunks: Path, *where: str) -> list[str]:
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    words = [python(), "-m", "torch.distributed.run", *where, str(script)]
    return [*words, json.dumps(plan.to_json()), str(folder), str(trunks)]


def torchrun(plan: Recipe, folder: Path, trunks: Path) -> subprocess.CompletedProcess[str]:
    words, environment = command(plan, folder, trunks, *ONE_MACHINE), os.environ | {"PYTHON_EXEC": python()}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)


def same_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Compare the chosen weights of the runs "alone" and "two"; return the first's."""
    one, two = (load_file(folder / name / "best.safetensors") for name in ("alone", "two"))
    assert one.keys() == two.keys()
    for name in one:
        # Rounding alone, of which Adam makes whole steps where a gradient is next to nothing: one weight in 1,000.
        apart = (two[name] - one[name]).abs()
        assert apart.max() < 1e-3 and (apart > 2e-5 + 1e-3 * one[name].abs()).sum() <= 1e-3 * apart.numel() + 1, name
    return one


@pytest.mark.parametrize("batch_size", [27, 79], ids=["uneven", "one_left_over"])
def test_two_processes_end_in_the_weights_of_one(batch_size: int, tmp_path: Path, trunks: Path) -> None:
    plan = replace(PLAN, batch_size=batch_size)
    single = alone(plan, tmp_path / "alone", trunks)
    done = torchrun(plan, tmp_path / "two", trunks)
    assert done.returncode == 0, done.stderr
    together = json.loads((tmp_path / "two" / "result.json").read_text())
    one = same_weights(tmp_path)
    start = load_file(tmp_path / "alone" / "last.safetensors")
    assert [row["train_loss"] for row in together["log"]] == pytest.approx(
        [row["train_loss"] for row in single["log"]], abs=1e-3
    )
    assert together["val"]["top1"] == pytest.approx(single["val"]["top1"], abs=5.1)  # one image of 20
    assert any(not torch.equal(start[f"model.{n}"], start[f"best.{n}"]) for n in one)  # the average was kept


def test_two_processes_share_the_statistics_of_batch_norm(tmp_path: Path, trunks: Path) -> None:
    """Batch norm in the backbone sees the whole batch, and its running statistics are those of one process.

    Where rounding sends a pooling layer to another value the ways part, so few steps at a low rate are compared.
    """
    plan = replace(PLAN, batch_size=79, sizes=((64, 2),), batch_norm=True, lr=1e-5, muon_lr=1e-5)
    alone(plan, tmp_path / "alone", trunks)
    done = torchrun(plan, tmp_path / "two", trunks)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("alone", "two"))
    assert one.keys() == two.keys()
    for name in one:
        if name.startswith(("model.", "ema.")):
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)


def test_one_process_goes_on_where_two_stopped(tmp_path: Path, trunks: Path) -> None:
    done = torchrun(PLAN, tmp_path / "two", trunks)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "two"
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    again = alone(PLAN, folder, trunks)
    assert again["log"] == result["log"]
    # The same weights, looked at with another number of threads, which add up in another order.
    assert again["test"]["loss"] == pytest.approx(result["test"]["loss"], rel=1e-5)
    assert again["test"]["top1"] == result["test"]["top1"]


def test_heads_of_a_frozen_trunk_train_in_one_process(tmp_path: Path, trunks: Path) -> None:
    plan = replace(PLAN, layers="head", sizes=((32, 1),), flip=False, pad=0)
    done = torchrun(plan, tmp_path / "two", trunks)
    assert done.returncode != 0
    assert "refused: A frozen trunk's heads train in one process" in done.stderr


def test_a_mistake_that_one_process_finds_ends_both_in_one_sentence(tmp_path: Path, trunks: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "recipe.json").write_text("{}")
    (tmp_path / "two" / ".sqzoo-run").touch()
    done = torchrun(PLAN, tmp_path / "two", trunks)
    assert done.returncode != 0
    assert done.stderr.count("refused: ") == 1 and "holds a run of another recipe" in done.stderr
    assert "[rank1]" not in done.stderr, "the other shows a traceback"  # torchrun itself shows one


@pytest.mark.slow
def test_two_machines_that_meet_at_an_address(tmp_path: Path, trunks: Path) -> None:
    """docs/scale.md's command, two of it on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    where = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", address)
    words = command(PLAN, tmp_path / "two", trunks, *where, "--rdzv-id", "photos")
    environment = os.environ | {"PYTHON_EXEC": python()}
    machines = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for machine in machines:
        _, err = machine.communicate(timeout=300)
        assert machine.returncode == 0, err
    alone(PLAN, tmp_path / "alone", trunks)
    same_weights(tmp_path)
