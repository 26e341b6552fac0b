"""Training: what a run learns and leaves alone, what it records, and that it goes on exactly where it was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

from sqzoo import create_model
from sqzoo.data import Dataset, Normalise
from sqzoo.errors import ArgumentError, BusyError, DataError, SqzooError
from sqzoo.evaluation import evaluate
from sqzoo.models.upsample import Upsample
from sqzoo.train import Recipe, loop, train
from sqzoo.train.batch_norm import fold_batch_norm, insert_batch_norm
from sqzoo.train.checkpoint import run_lock
from sqzoo.train.learner import Learner
from sqzoo.train.optimizer import learning_rate
from sqzoo.weights import load_trunk
from tests.support.fork import python
from tests.support.runs import FROZEN, TEST, TRAIN, TRAINED, coloured
from tests.support.sentences import assert_one_sentence


def resized(model: nn.Module, plan: Recipe) -> nn.Module:
    """Have a model enlarge images as the last epoch of a recipe does."""
    size = plan.sizes[-1][0]
    model.upsample = nn.Identity() if size == 32 else Upsample(size)
    return model


def run(plan: Recipe, folder: Path, trunks: Path, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"train_set": TRAIN, "test_set": TEST, "trunk": trunks, "progress": False}
    arguments["precision"] = "float32"
    return train(plan, run=folder, **(arguments | changes))


@pytest.fixture()
def models(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that `train` makes, in order."""
    made: list[nn.Module] = []

    def remember(*args: Any, **kwargs: Any) -> nn.Module:
        made.append(create_model(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr("sqzoo.train.learner.create_model", remember)
    return made


def test_after_a_mistake_the_right_command_is_not_refused(tmp_path: Path, trunks: Path) -> None:
    plan = replace(FROZEN, sizes=((32, 1),))
    for wrong in (replace(plan, model_args={"mid": "a"}), replace(plan, hold_out=10**6)):
        with pytest.raises(SqzooError):
            run(wrong, tmp_path, trunks)
    assert run(plan, tmp_path, trunks)["epoch"] == 1


# What is learnt


def test_frozen_recipe_trains_the_head_alone(tmp_path: Path, trunks: Path, models: list[nn.Module]) -> None:
    plan = replace(FROZEN, lr=0.01, sizes=((32, 8),))
    result = run(plan, tmp_path, trunks)
    state = models[0].state_dict()
    real = load_trunk("squeezenet1_1", trunks)
    assert all(torch.equal(state[k], real[k]) for k in real)
    best = load_file(tmp_path / "best.safetensors")
    head = {k for k in state if not k.startswith("features.")}
    assert best.keys() == head
    torch.manual_seed(plan.seed)
    fresh = create_model("sq1").state_dict()
    assert all(not torch.equal(best[k], fresh[k]) for k in head)
    assert result["log"][-1]["train_loss"] < 0.7 * result["log"][0]["train_loss"]
    assert result["val"]["top1"] > 50 and result["test"]["top1"] > 50  # ten classes: 10 by chance


def test_trained_recipe_changes_every_tensor(tmp_path: Path, trunks: Path, models: list[nn.Module]) -> None:
    result = run(TRAINED, tmp_path, trunks)
    best = load_file(tmp_path / "best.safetensors")
    assert best.keys() == models[0].state_dict().keys()
    torch.manual_seed(TRAINED.seed)
    before = create_model("sq1", init="imagenet", trunk=trunks).state_dict()
    assert [k for k in best if torch.equal(best[k], before[k])] == []
    assert [row["size"] for row in result["log"]] == [32, 64, 64]


def test_last_layer_alone(tmp_path: Path, trunks: Path, models: list[nn.Module]) -> None:
    run(replace(FROZEN, layers="last"), tmp_path, trunks)
    assert load_file(tmp_path / "best.safetensors").keys() == {"fc2.weight", "fc2.bias"}
    torch.manual_seed(FROZEN.seed)
    before = create_model("sq1", init="imagenet", trunk=trunks).state_dict()
    after = models[0].state_dict()
    assert {k for k in after if not torch.equal(after[k], before[k])} == {"fc2.weight", "fc2.bias"}


def test_start_from_an_earlier_run(tmp_path: Path, trunks: Path) -> None:
    """With a learning rate of zero a run ends where it started: at the earlier trunk, and head where it fits."""
    file = tmp_path / "first" / "best.safetensors"
    run(TRAINED, file.parent, trunks)
    earlier = load_file(file)
    still = replace(TRAINED, sizes=((32, 1),), lr=0.0, start=str(file))
    run(still, tmp_path / "same", trunks)
    same = load_file(tmp_path / "same" / "best.safetensors")
    assert all(torch.equal(same[k], earlier[k]) for k in earlier)
    run(replace(still, model="fire_next"), tmp_path / "other", trunks)
    other = load_file(tmp_path / "other" / "best.safetensors")
    torch.manual_seed(still.seed)
    fresh = create_model("fire_next").state_dict()
    for name, tensor in other.items():
        assert torch.equal(tensor, (earlier if name.startswith("features.") else fresh)[name])

    # The file counts as data of the run: another one under its name is another run.
    shutil.copy(tmp_path / "other" / "best.safetensors", file)
    with pytest.raises(ArgumentError) as caught:
        run(still, tmp_path / "same", trunks)
    assert_one_sentence(caught.value, tmp_path / "same", "another recipe or other data")


def test_start_from_what_is_no_earlier_run(tmp_path: Path, trunks: Path) -> None:
    run(FROZEN, tmp_path / "head", trunks)
    (tmp_path / "text").write_text("not a safetensors file")
    for number, name in enumerate(("missing", "text", "head", "head/best.safetensors")):
        with pytest.raises(ArgumentError) as caught:
            run(replace(TRAINED, start=str(tmp_path / name)), tmp_path / str(number), trunks)
        assert_one_sentence(caught.value, f"{tmp_path / name}'", "best.safetensors")


@pytest.mark.parametrize("plan", [FROZEN, TRAINED], ids=["frozen", "trained"])
def test_the_recorded_figures_are_those_of_the_saved_weights(plan: Recipe, tmp_path: Path, trunks: Path) -> None:
    result = run(plan, tmp_path, trunks)
    model = resized(create_model("sq1", init="imagenet", trunk=trunks), plan)
    model.load_state_dict(model.state_dict() | load_file(tmp_path / "best.safetensors"))
    _, val_idx = TRAIN.split(plan.hold_out)
    for name, data in (("test", TEST), ("val", TRAIN[val_idx])):
        measured = evaluate(model, data)
        assert measured.images == result[name]["images"] == len(data)
        assert measured.top1 == result[name]["top1"]
        assert measured.loss == pytest.approx(result[name]["loss"], abs=1e-5)


def test_the_best_epoch_is_measured_at_its_own_size(tmp_path: Path, trunks: Path) -> None:
    plan = replace(TRAINED, sizes=((64, 3), (32, 1)), schedule="constant")
    result = run(plan, tmp_path, trunks)
    best = result["log"][result["epoch"] - 1]
    assert result["size"] == best["size"] == 64 != result["log"][-1]["size"]
    model = create_model("sq1")
    model.load_state_dict(load_file(tmp_path / "best.safetensors"), strict=True)
    model.upsample = Upsample(64)
    assert evaluate(model, TEST).loss == pytest.approx(result["test"]["loss"], rel=1e-5)


def test_cached_features_train_as_a_textbook_loop_does(tmp_path: Path, trunks: Path) -> None:
    """The frozen trunk run anew in every step, and plain Adam: the same weights after 21 steps, within 1e-4.

    The order of a sum is another, and Adam makes whole steps of the smallest gradients.
    """
    plan = replace(FROZEN, sizes=((64, 3),), hold_out=0, select="test")
    run(plan, tmp_path, trunks)
    torch.manual_seed(plan.seed)
    model = create_model("sq1", init="imagenet", trunk=trunks)
    model.features.requires_grad_(False)
    head = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(head, lr=plan.lr)
    resized(model, plan)
    prepare, labels = Normalise(), torch.from_numpy(TRAIN.labels)
    first: dict[str, torch.Tensor] = {}
    for epoch in range(3):
        torch.manual_seed(plan.seed * 1_000_003 + epoch)
        model.train()
        for indices in torch.randperm(100).split(plan.batch_size):
            loss = F.cross_entropy(model(prepare(TRAIN.images[indices.numpy()])), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        first = first or {k: v.clone() for k, v in model.state_dict().items()}
    learnt = load_file(tmp_path / "last.safetensors")
    for name, tensor in model.state_dict().items():
        if not name.startswith("features."):
            torch.testing.assert_close(learnt[f"model.{name}"], tensor, rtol=0, atol=1e-4)
            assert (tensor - first[name]).abs().max() > 10 * 1e-4  # two epochs change far more than that


def test_learning_rate_rises_over_a_tenth_then_falls_along_a_cosine() -> None:
    rates = [learning_rate(TRAINED, 0.8, step, 40) for step in range(41)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 0.8 and rates[22] == pytest.approx(0.4) and rates[40] == pytest.approx(0)
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert {learning_rate(FROZEN, 0.1, step, 16) for step in range(16)} == {0.1}


# What is looked at, chosen and recorded


def test_selection_on_held_out_images_never_looks_at_test(tmp_path: Path, trunks: Path) -> None:
    result = run(FROZEN, tmp_path / "a", trunks)
    wrong = Dataset(255 - TEST.images, (TEST.labels + 3) % 10)
    other = run(FROZEN, tmp_path / "b", trunks, test_set=wrong)
    assert other["test"] != result["test"]
    assert (tmp_path / "a/best.safetensors").read_bytes() == (tmp_path / "b/best.safetensors").read_bytes()
    assert timeless(tmp_path / "a") == timeless(tmp_path / "b")
    for row in timeless(tmp_path / "a"):
        assert row.keys() == {"epoch", "size", "train_loss", "val"}
    best = max(result["log"], key=lambda row: (row["val"]["top1"], -row["val"]["loss"]))
    assert result["epoch"] == best["epoch"]
    assert result["val"] == pytest.approx(best["val"])


@pytest.mark.parametrize("hold_out", [0, 20])
def test_the_last_epoch_counts_where_nothing_chooses(hold_out: int, tmp_path: Path, trunks: Path) -> None:
    result = run(replace(FROZEN, select="last", hold_out=hold_out, lr=0.03), tmp_path, trunks)
    assert result["epoch"] == 3 and all("test" not in row for row in result["log"])
    assert result["val"] == (result["log"][-1]["val"] if hold_out else None)
    kept, last = (load_file(tmp_path / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(t, last[f"model.{n}"]) for n, t in kept.items())


def test_selection_on_test_images_logs_them(tmp_path: Path, trunks: Path) -> None:
    result = run(replace(FROZEN, hold_out=0, select="test"), tmp_path, trunks)
    assert result["val"] is None
    for row in timeless(tmp_path):
        assert row.keys() == {"epoch", "size", "train_loss", "test"} and row["test"]["images"] == 40
    best = max(result["log"], key=lambda row: (row["test"]["top1"], -row["test"]["loss"]))
    assert result["epoch"] == best["epoch"] and result["test"] == pytest.approx(best["test"])


def test_result_records_what_it_hangs_on(tmp_path: Path, trunks: Path) -> None:
    plan = replace(FROZEN, seed=5)
    result = run(plan, tmp_path, trunks)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["recipe"] == plan.to_json() and result["recipe"]["seed"] == 5
    assert result["train_digest"] == TRAIN.digest and result["test_digest"] == TEST.digest
    assert result["params"] == 792_618
    assert result["log"] == [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    about = result["environment"]
    worker = "PYTEST_XDIST_WORKER" in os.environ  # whose command line does not name pytest
    assert ("sys.stdin.readline" if worker else "pytest") in about["command"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    if head.returncode == 0:
        assert about["commit"].partition("+")[0] == head.stdout.strip()
    assert about["versions"]["torch"] == version("torch") and about["versions"]["timm"]
    assert about["threads"] == torch.get_num_threads() and about["cores"] >= 1
    assert about["cpu"] and about["cpu_capability"] and about["python"] and "gpu" in about


def test_another_seed_is_another_run(tmp_path: Path, trunks: Path) -> None:
    for seed in (0, 1):
        run(replace(FROZEN, seed=seed), tmp_path / str(seed), trunks)
    run(FROZEN, tmp_path / "again", trunks)
    saved = {name: (tmp_path / name / "best.safetensors").read_bytes() for name in ("0", "1", "again")}
    assert saved["0"] == saved["again"] != saved["1"]


def test_log_test_looks_and_does_not_choose(tmp_path: Path, trunks: Path) -> None:
    seen: list[dict[str, Any]] = []
    result = run(FROZEN, tmp_path / "a", trunks, log_test=True, on_epoch=seen.append)
    assert [row["test"] for row in seen] == [row["test"] for row in result["log"]] and len(seen) == 3
    run(FROZEN, tmp_path / "b", trunks)
    assert (tmp_path / "a/best.safetensors").read_bytes() == (tmp_path / "b/best.safetensors").read_bytes()


def test_evaluate_is_plain_and_leaves_the_mode(trunks: Path) -> None:
    torch.manual_seed(0)
    model = create_model("sq1", init="imagenet", trunk=trunks, upsample=64).train()
    measured = evaluate(model, TEST, batch_size=7)
    assert model.training
    with torch.inference_mode():
        logits = model.eval()(Normalise()(TEST.images))
    labels = torch.from_numpy(TEST.labels)
    assert measured.images == 40
    assert measured.top1 == 2.5 * int((logits.argmax(1) == labels).sum())
    assert measured.loss == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)
    assert evaluate(model, TEST[:4]).images == 4 and not model.training


# Going on


def timeless(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "time")} for row in rows]


KILLED = {
    # Dropout on the cached features, and on the logits.
    "frozen": replace(FROZEN, model="squeezenet_cifar", schedule="cosine", weight_decay=0.1),
    # Running statistics, which are no parameters.
    "batch norm": replace(FROZEN, model="fire_next", model_args={"batch_norm": True}, hold_out=0, select="test"),
    "trained": TRAINED,
    "average": replace(TRAINED, ema=0.9, label_smoothing=0.1),
    "norms": replace(TRAINED, ema=0.9, batch_norm=True, cutout=8),
    "muon": replace(TRAINED, muon_lr=3e-3, batch_norm=True),
    "bfloat16": replace(TRAINED, ema=0.9, batch_norm=True, muon_lr=3e-3),
}
PRECISION = {"bfloat16": "bfloat16"}

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from tests.train.test_loop import KILLED, PRECISION, run

name, folder, trunks, steps = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
step = torch.optim.AdamW.step
def step_and_die(self, *args, **kwargs):
    global steps
    steps -= 1
    if steps < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
torch.optim.AdamW.step = step_and_die
run(KILLED[name], folder, trunks, cache=folder.parent / "cache", precision=PRECISION.get(name, "float32"))
"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("bfloat16", "muon"))) for name in KILLED]
)
def test_a_killed_run_ends_as_an_uninterrupted_one(name: str, tmp_path: Path, trunks: Path) -> None:
    """The killed run keeps its features on disk, the other in memory: that makes no difference either."""
    plan, killed, whole = KILLED[name], tmp_path / "killed", tmp_path / "whole"
    steps_an_epoch = -(-(100 - plan.hold_out) // 16)
    done = subprocess.run(
        [python(), "-c", SCRIPT, name, str(killed), str(trunks), str(steps_an_epoch + 3)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [row["epoch"] for row in timeless(killed)] == [1]
    assert not (killed / "result.json").exists() and not (killed / "best.safetensors").exists()
    precision = PRECISION.get(name, "float32")
    second = run(plan, killed, trunks, cache=tmp_path / "cache", precision=precision)
    first = run(plan, whole, trunks, precision=precision)
    assert (killed / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()
    assert timeless(killed) == timeless(whole) and len(timeless(whole)) == 3
    for key in ("epoch", "test", "val", "recipe", "params"):
        assert first[key] == second[key]
    last = [load_file(folder / "last.safetensors") for folder in (killed, whole)]
    assert last[0].keys() == last[1].keys()
    assert all(torch.equal(last[0][k], last[1][k]) for k in last[0])


def test_the_average_is_evaluated_and_kept(tmp_path: Path, trunks: Path, models: list[nn.Module]) -> None:
    """Averages by hand, from the weights after each step, are what the run evaluates, keeps and resumes from."""
    plan = replace(TRAINED, ema=0.7, sizes=((32, 2),))
    steps: list[dict[str, torch.Tensor]] = []
    step = torch.optim.AdamW.step

    def remember(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        if not steps:
            steps.append({n: p.detach().clone() for n, p in models[0].named_parameters()})
        result = step(self, *args, **kwargs)
        steps.append({n: p.detach().clone() for n, p in models[0].named_parameters()})
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", remember)
        result = run(plan, tmp_path, trunks)
    average = dict(steps[0])
    for done, weights in enumerate(steps[1:]):
        decay = min(0.7, (1 + done) / (10 + done))
        average = {n: decay * a + (1 - decay) * weights[n] for n, a in average.items()}
    last = load_file(tmp_path / "last.safetensors")
    for name, tensor in average.items():
        torch.testing.assert_close(last[f"ema.{name}"], tensor)
        assert torch.equal(last[f"model.{name}"], steps[-1][name])
    if result["epoch"] == 2:
        assert all(torch.equal(last[f"best.{n}"], last[f"ema.{n}"]) for n in average)


def test_batch_norm_changes_nothing_when_inserted_and_when_folded(trunks: Path) -> None:
    model = create_model("squeezenet_cifar", init="imagenet", trunk=trunks).eval()
    plain = {n: p.clone() for n, p in model.named_parameters()}
    images = Upsample(64)(Normalise()(TRAIN.images[:16]))
    before = model(images)
    insert_batch_norm(model.features, images)
    torch.testing.assert_close(model(images), before, rtol=1e-3, atol=1e-3)
    assert len([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]) == 25  # a conv, eight Fires of three
    model.train()
    model(Upsample(64)(Normalise()(TRAIN.images[16:48])))  # other running statistics
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(1.1)
                module.bias.add_(0.01)
    model.eval()
    normed = model(images)
    assert not torch.allclose(normed, before, atol=0.1)
    fold_batch_norm(model.features)
    torch.testing.assert_close(model(images), normed, rtol=1e-3, atol=1e-3)
    after = dict(model.named_parameters())
    assert after.keys() == plain.keys() and {type(m) for m in model.modules() if isinstance(m, nn.Conv2d)} == {
        nn.Conv2d
    }


def test_a_run_with_norms_leaves_a_plain_network(tmp_path: Path, trunks: Path) -> None:
    plan = replace(TRAINED, batch_norm=True, ema=0.5, sizes=((64, 3),), lr=0.002)
    result = run(plan, tmp_path, trunks)
    model = create_model("sq1")
    model.load_state_dict(load_file(tmp_path / "best.safetensors"), strict=True)
    measured = evaluate(resized(model, plan), TEST)
    assert measured.top1 == result["test"]["top1"] > 30
    with pytest.raises(ArgumentError):
        replace(FROZEN, batch_norm=True)


def test_bfloat16_changes_the_arithmetic_and_not_what_is_kept(tmp_path: Path, trunks: Path) -> None:
    plan = replace(TRAINED, batch_norm=True, sizes=((32, 2),))  # small: CPUs without bfloat16 are slow at it
    full = run(plan, tmp_path / "full", trunks)
    half = run(plan, tmp_path / "half", trunks, precision="bfloat16")
    losses = [r["log"][0]["train_loss"] for r in (full, half)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)
    kept = load_file(tmp_path / "half" / "best.safetensors")
    assert {t.dtype for t in kept.values()} == {torch.float32}
    model = create_model("sq1")
    model.load_state_dict(kept, strict=True)
    assert evaluate(resized(model, plan), TEST).loss == pytest.approx(half["test"]["loss"], rel=1e-5)


def test_pruned_weights_stay_zero_and_the_best_epoch_has_them_all(
    tmp_path: Path, trunks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(FROZEN, prune=0.9, sizes=((32, 5),))
    with pytest.raises(ArgumentError) as caught:
        run(plan, tmp_path / "refused", trunks)
    assert_one_sentence(caught.value, "prune", "1,000,000")

    monkeypatch.setattr("sqzoo.train.learner._PRUNED_SIZE", 10_000)
    result = run(plan, tmp_path / "pruned", trunks)
    kept = load_file(tmp_path / "pruned" / "best.safetensors")
    large = [n for n, t in kept.items() if t.dim() > 1 and t.numel() >= 10_000]
    assert large and result["epoch"] >= 3  # the zeros are whole in the middle of the third
    for name, weight in kept.items():
        share = (weight == 0).double().mean().item()
        assert share == (pytest.approx(0.9, abs=1e-3) if name in large else pytest.approx(0, abs=0.01)), name
    with pytest.raises(ArgumentError):  # the zeros come by the run's length: a shorter run is not its beginning
        run(replace(plan, sizes=((32, 6),)), tmp_path / "pruned", trunks)


def test_label_smoothing_spreads_the_target(tmp_path: Path, trunks: Path) -> None:
    """No logits are then further apart than the smoothed target asks for, however long the training."""
    plan = replace(FROZEN, model="fire_next", lr=0.01, sizes=((32, 10),))
    plain, smooth = (
        run(replace(plan, label_smoothing=s), tmp_path / str(s), trunks)["log"][-1]["train_loss"] for s in (0.0, 0.5)
    )
    # The entropy of a target of 0.55 and nine of 0.05 is 1.68 nats: no smoothed loss lies below it.
    assert smooth > 1.6 > plain


def test_batch_norms_statistics_are_saved(tmp_path: Path, trunks: Path) -> None:
    result = run(KILLED["batch norm"], tmp_path, trunks)
    model = create_model("fire_next", init="imagenet", trunk=trunks, batch_norm=True)
    best = load_file(tmp_path / "best.safetensors")
    assert best.keys() == {k for k in model.state_dict() if not k.startswith("features.")}
    model.load_state_dict(model.state_dict() | best)
    measured = evaluate(model, TEST)
    assert measured.top1 == result["test"]["top1"]
    assert measured.loss == pytest.approx(result["test"]["loss"], abs=1e-5)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, trunks: Path, models: list[nn.Module]) -> None:
    result = run(FROZEN, tmp_path, trunks)
    before = {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in tmp_path.iterdir() if "tfevents" not in f.name}
    files = {"recipe.json", "log.jsonl", "best.safetensors", "last.safetensors", "result.json", ".sqzoo-run"}
    assert before.keys() == files | {".sqzoo-run.lock"}
    assert run(FROZEN, tmp_path, tmp_path / "no trunk is needed") == result
    assert all((f.read_bytes(), f.stat().st_mtime_ns) == before[f.name] for f in tmp_path.iterdir() if f.name in before)
    assert len(models) == 1


def test_killed_between_the_last_checkpoint_and_the_rest(tmp_path: Path, trunks: Path) -> None:
    result = run(FROZEN, tmp_path, trunks)
    best, log = (tmp_path / "best.safetensors").read_bytes(), (tmp_path / "log.jsonl").read_text()
    (tmp_path / "result.json").unlink()
    (tmp_path / "best.safetensors").unlink()
    (tmp_path / "log.jsonl").write_text("".join(log.splitlines(keepends=True)[:-1]))
    again = run(FROZEN, tmp_path, trunks)
    assert (tmp_path / "best.safetensors").read_bytes() == best
    assert (tmp_path / "log.jsonl").read_text() == log
    assert again["test"] == result["test"] and again["log"] == result["log"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_run_is_refused(finished: bool, tmp_path: Path, trunks: Path) -> None:
    folder = tmp_path / "run"
    run(FROZEN, folder, trunks)
    if not finished:
        (folder / "result.json").unlink()
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    others: list[Callable[[], Any]] = [
        lambda: run(replace(FROZEN, lr=0.002), folder, trunks),
        lambda: run(replace(FROZEN, seed=1), folder, trunks),
        lambda: run(replace(FROZEN, model="fire_next"), folder, trunks),
        lambda: run(FROZEN, folder, trunks, train_set=coloured(100, 3)),
        lambda: run(FROZEN, folder, trunks, test_set=coloured(40, 3)),
    ]
    for other in others:
        with pytest.raises(ArgumentError) as caught:
            other()
        assert_one_sentence(caught.value, folder, "another recipe or other data")
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def test_damaged_checkpoint_is_named(tmp_path: Path, trunks: Path) -> None:
    folder = tmp_path / "run"
    run(FROZEN, folder, trunks, cache=tmp_path / "cache")
    (folder / "result.json").unlink()
    file = folder / "last.safetensors"
    raw = file.read_bytes()
    epoch = raw.index(b'epoch\\": 3') + len(b'epoch\\": ')
    places = {0, 9, epoch, len(raw) - 1, *np.random.default_rng(0).integers(0, len(raw), 6).tolist()}
    spoilt = [raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :] for place in sorted(places)]
    spoilt += [b"", raw[: len(raw) // 2], raw[:-1], (folder / "best.safetensors").read_bytes()]
    for content in spoilt:
        file.write_bytes(content)
        with pytest.raises(DataError) as caught:
            run(FROZEN, folder, trunks, cache=tmp_path / "cache")
        assert_one_sentence(caught.value, file, "damaged", "delete it")
    file.unlink()  # as the message says
    assert len(run(FROZEN, folder, trunks)["log"]) == 3


@pytest.mark.parametrize("name", ["recipe.json", "result.json"])
def test_damaged_record_is_named(name: str, tmp_path: Path, trunks: Path) -> None:
    run(FROZEN, tmp_path, trunks)
    for content in ("", "{", "null"):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError) as caught:
            run(FROZEN, tmp_path, trunks)
        assert_one_sentence(caught.value, tmp_path / name, "damaged")


def test_a_cache_serves_runs_of_other_heads(tmp_path: Path, trunks: Path) -> None:
    run(FROZEN, tmp_path / "a", trunks, cache=tmp_path / "cache")
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").rglob("*.*")}
    run(replace(FROZEN, model_args={"mid": 16}, lr=0.01), tmp_path / "b", trunks, cache=tmp_path / "cache")
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").rglob("*.*")} == before


def test_two_processes_do_not_train_in_one_folder(trunks: Path, tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(BusyError) as caught:
        run(FROZEN, tmp_path, trunks)
    assert_one_sentence(caught.value, "Another process is training", tmp_path)


def test_a_folder_of_somebody_elses_is_refused_and_left_alone(tmp_path: Path, trunks: Path) -> None:
    (tmp_path / "thesis.txt").write_text("five years")
    with pytest.raises(ArgumentError) as caught:
        run(FROZEN, tmp_path, trunks)
    assert_one_sentence(caught.value, tmp_path, "'thesis.txt'", "new or empty")
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_diverged_run_ends_in_a_sentence_and_leaves_no_result(tmp_path: Path, trunks: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        run(replace(TRAINED, lr=1e6), tmp_path, trunks)
    assert_one_sentence(caught.value, "epoch", "NaN", "lr=1e+06")
    assert not (tmp_path / "result.json").exists() and not (tmp_path / "best.safetensors").exists()


def test_too_little_memory_names_a_smaller_batch(tmp_path: Path, trunks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "batch", exhausted)
    with pytest.raises(ArgumentError) as caught:
        run(TRAINED, tmp_path, trunks)
    assert_one_sentence(caught.value, "batch_size=16", "--set batch_size=8")


def test_muon_changes_the_backbones_convolutions_alone(tmp_path: Path, trunks: Path) -> None:
    """At a rate of 0 for AdamW only they move."""
    run(replace(TRAINED, lr=0.0, muon_lr=1e-3, sizes=((64, 1),)), tmp_path, trunks)
    torch.manual_seed(TRAINED.seed)
    before = create_model("sq1", init="imagenet", trunk=trunks).state_dict()
    after = load_file(tmp_path / "best.safetensors")
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    assert moved == {k for k, v in before.items() if k.startswith("features.") and v.dim() == 4}


def test_a_training_step_meets_at_most_ten_functions_of_the_trainer(tmp_path: Path, trunks: Path) -> None:
    """Of sqzoo/train, in the recipe with everything; the network's own layers are its own."""
    plan = replace(TRAINED, model_args={}, batch_norm=True, ema=0.9, cutout=8, muon_lr=1e-3, label_smoothing=0.1)
    learner = Learner(plan, {"train": TRAIN}, trunks, None, "cpu", True, False)
    met: set[str] = set()

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and "/sqzoo/train/" in frame.f_code.co_filename:
            name = frame.f_code.co_qualname
            if not name.endswith(">"):  # comprehensions and lambdas
                met.add(name)

    sys.setprofile(profile)
    try:
        loop.train_epoch(learner, 0, False)
    finally:
        sys.setprofile(None)
    others = {"Norm.forward", "NormedConv.forward", "processes"}  # layers
    others |= {"Learner.set_size", "Recipe.size_at", "Recipe.epochs"}  # once per epoch
    if len(met - others) > 10 or "update" not in met:
        pytest.fail(f"a step meets {sorted(met - others)}")


def test_a_log_file_gets_a_line_per_epoch_and_no_bar(
    tmp_path: Path, trunks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(FROZEN, tmp_path, trunks, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("epoch ") and "{" not in line for line in lines)
    assert "val top1" in lines[0] and "min left" in lines[0]


def test_tensorboard_has_each_epoch_once_after_a_resume(
    tmp_path: Path, trunks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = Recipe("sq1", sizes=((32, 3),), batch_size=16, hold_out=20, select="val")

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "run", trunks, on_epoch=stop)
    result = run(plan, tmp_path / "run", trunks)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    for name, key in (("train loss", None), ("val top1", "val")):
        found = [(e.step, e.value) for e in events.Scalars(name)]
        wanted = [row[key]["top1"] if key else row["train_loss"] for row in result["log"]]
        assert [step for step, _ in found] == [1, 2, 3] and [v for _, v in found] == pytest.approx(wanted)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", "meta"])
def test_devices_that_are_not_there(device: str, tmp_path: Path, trunks: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        run(FROZEN, tmp_path / "run", trunks, device=device)
    assert_one_sentence(caught.value, repr(device))
    assert not (tmp_path / "run").exists()
