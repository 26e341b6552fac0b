"""One's own pictures: what is found, left out and refused; decoding; the held-out part; training to a ready model."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from sqzoo import create_model
from sqzoo.cli import main
from sqzoo.data import Normalise, holds_cifar10
from sqzoo.errors import ArgumentError
from sqzoo.images.opener import open_image
from sqzoo.own_images.folder import find_images, find_test_images
from sqzoo.own_images.hub_dataset import download_dataset
from sqzoo.own_images.labels_csv import find_labelled
from sqzoo.own_images.pixels import ImageSet, read_images
from sqzoo.own_images.training import train_on_images
from sqzoo.predict import predict
from sqzoo.train import Recipe, train
from sqzoo.weights import CIFAR10_CLASSES
from tests.support.fork import python
from tests.support.hub_server import HubServer
from tests.support.sentences import refused

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}
START = "sq1.ft_cifar10"  # embedded: needs no file of the ImageNet trunk
SHORT: dict[str, Any] = {"start": START, "sizes": ((64, 3),), "progress": False}


def photo(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    """A picture that is mostly of a colour."""
    noise = np.random.default_rng(seed).integers(-40, 41, (size[1], size[0], 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def fill(folder: Path, count: int = 6, names: tuple[str, ...] = tuple(COLOURS)) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            colour = list(COLOURS.values())[number % 3]
            photo(colour, 100 * number + i).save(folder / name / f"{i}.jpg")
    return folder


@pytest.fixture()
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos")


def read(folder: Path, side: int = 32, **arguments: Any) -> ImageSet:
    return read_images(find_images(folder), side, folder.parent / "store", **arguments)


# What is found


def test_classes_are_the_folders(photos: Path) -> None:
    found = find_images(photos)
    assert found.classes == ("blue", "green", "red")
    assert np.bincount(found.labels).tolist() == [6, 6, 6] and len(set(found.labels[:9])) == 3  # mixed
    assert all(f.parent.name == found.classes[label] for f, label in zip(found.files, found.labels, strict=True))
    assert found.is_val is None and found.left_out == {}


def test_names_of_all_kinds_are_taken(tmp_path: Path) -> None:
    folder = tmp_path / "my photos"
    for name in ("Käfer 虫", "with space"):
        (folder / name / "2024" / "May").mkdir(parents=True)
        for file in ("ONE.JPG", "zwölf ü.jpeg", "2024/three.png", "2024/May/four.WEBP"):
            photo(COLOURS["red"], 1).save(folder / name / file)
    outside = tmp_path / "outside.png"
    photo(COLOURS["blue"], 2).save(outside)
    (folder / "with space" / "link.png").symlink_to(outside)
    (folder / "with space" / "circle").symlink_to(folder / "with space")
    found = find_images(folder)
    assert found.classes == ("Käfer 虫", "with space")
    assert np.bincount(found.labels).tolist() == [4, 5]
    assert len(read(folder)) == 9


def test_what_is_no_picture_is_left_out_and_told(photos: Path) -> None:
    (photos / "red" / "notes.txt").write_text("no picture")
    (photos / "loose.jpg").write_bytes((photos / "red" / "0.jpg").read_bytes())
    (photos / "red" / "broken.jpg").write_bytes((photos / "red" / "0.jpg").read_bytes()[:700])
    (photos / "red" / "text.png").write_text("not a PNG")
    (photos / "red" / "dangling.png").symlink_to(photos / "nothing")
    photo(COLOURS["red"], 1, (2000, 10)).save(photos / "red" / "strip.png")
    for ignored in (photos / ".hidden", photos / "__MACOSX"):
        ignored.mkdir()
        photo(COLOURS["red"], 1).save(ignored / "x.jpg")
    (photos / "red" / ".DS_Store").write_text("")
    (photos / "red" / "Thumbs.db").write_text("")
    pictures = read(photos)
    assert pictures.classes == ("blue", "green", "red") and len(pictures) == 18
    told = {"loose.jpg", "red/notes.txt", "red/broken.jpg", "red/text.png", "red/dangling.png", "red/strip.png"}
    assert pictures.left_out.keys() == told
    assert "no class" in pictures.left_out["loose.jpg"] and "2000x10" in pictures.left_out["red/strip.png"]
    # The rows are those of the pictures that are left, in order.
    for name, image in zip(pictures.names, pictures.images, strict=True):
        assert np.abs(image.mean((0, 1)) - COLOURS[name.partition("/")[0]]).max() < 15


def test_folders_that_cannot_be_learnt_from(tmp_path: Path, photos: Path) -> None:
    refused(lambda: find_images(tmp_path / "absent"), tmp_path / "absent", "a subfolder of images for each class")
    refused(lambda: find_images(photos / "red"), "no class folders (6 files", "at least two")
    refused(lambda: find_images(fill(tmp_path / "one", names=("red",))), "one class, 'red'", "at least two")
    (photos / "yellow").mkdir()
    refused(lambda: find_images(photos), "'yellow'", "no image", "delete")
    (photos / "yellow" / "a.jpg").write_text("broken")
    refused(lambda: read(photos), "'yellow'", "0 readable images")
    photo((1, 2, 3), 1).save(photos / "yellow" / "b.jpg")
    refused(lambda: read(photos), "'yellow'", "and 0 to validate on", "one of each")
    refused(lambda: find_images(fill(tmp_path / "case", names=("red", "Red", "blue"))), "'Red'", "'red'", "merge")
    refused(lambda: find_images(fill(tmp_path / "odd", names=("red", "line\nfeed"))), "'line\\nfeed'", "rename")
    for names in (("training", "val"), ("dev", "train"), ("testing", "training")):
        refused(lambda names=names: find_images(fill(tmp_path / names[0] / names[1], 1, names)), "train, val and test")
    twice = ("caf\u00e9", "cafe\u0301")
    refused(lambda: find_images(fill(tmp_path / "accent", names=twice)), "same but for their spelling")


def test_two_pictures_a_class_are_enough(tmp_path: Path) -> None:
    pictures = read(fill(tmp_path / "few", count=2))
    assert sorted(pictures.labels[pictures.val_idx]) == [0, 1, 2]
    assert len(pictures.split(3)[0]) == 3


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "test"])
def test_a_folder_that_says_what_is_held_out(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "data" / "train", 4)
    fill(tmp_path / "data" / name, 2)
    if name == "val":
        fill(tmp_path / "data" / "test", 1)
    pictures = read(tmp_path / "data")
    assert {pictures.names[i].partition("/")[0] for i in pictures.val_idx} == {name}
    assert len(pictures) == 18 and len(pictures.val_idx) == 6
    assert pictures.left_out == {}
    assert len(find_test_images(find_images(tmp_path / "data"))) == (3 if name == "val" else 0)
    shutil.rmtree(tmp_path / "data" / name / "red")
    refused(lambda: find_images(tmp_path / "data"), "'red'", f"no image in {tmp_path / 'data' / name}")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert find_images(fill(tmp_path / "data", names=("boat", "train"))).classes == ("boat", "train")
    refused(lambda: find_images(fill(tmp_path / "twice", names=("Train", "train"))), "same but for their spelling")


def test_held_out_part_is_stratified_and_by_seed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 10)
    for i in range(5):
        (folder / "red" / f"{i}.jpg").unlink()
    first, again, other, half = (read(folder, **a) for a in ({}, {}, {"seed": 1}, {"val_fraction": 0.5}))
    assert np.bincount(first.labels[first.val_idx]).tolist() == [2, 2, 1]
    assert np.bincount(half.labels[half.val_idx]).tolist() == [5, 5, 2]
    assert first.val_idx.tolist() == again.val_idx.tolist() != other.val_idx.tolist()
    assert first.digest == again.digest != other.digest
    train, held = first.split(len(first.val_idx))
    assert sorted([*train, *held]) == list(range(25))
    for share in (0, 1, 1.5):
        refused(lambda s=share: read(folder, val_fraction=s), "val_fraction", share)


def test_decoded_pictures_are_used_again_and_replaced_when_a_file_changes(photos: Path) -> None:
    before = read(photos)
    store = photos.parent / "store"
    made = {f: f.stat().st_mtime_ns for f in store.iterdir()}
    assert read(photos).digest == before.digest
    assert {f: f.stat().st_mtime_ns for f in store.iterdir()} == made
    photo((0, 0, 0), 5).save(photos / "red" / "0.jpg")
    assert read(photos).digest != before.digest


# How they are decoded


def _save(image: Image.Image, file: Path, **options: Any) -> Path:
    image.save(file, **options)
    return file


def _sixteen_bits(file: Path) -> Path:
    Image.fromarray(np.full((40, 50), 200 * 257, np.uint16)).save(file)
    return file


def _rotated(file: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    picture = Image.new("RGB", (60, 40), (0, 0, 250))
    picture.paste((250, 0, 0), (0, 0, 30, 40))
    picture.save(file, exif=exif, quality=95)
    return file


def _animated(file: Path) -> Path:
    first, second = Image.new("RGB", (40, 40), (200, 0, 0)), Image.new("RGB", (40, 40), (0, 200, 0))
    first.save(file, save_all=True, append_images=[second])
    return file


SEMI = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
ODD: dict[str, tuple[Callable[[Path], Path], str, tuple[int, int], tuple[int, int, int]]] = {
    "CMYK": (lambda f: _save(Image.new("CMYK", (40, 50), (0, 255, 255, 0)), f), "jpg", (40, 50), (254, 0, 0)),
    "16 bits": (_sixteen_bits, "png", (50, 40), (200, 200, 200)),
    "16 bits, TIFF": (_sixteen_bits, "tiff", (50, 40), (200, 200, 200)),
    "grey": (lambda f: _save(Image.new("L", (40, 40), 77), f), "png", (40, 40), (77, 77, 77)),
    "black and white": (lambda f: _save(Image.new("1", (40, 40), 1), f), "png", (40, 40), (255, 255, 255)),
    "palette": (lambda f: _save(photo((9, 9, 9), 1).quantize(1), f), "gif", (90, 70), (20, 20, 20)),
    "transparent": (lambda f: _save(SEMI, f), "png", (40, 40), (255, 255, 255)),
    "transparent palette": (
        lambda f: _save(Image.new("P", (40, 40), 0), f, transparency=0),
        "png",
        (40, 40),
        (255, 255, 255),
    ),
    "animated": (_animated, "gif", (40, 40), (200, 0, 0)),
    "rotated": (_rotated, "jpg", (40, 60), (250, 0, 0)),
    "tiny": (lambda f: _save(Image.new("RGB", (1, 1), (10, 20, 30)), f), "png", (1, 1), (10, 20, 30)),
    "WebP": (
        lambda f: _save(Image.new("RGB", (40, 40), (9, 200, 30)), f, lossless=True),
        "webp",
        (40, 40),
        (9, 200, 30),
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_pictures_are_read_as_they_look(kind: str, photos: Path, tmp_path: Path) -> None:
    make, suffix, size, colour = ODD[kind]
    file = make(photos / "red" / f"odd.{suffix}")
    image = open_image(file)
    assert image.mode == "RGB" and image.size == size
    top = np.asarray(image)[: (size[1] + 1) // 3 or 1]  # where the turned picture has its first colour
    assert np.abs(top.mean((0, 1)) - colour).max() < 6, top.mean((0, 1))
    pictures = read(photos)
    assert f"red/odd.{suffix}" in pictures.names


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.tiff"
    Image.fromarray(np.random.default_rng(0).random((20, 20), np.float32)).save(file)
    refused(lambda: open_image(file), file, "8 or 16 bits")


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.linspace(0, 20, 1600), np.linspace(0, 15, 1200))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], 2) * 100 + 128
    file = tmp_path / "large.jpg"
    Image.fromarray(waves.astype(np.uint8)).save(file, quality=95)
    small = open_image(file, min_size=128)
    assert small.size == (200, 150)
    whole = open_image(file).resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small, float) - np.asarray(whole, float)).mean() < 1


# Training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A folder, the run of its head, and the result."""
    base = tmp_path_factory.mktemp("own")
    folder = fill(base / "photos", 10)
    (folder / "red" / "notes.txt").write_text("no picture")
    return folder, base / "run", train_on_images("sq1", folder, base / "run", **SHORT)


