"""Training several architectures on one trunk gives each of them whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sqzoo.train.shared import SharedTrunk, take_out

import sqzoo
from sqzoo.data import Dataset
from sqzoo.errors import ArgumentError, UnknownModelError
from sqzoo.train import evaluate, recipe, train

NAMES = "sq1+squeezenet_cifar+fire_next"


def test_each_network_is_what_it_is_alone() -> None:
    torch.manual_seed(0)
    shared = SharedTrunk(NAMES).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        together = shared(x).chunk(3)
        for name, logits in zip(NAMES.split("+"), together, strict=True):
            model = sqzoo.create_model(name).eval()
            model.load_state_dict(take_out(shared.state_dict(), name), strict=True)
            assert torch.equal(model(x), logits)
            assert torch.equal(shared.alone(name)(x), logits)


def test_run_trains_all_and_leaves_the_trunk_in_its_head_epochs(trunks: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 10
    images = rng.integers(0, 256, (60, 32, 32, 3), np.uint8)
    data = Dataset(images, labels)
    plan = recipe("finetune", NAMES, sizes=((32, 1),), head_epochs=1, hold_out=10, batch_size=16)
    train(plan, data, data, tmp_path / "head", trunk=trunks, progress=False)
    start = sqzoo.create_model("sq1", init="imagenet", trunk=trunks).state_dict()
    tensors = load_file(tmp_path / "head" / "best.safetensors")
    assert all(torch.equal(v, start[k]) for k, v in tensors.items() if k.startswith("features."))

    plan = recipe("finetune", NAMES, sizes=((32, 2),), head_epochs=1, hold_out=10, batch_size=16)
    result = train(plan, data, data, tmp_path / "all", trunk=trunks, progress=False)
    assert [row["epoch"] for row in result["log"]] == [1, 2]
    tensors = load_file(tmp_path / "all" / "best.safetensors")
    for name in NAMES.split("+"):
        model = sqzoo.create_model(name)
        model.load_state_dict(take_out(tensors, name), strict=True)
        found = evaluate(model, data, plan.preprocessing(32), batch_size=32)
        assert found.top1 == result["models"][name]["test"]["top1"]
        assert found.loss == pytest.approx(result["models"][name]["test"]["loss"], rel=1e-5)


def test_wrong_joins_are_clear() -> None:
    with pytest.raises(UnknownModelError, match="Unknown model 'sq2'"):
        recipe("finetune", "sq1+sq2")
    with pytest.raises(UnknownModelError, match=r"Unknown model 'sq1\+fire_next'"):
        recipe("paper", "sq1+fire_next")
    with pytest.raises(ArgumentError, match="head_epochs"):
        recipe("paper", "sq1", head_epochs=1)
