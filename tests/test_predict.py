"""Pictures in all their forms, good and bad, through `predict` and the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sqzoo
from sqzoo.cli import main
from sqzoo.errors import ArgumentError, DataError
from sqzoo.predict import predict
from sqzoo.weights import CIFAR10_CLASSES

ROOT = Path(__file__).parent.parent
CAT = ROOT / "examples" / "cat.jpg"


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return sqzoo.create_model("sq1", pretrained=True)


def test_the_cat_is_a_cat_in_every_form(model: torch.nn.Module) -> None:
    image = Image.open(CAT)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    results = predict(model, [str(CAT), CAT, image, array, tensor])
    assert [r[0].label for r in results] == ["cat"] * 5
    assert len({round(r[0].probability, 5) for r in results}) == 1
    assert predict(model, CAT) == predict(model, [CAT])
    assert len(predict(model, np.stack([array, array]))) == 2


def test_top_k_is_a_distribution_in_order(model: torch.nn.Module) -> None:
    (found,) = predict(model, CAT, top_k=10)
    assert sorted(p.index for p in found) == list(range(10))
    assert [p.probability for p in found] == sorted((p.probability for p in found), reverse=True)
    assert sum(p.probability for p in found) == pytest.approx(1, abs=1e-5)


def test_batches_do_not_change_the_answer(model: torch.nn.Module) -> None:
    images = [Image.open(CAT).rotate(10 * i) for i in range(5)]
    one, many = (predict(model, images, batch_size=n) for n in (1, 16))
    for a, b in zip(one, many, strict=True):
        assert (a[0].label, a[0].probability) == (b[0].label, pytest.approx(b[0].probability, abs=1e-5))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_odd_modes_are_pictures_too(model: torch.nn.Module, tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.open(CAT).convert(mode).save(file)
    assert predict(model, file)[0][0].label in CIFAR10_CLASSES


def test_exif_rotation_is_followed(model: torch.nn.Module, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # "turn by 90 degrees to see it upright"
    Image.open(CAT).rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    (upright,), (turned,) = predict(model, [CAT, tmp_path / "turned.png"])
    assert turned.label == "cat"
    assert turned.probability == pytest.approx(upright.probability, abs=1e-4)


def test_wrong_input_is_one_clear_sentence(model: torch.nn.Module, tmp_path: Path) -> None:
    text = tmp_path / "not_a_picture.jpg"
    text.write_text("hello")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(CAT.read_bytes()[:5000])
    for bad, error, words in (
        (tmp_path / "absent.jpg", DataError, "No such image: .*absent.jpg"),
        (text, DataError, "not_a_picture.jpg.* is not a readable image"),
        (cut, DataError, "cut.jpg.* is not a readable image"),
        (tmp_path, DataError, "is not a readable image"),
        (np.zeros((8, 8, 3), np.float32), ArgumentError, "uint8 .* float32"),
        ([3], ArgumentError, "not int"),
    ):
        with pytest.raises(error, match=words) as caught:
            predict(model, bad)
        assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match="top_k must be a whole number from 1 to 10, not 11"):
        predict(model, CAT, top_k=11)


def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["predict", str(CAT)]) == 0
    assert capsys.readouterr().out.startswith(f"{CAT}: cat ")
    assert main(["list"]) == 0
    assert "sq1.ft_cifar10" in capsys.readouterr().out
    for words, expected in (
        (["predict", str(tmp_path / "absent.jpg")], "No such image"),
        (["predict", str(CAT), "--model", "sq2"], "Did you mean 'sq1'?"),
        (["predict", str(CAT), "--top", "0"], "top_k must be"),
        (["train", "sq1", "--recipe", "papper"], "Did you mean 'paper'?"),
        (["list", "resnet*"], "No model matches 'resnet*'"),
        (["train", "sq1", "--set", "lr"], "FIELD=JSON"),
        (["train", "sq1", "--set", "lrr=1"], "Did you mean 'lr'?"),
        (["train", "sq1", "--data", str(tmp_path)], "holds no class folders"),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert expected in err
        assert err.count("\n") == 1
