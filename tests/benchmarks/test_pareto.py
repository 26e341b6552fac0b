"""The comparison with published networks: their architectures are the published ones, sizes are chosen as stated."""

import json

import pytest
import torch

from benchmarks.size import pareto
from benchmarks.size.published import PUBLISHED
from sqzoo import get_weights

PARAMS = {"SE-ResNet-56": 862_889, "DenseNet-BC-100 k=12": 769_162, "ResNet-56": 855_770, "ResNet-20": 272_474,
          "DenseNet-BC-40 k=12": 176_122}  # fmt: skip  # as their sources state them, exact


@pytest.mark.parametrize("network", [p for p in PUBLISHED if p.build], ids=lambda p: p.name)
def test_architectures_are_the_published_ones(network: object) -> None:
    model = network.build().eval()  # type: ignore[attr-defined]
    params = sum(p.numel() for p in model.parameters())
    assert params == PARAMS.get(network.name, params)  # type: ignore[attr-defined]
    assert params / 1e6 == pytest.approx(network.params, abs=0.005)  # type: ignore[attr-defined]
    assert pareto.multiply_adds(model, 32) == pytest.approx(network.macs, rel=0.04)  # some count batch norm, too  # type: ignore[attr-defined]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_held_out_images_choose_the_side() -> None:
    rows = [
        {"tag": "sq1.x", "side": side, "held_out_top1": held, "test_top1": test}
        for side, held, test in ((64, 90.0, 99.0), (96, 92.8, 91.0), (128, 93.0, 92.0), (160, 92.9, 98.0))
    ]
    picked = pareto.chosen(rows)["sq1.x"]
    assert (picked["best"]["side"], picked["knee"]["side"]) == (128, 96)


def test_rows_of_former_weights_are_told() -> None:
    top1 = get_weights("sq1").metrics["test_top1"]
    rows = [
        {"tag": "sq1.ft_cifar10", "side": 96, "trained_at": 160, "test_top1": 50.0},
        {"tag": "sq1.ft_cifar10", "side": 160, "trained_at": 160, "test_top1": top1},
        {"tag": "fire_next.ft_cifar10", "side": 160, "trained_at": 160, "test_top1": 50.0},
    ]
    assert pareto.of_former_weights(rows) == ["fire_next.ft_cifar10"]


def test_the_record_has_every_size() -> None:
    results = json.loads((pareto.RESULTS / "size" / "pareto.json").read_text(encoding="utf-8"))
    assert {row["side"] for row in results["ours"]} >= {64, 96, 128, 160}
