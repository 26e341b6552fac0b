"""Grad-CAM on every architecture: its heat is that of the class asked for, where the class is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sqzoo
from sqzoo.cli import main
from sqzoo.errors import ArgumentError, DataError
from sqzoo.explain import explain
from sqzoo.predict import predict
from tests.support import CAT


@pytest.mark.parametrize("name", ["squeezenet_cifar", "sq1", "fire_next"])
def test_the_likeliest_class_is_explained(name: str) -> None:
    model = sqzoo.create_model(name, pretrained=True)
    found = explain(model, CAT)
    assert found.prediction.label == predict(model, CAT)[0][0].label == "cat"
    assert found.prediction.probability == pytest.approx(predict(model, CAT)[0][0].probability, abs=1e-5)
    assert found.heat.max() == 1
    assert found.heat.min() >= 0
    assert found.overlay.size == (300, 300)
    changed = np.asarray(found.overlay) != np.asarray(Image.open(CAT).crop((75, 0, 375, 300)))
    assert 0.05 < changed.any(2).mean() <= 1


@pytest.mark.parametrize("name", sqzoo.list_models())
def test_every_architecture_trained_or_not(name: str) -> None:
    torch.manual_seed(0)
    model = sqzoo.create_model(name)
    side = model.pretrained_cfg["input_size"][1]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for label in ("3", "9"):
        found = explain(model, CAT, label)
        assert found.prediction.label == label
        assert found.heat.shape == model.forward_features(torch.zeros(1, 3, side, side)).shape[2:]
        assert 0 <= found.heat.min() <= found.heat.max() <= 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_heat_lies_on_the_object() -> None:
    """A cat in a corner of a flat picture warms that corner, whichever it is."""
    model = sqzoo.create_model("sq1", pretrained=True)
    cat = Image.open(CAT).crop((75, 0, 375, 300)).resize((160, 160))
    for left, top in ((0, 0), (140, 140), (0, 140)):
        picture = Image.new("RGB", (300, 300), (120, 120, 120))
        picture.paste(cat, (left, top))
        heat = explain(model, picture, "cat").heat
        rows, columns = torch.meshgrid(torch.arange(len(heat)), torch.arange(len(heat)), indexing="ij")
        middle = (len(heat) - 1) / 2
        centre = ((heat * rows).sum() / heat.sum() > middle, (heat * columns).sum() / heat.sum() > middle)
        assert centre == (top > 0, left > 0)


def test_mistakes_are_one_clear_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = sqzoo.create_model("sq1.ft_cifar10")
    with pytest.raises(ArgumentError, match=r"No class 'catt'\. Did you mean 'cat'\?"):
        explain(model, CAT, "catt")
    with pytest.raises(DataError, match="No such image"):
        explain(model, tmp_path / "absent.jpg")
    for words, expected in (
        ([str(CAT), "-o", str(tmp_path / "x.gif")], "must end in .png or .jpg"),
        ([str(CAT), "-o", str(tmp_path / "no" / "x.png")], "Cannot write"),
        ([str(CAT), "--class", "catt", "-o", str(tmp_path / "x.png")], "Did you mean 'cat'?"),
    ):
        assert main(["explain", *words]) == 2
        err = capsys.readouterr().err
        assert expected in err
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_command_writes_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "heat.png"
    assert main(["explain", str(CAT), "-o", str(file)]) == 0
    assert capsys.readouterr().out.startswith(f"{CAT}: cat ")
    with Image.open(file) as written:
        assert written.size == (300, 300)
    assert list(tmp_path.iterdir()) == [file]
