"""Many heads in one pass: each ends as when trained alone, whatever the others are and whenever it was killed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import FROZEN, TEST, TRAIN, assert_one_sentence, timeless

from sqzoo import create_model
from sqzoo.errors import ArgumentError
from sqzoo.train import Recipe, train, train_together

HEADS = [
    replace(FROZEN, sizes=((64, 3),)),
    replace(FROZEN, sizes=((64, 2),), lr=0.01, model_args={"mid": 16, "drop_rate": 0.4, "logit_drop_rate": 0.0}),
    replace(FROZEN, sizes=((64, 3),), model="squeezenet_cifar", log_test=True),
    replace(FROZEN, sizes=((64, 3),), model_args={"global_pool": "max"}, head="last"),
]


def together(recipes: list[Recipe], folder: Path, trunks: Path) -> list[Path]:
    runs = [folder / str(i) for i in range(len(recipes))]
    train_together(recipes, TRAIN, TEST, runs, trunk=trunks, progress=False)
    return runs


def test_heads_trained_together_end_as_each_alone(tmp_path: Path, trunks: Path) -> None:
    """Bit for bit: weights, optimiser and every figure of the log."""
    runs = together(HEADS, tmp_path, trunks)
    for plan, run in zip(HEADS, runs, strict=True):
        alone = tmp_path / "alone" / run.name
        train(plan, TRAIN, TEST, alone, trunk=trunks, progress=False)
        assert timeless(run) == timeless(alone) and len(timeless(run)) == plan.epochs
        for name in ("best.safetensors", "last.safetensors"):
            first, second = load_file(run / name), load_file(alone / name)
            assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_head_that_fell_behind_catches_up_with_the_others(tmp_path: Path, trunks: Path) -> None:
    """As after a kill between two heads' checkpoints: the one ahead waits, and both end as they would have."""
    whole = together(HEADS[:2], tmp_path / "whole", trunks)
    shorter = [replace(HEADS[0], sizes=((64, 1),)), HEADS[1]]
    together(shorter, tmp_path / "part", trunks)
    runs = together(HEADS[:2], tmp_path / "part", trunks)
    for first, second in zip(whole, runs, strict=True):
        assert timeless(first) == timeless(second)
        assert (first / "best.safetensors").read_bytes() == (second / "best.safetensors").read_bytes()


def test_a_finished_run_at_a_constant_rate_can_be_lengthened(tmp_path: Path, trunks: Path) -> None:
    whole = train(HEADS[0], TRAIN, TEST, tmp_path / "whole", trunk=trunks, progress=False)
    part = tmp_path / "part"
    short = replace(HEADS[0], sizes=((64, 1),))
    assert len(train(short, TRAIN, TEST, part, trunk=trunks, progress=False)["log"]) == 1
    longer = train(HEADS[0], TRAIN, TEST, part, trunk=trunks, progress=False)
    assert len(longer["log"]) == 3 and longer["test"] == whole["test"] and longer["recipe"] == whole["recipe"]
    assert (part / "best.safetensors").read_bytes() == (tmp_path / "whole" / "best.safetensors").read_bytes()
    with pytest.raises(ArgumentError) as caught:  # it has more epochs than asked for
        train(short, TRAIN, TEST, part, trunk=trunks, progress=False)
    assert_one_sentence(caught.value, part, "another recipe")


def test_a_run_along_a_cosine_cannot_be_lengthened(tmp_path: Path, trunks: Path) -> None:
    plan = replace(FROZEN, schedule="cosine", sizes=((32, 1),))
    train(plan, TRAIN, TEST, tmp_path, trunk=trunks, progress=False)
    with pytest.raises(ArgumentError) as caught:
        train(replace(plan, sizes=((32, 2),)), TRAIN, TEST, tmp_path, trunk=trunks, progress=False)
    assert_one_sentence(caught.value, tmp_path, "another recipe")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"seed": 1}, "same seed"),
        ({"batch_size": 8}, "batch_size"),
        ({"hold_out": 10}, "hold_out"),
        ({"sizes": ((32, 3),)}, "side"),
        ({"model_args": {"pool2": "avg"}}, "same trunk"),
        ({"precision": "bfloat16"}, "precision"),
        ({"model": "fire_next"}, "same trunk"),
    ],
)
def test_recipes_that_share_no_features_are_refused(
    changes: dict[str, object], part: str, tmp_path: Path, trunks: Path
) -> None:
    with pytest.raises(ArgumentError) as caught:
        together([HEADS[0], replace(HEADS[0], **changes)], tmp_path, trunks)
    assert_one_sentence(caught.value, part)


def test_heads_in_bfloat16_are_nearly_those_in_float32(tmp_path: Path, trunks: Path) -> None:
    """And, like those, each as when trained alone; what is kept is float32."""
    plan = replace(FROZEN, model="fire_next", precision="bfloat16", sizes=((64, 2),))
    plans = [plan, replace(plan, lr=0.002), replace(plan, model_args={"batch_norm": True})]
    runs = together(plans, tmp_path / "half", trunks)
    for one, folder in zip(plans, runs, strict=True):
        full = train(replace(one, precision="float32"), TRAIN, TEST, tmp_path / "full" / folder.name, trunk=trunks)
        alone = train(one, TRAIN, TEST, tmp_path / "alone" / folder.name, trunk=trunks)
        losses = [row["train_loss"] for row in timeless(folder)]
        wanted = [row["train_loss"] for row in full["log"]]
        assert losses == [row["train_loss"] for row in alone["log"]]
        assert losses != wanted and losses == pytest.approx(wanted, rel=0.05)
        kept = load_file(folder / "best.safetensors")
        assert {t.dtype for t in kept.values() if t.is_floating_point()} == {torch.float32}


def test_a_head_with_batch_norm_is_trained_on_whole_batches(tmp_path: Path, trunks: Path) -> None:
    plan = replace(FROZEN, model="fire_next", model_args={"batch_norm": True})
    run = together([plan, replace(plan, model_args={"add": True})], tmp_path, trunks)[0]
    state = load_file(run / "best.safetensors")
    assert create_model("fire_next", batch_norm=True).state_dict().keys() >= state.keys()
    assert any("running_mean" in k for k in state)
