"""Pictures in all their forms, good and bad, through `predict` and the command line."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import sqzoo
from sqzoo import hub
from sqzoo.cli import main
from sqzoo.data import Normalise
from sqzoo.errors import ArgumentError, DataError
from sqzoo.explain import explain
from sqzoo.images.reader import ImageReader, as_pil
from sqzoo.images.walk import image_files
from sqzoo.predict import classify, predict
from sqzoo.weights import CIFAR10_CLASSES
from tests.support import ROOT
from tests.support.sentences import assert_one_sentence, refusal

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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value: float) -> None:
    model = sqzoo.create_model("sq1", pretrained=True)
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] = value
        for ask in (predict, explain):
            with refusal(name, "NaN"):
                ask(model, CAT)
        with torch.no_grad():
            parameter.copy_(kept)
    assert predict(model, CAT)[0][0].label == "cat"


def test_an_overflow_on_the_way_is_told() -> None:
    model = sqzoo.create_model("sq1", pretrained=True)
    with torch.no_grad():
        model.fc2.weight.mul_(1e38)
    with refusal("float32"):
        predict(model, CAT)


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
        (np.zeros((0, 8, 3), np.uint8), ArgumentError, r"\[0, 8, 3\]"),
        ([3], ArgumentError, "not int"),
        (3, ArgumentError, "one image or several, not 3"),
    ):
        with pytest.raises(error, match=words) as caught:
            predict(model, bad)
        assert_one_sentence(caught.value)
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
        (["train", "sq1", "--recipe", "paper_cifar"], "Did you mean 'paper_cifar10'?"),
        (["list", "resnet*"], "No model matches 'resnet*'"),
        (["train", "sq1", "--set", "lr"], "FIELD=JSON"),
        (["train", "sq1", "--set", "lrr=1"], "Did you mean 'lr'?"),
        (["train", "sq1", "--data", str(tmp_path)], "holds no class folders"),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert expected in err
        assert err.count("\n") == 1


# --- reading ahead ---


@pytest.mark.parametrize("args", [{"pretrained": True}, {"pretrained": True, "num_classes": 7}, {}])
def test_the_pixels_are_those_of_timms_transform(args: dict[str, Any]) -> None:
    """What the network gets is what timm makes of the picture, exactly."""
    model = sqzoo.create_model("sq1", **args)
    transform = create_transform(**resolve_model_data_config(model))
    read, normalise = ImageReader.of(model), Normalise.of(model)
    for size in ((451, 300), (32, 32), (20, 30), (33, 90)):
        picture = Image.open(CAT).resize(size)
        assert torch.equal(normalise(read(picture)[None])[0], transform(picture))


def test_large_jpegs_are_decoded_small_and_nearly_the_same(tmp_path: Path, model: torch.nn.Module) -> None:
    read = ImageReader.of(model)
    large = Image.open(CAT).resize((3608, 2400), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=95)
    assert min(as_pil(tmp_path / "large.jpg", 512).size) == 600
    whole = read(Image.open(tmp_path / "large.jpg")).astype(int)
    fast = read(tmp_path / "large.jpg").astype(int)
    assert np.abs(fast - whole).mean() < 1.5
    assert np.abs(fast - whole).max() < 16
    assert np.array_equal(read(CAT), read(Image.open(CAT)))  # smaller ones are decoded whole


def test_answers_come_in_order_around_bad_pictures_and_read_no_further_than_needed(
    tmp_path: Path, model: torch.nn.Module
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("hello")
    asked = 0

    def pictures() -> Iterator[Path | Image.Image]:
        nonlocal asked
        for i in range(100):
            asked += 1
            yield bad if i % 5 == 3 else Image.new("RGB", (40, 40), (i, 0, 0))

    answers = classify(model, pictures(), batch_size=4)
    first = next(answers)
    assert asked <= 20
    found = [first, *answers]
    assert [i for i, a in enumerate(found) if a.error] == list(range(3, 100, 5))
    assert [a.image.getpixel((0, 0))[0] for a in found if not a.error] == [i for i in range(100) if i % 5 != 3]
    assert all(len(a.predictions) == (0 if a.error else 1) for a in found)
    with pytest.raises(DataError, match=r"bad\.jpg"):
        predict(model, pictures())


def test_a_folders_pictures(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a.jpeg", "notes.txt", ".hidden.jpg", ".git/x.png", "b/c/z.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [f.relative_to(tmp_path).as_posix() for f in image_files(tmp_path)] == [
        "a.jpeg",
        "b/1.jpg",
        "b/2.PNG",
        "b/c/z.webp",
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cats, and a file that is no picture between them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.jpg", "c, d.jpg"):
        (folder / name).write_bytes(CAT.read_bytes())
    (folder / "b.jpg").write_text("hello")
    return folder


def test_a_bad_picture_does_not_stop_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(folder), "--top", "2"]) == 1
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in out.splitlines()] == [str(folder / "a.jpg"), str(folder / "c, d.jpg")]
    assert "b.jpg' is not a readable image" in err
    assert err.splitlines()[-1] == "sqzoo: 1 of 3 images could not be read."


def test_json_lines_and_csv_say_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(folder), "--top", "2", "--format", "jsonl"]) == 1
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["predict", str(folder), "--top", "2", "--format", "csv"]) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [o["image"] for o in objects] == [r["image"] for r in rows] == [str(f) for f in sorted(folder.iterdir())]
    assert ["error" in o for o in objects] == [bool(r["error"]) for r in rows] == [False, True, False]
    for found, row in zip(objects, rows, strict=True):
        for n, p in enumerate(found.get("predictions", ()), 1):
            assert (row[f"label_{n}"], float(row[f"probability_{n}"])) == (
                p["label"],
                pytest.approx(p["probability"], abs=1e-6),
            )
    assert rows[0]["label_1"] == "cat"
    assert set(objects[0]) == {"image", "predictions", "ood_score", "abstain"}


def test_names_on_stdin(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder / 'a.jpg'}\n\n{folder / 'absent.jpg'}\r\n"))
    assert main(["predict", "-", str(CAT)]) == 1
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in out.splitlines()] == [str(folder / "a.jpg"), str(CAT)]
    assert "No such image" in err


def test_output_appears_whole_or_not_at_all(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.csv"
    assert main(["predict", str(folder), "-o", str(file), "--format", "csv"]) == 1
    assert len(file.read_text(encoding="utf-8").splitlines()) == 4
    assert not capsys.readouterr().out
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, expected in (
        ([str(CAT), str(empty), "-o", str(tmp_path / "new.txt")], "No image in"),
        ([str(CAT), "-o", str(tmp_path / "no" / "x.txt")], "Cannot write"),
        ([str(CAT), "--batch-size", "0"], "batch_size must be"),
        ([str(CAT), "--format", "xml"], "--format"),
    ):
        assert main(["predict", *words]) == 2
        err = capsys.readouterr().err
        assert expected in err
        assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["empty", "out.csv", "pictures"]


def test_unsure_stands_before_the_classes(
    model: torch.nn.Module, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    threshold, model.ood_threshold = model.ood_threshold, 1e6
    hub.save_pretrained(model, tmp_path / "sure-of-nothing")
    model.ood_threshold = threshold
    assert main(["predict", str(CAT), "--model", str(tmp_path / "sure-of-nothing")]) == 0
    assert capsys.readouterr().out.startswith(f"{CAT}: none of the ten, perhaps (cat ")