def test_a_run_is_a_ready_model(trained: tuple[Path, Path, dict[str, Any]]) -> None:
    folder, run, result = trained
    assert {f.name for f in run.iterdir() if not f.name.startswith(".")} == {
        *("model.safetensors", "config.json", "README.md", "report.html", "result.json", "head")
    }
    assert json.loads((run / "result.json").read_text()) == result
    assert result["chosen"] == "head" and result["classes"] == ["blue", "green", "red"]
    assert result["val"]["images"] == 6 and result["val"]["top1"] == 100
    assert result["left_out"] == {"red/notes.txt": "not an image, by its suffix"}
    model = create_model(f"local-dir:{run}")
    assert tuple(model.pretrained_cfg["label_names"]) == ("blue", "green", "red")
    pictures = read(folder)
    held = [pictures.names[i] for i in pictures.val_idx]
    found = predict(model, [folder / name for name in held])
    assert [p[0].label for p in found] == [name.partition("/")[0] for name in held]


def test_the_trunk_is_that_of_the_start(trained: tuple[Path, Path, dict[str, Any]]) -> None:
    ours, start = create_model(f"local-dir:{trained[1]}").state_dict(), create_model(START, True).state_dict()
    same = {k for k in ours if ours[k].shape == start[k].shape and torch.equal(ours[k], start[k])}
    assert {k for k in ours if k.startswith("features.")} <= same and "conv.weight" not in same


