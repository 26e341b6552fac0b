"""The comparison of a runtime's outputs with PyTorch's: what it is given to compare, and what it lets pass."""

import pytest
import torch
import torch.nn as nn

from sqzoo import create_model
from sqzoo.deploy import backends
from sqzoo.deploy.backends import ExportModel, prepare
from sqzoo.errors import ExportError


@pytest.mark.parametrize("preprocessing", [False, True])
@pytest.mark.parametrize("tag", ["squeezenet_cifar", "sq1", "fire_next"])
def test_a_runtime_that_computes_nothing_is_refused(
    tag: str, preprocessing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # squeezenet_cifar ends in a ReLU; on noise it gave 0 for every class itself
    model = ExportModel(create_model(tag, pretrained=True), preprocessing)
    monkeypatch.setitem(
        backends.BACKENDS, "onnxruntime", lambda *_: lambda x: torch.full((len(x), 10), preprocessing / 10)
    )
    with pytest.raises(ExportError, match="other outputs than PyTorch"):
        prepare(model, "onnxruntime", model.shape(1))


def test_samples_are_the_same_each_time_and_fit_the_model() -> None:
    for model, size in ((create_model("sq1", pretrained=True), (32, 32)), (create_model("sq1", in_chans=4), (40, 60))):
        ours = ExportModel(model)
        shape = ours.shape(3, size)
        assert ours.samples(shape).shape == shape
        assert torch.equal(ours.samples(shape), ours.samples(shape))


def test_of_a_photo_every_network_says_something() -> None:
    for name in ("squeezenet_cifar", "sq1", "fire_next"):
        model: nn.Module = create_model(name, pretrained=True)
        ours = ExportModel(model)
        assert ours.module(ours.samples((8, 3, 32, 32))).std() > 1