def test_predict_prepares_as_the_run_was_trained(trained: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    """The same probabilities from a file as from the pixels that training sees, to the bit of the picture."""
    large = fill(tmp_path / "large", 2)
    for i, file in enumerate(sorted(large.glob("*/*.jpg"))):  # large enough to be decoded at a fraction
        photo((90, 90, 90), i, (1100, 900)).save(file)
    pictures = read(large, 64)
    model = create_model(f"local-dir:{trained[1]}")
    with torch.inference_mode():
        wanted = model(Normalise()(pictures.images)).softmax(1)
    found = predict(model, [large / name for name in pictures.names], top_k=3)
    for row, answers in zip(wanted, found, strict=True):
        for answer in answers:
            assert abs(row[answer.index].item() - answer.probability) < 1e-5


def test_ten_classes_named_as_cifar10s_are_not_shrunk(tmp_path: Path) -> None:
    folder = fill(tmp_path / "ten", 2, CIFAR10_CLASSES)
    train_on_images("sq1", folder, tmp_path / "run", **SHORT)
    model = create_model(f"local-dir:{tmp_path / 'run'}")
    pictures = read(folder, 64)
    with torch.inference_mode():
        wanted = model(Normalise()(pictures.images)).softmax(1).max(1).values
    found = [p[0].probability for p in predict(model, [folder / name for name in pictures.names])]
    assert np.allclose(wanted, found, atol=1e-5)


def test_report_and_card_tell_of_the_run(trained: tuple[Path, Path, dict[str, Any]]) -> None:
    _, run, result = trained
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "100.0 % of 6 validation images" in card and "| red | 10 | 2 of 2 |" in card and "sq1.ft_cifar10" in card
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "blue" in report and "notes.txt" in report and result["environment"]["commit"][:7] in report


def test_all_layers_go_on_from_the_head_and_resume_as_if_at_once(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 4)
    changes = SHORT | {"sizes": ((64, 2),)}
    train_on_images("sq1", folder, tmp_path / "twice", start=START, sizes=((64, 60),), progress=False)
    first = json.loads((tmp_path / "twice" / "head" / "result.json").read_text())
    result = train_on_images("sq1", folder, tmp_path / "twice", all_layers=True, **changes)
    assert result["stages"]["head"]["training_seconds"] == first["training_seconds"]  # not fitted again
    at_once = train_on_images("sq1", folder, tmp_path / "once", all_layers=True, **changes)
    twice, once = ((tmp_path / n / "all_layers" / "best.safetensors").read_bytes() for n in ("twice", "once"))
    assert twice == once
    assert {k: v["val"] for k, v in result["stages"].items()} == {k: v["val"] for k, v in at_once["stages"].items()}
    assert train_on_images("sq1", folder, tmp_path / "once", all_layers=True, **changes) == at_once
    scores = {n: (s["val"]["top1"], -s["val"]["loss"]) for n, s in at_once["stages"].items()}
    assert scores[at_once["chosen"]] == max(scores.values())


def test_a_head_trained_again_does_not_take_the_place_of_better_layers(tmp_path: Path) -> None:
    folder, run = fill(tmp_path / "photos"), tmp_path / "run"
    result = train_on_images("sq1", folder, run, all_layers=True, **SHORT)
    result["stages"]["all_layers"]["val"]["top1"] = 101.0
    (run / "result.json").write_text(json.dumps(result | {"chosen": "all_layers", "val": {"images": 3, "top1": 101.0}}))
    for name in ("model.safetensors", "config.json"):
        shutil.copy(run / "all_layers" / name, run / name)
    better = (run / "model.safetensors").read_bytes()
    assert better != (run / "head" / "model.safetensors").read_bytes()
    again = train_on_images("sq1", folder, run, start=START, sizes=SHORT["sizes"], progress=False)
    assert again["chosen"] == "all_layers" and again["val"]["top1"] == 101
    assert (run / "model.safetensors").read_bytes() == better


def test_training_stops_when_the_held_out_pictures_gain_no_more(tmp_path: Path) -> None:
    changes = SHORT | {"sizes": ((64, 30),), "patience": 2, "lr": 0.0, "all_layers": True}
    result = train_on_images("sq1", fill(tmp_path / "photos", 3), tmp_path / "run", **changes)
    assert result["stages"]["all_layers"]["epoch"] == 1 and len(result["stages"]["all_layers"]["log"]) == 3
    assert result["chosen"] == "head"  # all layers were no better


def test_changed_pictures_are_another_run(trained: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, run = (shutil.copytree(p, tmp_path / p.name) for p in trained[:2])
    photo((1, 1, 1), 1).save(folder / "red" / "new.jpg")
    refused(
        lambda: train_on_images("sq1", folder, run, **SHORT), "on 30 images, and there are 31 now", f"--run {run}-31"
    )
    (folder / "red" / "new.jpg").unlink()
    refused(lambda: train_on_images("sq1", folder, run, **SHORT | {"seed": 7}), "seed 7", "new folder")
    other = SHORT | {"val_fraction": 0.4}
    refused(lambda: train_on_images("sq1", folder, run, **other), "another val_fraction than 0.4", "new folder")


def test_what_does_not_go_together(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ArgumentError, match="trains the head"):
        train_on_images("sq1", photos, run, recipe_name="paper_cifar10", all_layers=True)
    refused(lambda: train_on_images("sq1", photos, run, hold_out=5), "hold_out", "decided by the images")
    refused(lambda: train_on_images("sq1", photos, run, lr=0.1), "lr", "solved", "all_layers")
    refused(lambda: train_on_images("sq1", photos, run, recipe_name="finetune"), "trains all layers", "add all_layers")
    refused(lambda: train_on_images("sq1", photos, run, teacher="sq1.ft_cifar10"), "no 'teacher'")
    with pytest.raises(ArgumentError, match="there are none"):
        train(Recipe("sq1", model_args={"num_classes": 3}), read(photos), None, run)
    refused(lambda: train_on_images("sq2", photos, run), "Unknown model 'sq2'")
    refused(lambda: train_on_images("sq1", tmp_path / "absent", run), "No folder")
    assert not run.exists()


def test_without_the_imagenet_trunk_the_embedded_weights_are_the_start(photos: Path, tmp_path: Path) -> None:
    """No trunk in torch's cache and no network: a line says so, and the same command goes on later as it began."""
    words = ["train", "sq1", "--data", str(photos), "--run", str(tmp_path / "run"), "--set", "sizes=[[64, 1]]"]
    closed = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    there = {k: v for k, v in os.environ.items() if k != "SQZOO_TRUNKS"}
    done = subprocess.run([python(), "-m", "sqzoo", *words], capture_output=True, text=True, env=there | closed)
    assert done.returncode == 0, done.stderr
    assert "Starting from sq1.ft_cifar10 in place of the ImageNet trunk" in done.stderr
    assert "sqzoo predict --model" in done.stdout
    recipe = json.loads((tmp_path / "run" / "head" / "recipe.json").read_text())["recipe"]
    assert recipe["start"] == START and recipe["sizes"] == [[64, 1]]


def test_a_test_part_is_evaluated_and_chooses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        fill(tmp_path / "data" / part, count)
    (tmp_path / "data" / "test" / "red" / "broken.jpg").write_text("broken")
    result = train_on_images("sq1", tmp_path / "data", tmp_path / "run", **SHORT)
    assert result["images"] == 18 and result["val"]["images"] == 6
    assert result["test"]["images"] == 9 and result["test"]["top1"] == 100
    assert "1 test images cannot be read, such as broken.jpg" in caplog.text
    page = (tmp_path / "run" / "report.html").read_text()
    assert "100.0 % of 9" in page
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result


def test_copies_across_the_split_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = np.kron(np.random.default_rng(3).integers(60, 200, (4, 5, 3)), np.ones((60, 60, 1))).astype(np.uint8)
    for part, size, quality in (("train", (300, 240), 95), ("val", (150, 120), 40)):
        fill(tmp_path / "data" / part, 4)
        Image.fromarray(scene).resize(size).save(tmp_path / "data" / part / "red" / "copy.jpg", quality=quality)
    shutil.copytree(tmp_path / "data" / "val", tmp_path / "data" / "test")
    result = train_on_images("sq1", tmp_path / "data", tmp_path / "run", **SHORT)
    assert result["near_duplicates"] == [["train/red/copy.jpg", "val/red/copy.jpg"]]
    assert result["test"]["near_duplicates"] == [["train/red/copy.jpg", "copy.jpg"]]
    assert "1 validation images have a near-duplicate" in caplog.text
    assert "1 test images have a near-duplicate" in caplog.text


def test_labels_in_a_csv_file(tmp_path: Path) -> None:
    fill(tmp_path / "made", 3)
    flat = tmp_path / "kaggle" / "train"
    flat.mkdir(parents=True)
    rows = []
    for number, file in enumerate(sorted((tmp_path / "made").glob("*/*.jpg"))):
        shutil.move(file, flat / f"{number:03}.jpg")
        rows.append((f"{number:03}", file.parent.name))
    photo((1, 2, 3), 1).save(flat / "unlabelled.jpg")
    table = tmp_path / "labels.csv"
    table.write_text("id;breed\n" + "".join(f"{n};{c}\n" for n, c in rows) + "absent;red\n")
    found = find_labelled(tmp_path / "kaggle", table)
    assert found.classes == ("blue", "green", "red") and len(found.files) == 9
    assert {f.stem: found.classes[label] for f, label in zip(found.files, found.labels, strict=True)} == dict(rows)
    assert found.left_out == {"absent": f"only in {table}", "1 images": f"not in {table}"}
    table.write_text("".join(f"train/{n}.jpg,{c}\n" for n, c in rows))
    assert train_on_images("sq1", tmp_path / "kaggle", tmp_path / "run", labels=table, **SHORT)["images"] == 9
    table.write_text("".join(f"{n},{c}\n" for n, c in rows).replace("001,blue", "001,-1"))
    found = find_labelled(tmp_path / "kaggle", table)
    assert found.classes == ("blue", "green", "red") and "001" in found.left_out
    with pytest.raises(ArgumentError, match="precision"):
        train_on_images("sq1", tmp_path / "kaggle", tmp_path / "run2", labels=table, precision="x", **SHORT)
    table.write_text("000,red\n000,blue\n")
    refused(lambda: find_labelled(tmp_path / "kaggle", table), "'000'", "'red'", "'blue'", "keep one")
    table.write_text("".join(f"{n},{c}\n" for n, c in rows).replace("001,blue", "001,Blue"))
    refused(lambda: find_labelled(tmp_path / "kaggle", table), "'Blue'", "'blue'", "but for their spelling")
    table.write_text("000,red\n001,red\n")
    refused(lambda: find_labelled(tmp_path / "kaggle", table), "1 classes", "two")
    refused(lambda: find_labelled(tmp_path / "kaggle", tmp_path / "absent.csv"), "absent.csv", "Cannot read")


def test_the_commands(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "my run")
    words = ["train", "sq1", "--data", str(photos), "--run", run, "--start", START, "--val-fraction", "0.5"]
    assert main([*words, "--set", "sizes=[[64, 2]]"]) == 0
    out = capsys.readouterr().out
    assert "9 validation images" in out and "--all-layers" in out and f"sqzoo demo '{run}'" in out
    assert f"sqzoo export '{run}'\n" in out  # 18 photos are too few for int8
    assert main(["report", run]) == 2
    assert f"its report is {run}/report.html" in capsys.readouterr().err
    assert main(["predict", "--model", run, "--top", "9", str(photos / "red" / "0.jpg")]) == 0
    assert capsys.readouterr().out.count("%") == 3  # of three classes
    assert main(["predict", "--model", run, "--top", "1", str(photos / "red" / "0.jpg")]) == 0
    assert "red" in capsys.readouterr().out
    assert main([*words[:1], "sq1.ft_cifar10", *words[2:]]) == 2
    assert "give sq1 and --start sq1.ft_cifar10" in capsys.readouterr().err
    assert main(["train", "sq1", "--all-layers"]) == 2
    assert "--all-layers" in capsys.readouterr().err


def test_cifar10_folders_are_told_from_pictures(photos: Path, cifar10_root: Path) -> None:
    assert holds_cifar10(cifar10_root) and not holds_cifar10(photos) and not holds_cifar10(photos / "absent")


# Data sets of the Hub, fetched by the real library from a Hub on loopback


@pytest.mark.slow
def test_a_data_set_of_the_hub(photos: Path, tmp_path: Path) -> None:
    made = datasets.load_dataset("imagefolder", data_dir=str(photos), cache_dir=str(tmp_path / "hf"))["train"]
    # Pictures within the parquet file, as the Hub has them; else they would be names of files of this machine.
    made = made.with_format("arrow").map(datasets.table.embed_table_storage, batched=True).with_format(None)
    halves, files = made.train_test_split(1 / 3, seed=0), {}
    for split, name in (("train", "train"), ("test", "validation")):
        halves[split].to_parquet(tmp_path / "x.parquet")
        files[f"data/{name}-00000-of-00001.parquet"] = (tmp_path / "x.parquet").read_bytes()
    with HubServer() as server:
        commit = server.put("datasets/org/photos", files)
        words = ["--start", START, "--set", "sizes=[[64, 1]]", "--cache", "store"]

        def train_on(name: str, run: str) -> subprocess.CompletedProcess[str]:
            command = [python(timm=False), "-m", "sqzoo", "train", "sq1", "--data", name, "--run", run, *words]
            there = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[2])}
            env = os.environ | server.env | there
            return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)

        done = train_on(f"org/photos@{commit}", "run")
        assert done.returncode == 0, done.stderr
        absent = train_on("org/absent", "run2")
    assert "6 validation images" in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["classes"] == ["blue", "green", "red"] and result["images"] == 18
    assert absent.returncode == 2 and "No folder 'org/absent', and no dataset of that name" in absent.stderr
    # What was fetched is used again, with no Hub there.
    folder = download_dataset(f"org/photos@{commit}", tmp_path / "store")
    assert np.bincount(find_images(folder).labels).tolist() == [6, 6, 6]


def test_a_data_set_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "texts" / "train.parquet")
    refused(lambda: download_dataset(str(tmp_path / "texts"), tmp_path / "store"), "no column of images")
