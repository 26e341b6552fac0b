"""`sqzoo.optimize`: every backend gives what the model gives; the choice is measured, remembered, and safe."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

import sqzoo
from sqzoo.backends import BACKENDS, Subject, kept_folder
from sqzoo.cache import kept, remove
from sqzoo.data import Dataset, Preprocessing
from sqzoo.errors import ArgumentError, MissingExtraError
from sqzoo.graph import FromPixels
from sqzoo.optimization import EXACT, Optimized, optimize
from sqzoo.predict import predict

ROOT = Path(__file__).parent.parent
SIDE = 64


@pytest.fixture(scope="module")
def model() -> nn.Module:
    model = sqzoo.create_model("sq1", pretrained=True)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, SIDE, SIDE)}
    return model


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield kept_folder()


@pytest.fixture(scope="module")
def pictures(photo_squares: np.ndarray) -> Dataset:
    return Dataset(photo_squares, np.arange(len(photo_squares)) % 10)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if "int8" not in b and "bf16" not in b and b != "inductor"])
@pytest.mark.parametrize("preprocessing", [False, True])
def test_a_backend_gives_what_the_model_gives(
    backend: str, preprocessing: bool, model: nn.Module, pictures: Dataset
) -> None:
    fast = optimize(model, backend, preprocessing=preprocessing)
    assert fast.backend == backend
    images = Preprocessing.of(model.pretrained_cfg)(pictures.images[:5])
    with torch.inference_mode():
        wanted = FromPixels(model).eval()(torch.from_numpy(pictures.images[:5])) if preprocessing else model(images)
        other = model(torch.zeros(2, 3, 96, 96))
    given = torch.from_numpy(pictures.images[:5]) if preprocessing else images
    for count in (1, 5, 2):
        torch.testing.assert_close(fast(given[:count]), wanted[:count], atol=1e-4, rtol=0)
    if not preprocessing:
        torch.testing.assert_close(fast(torch.zeros(2, 3, 96, 96)), other, atol=1e-4, rtol=0)  # through PyTorch
        assert fast(images.contiguous(memory_format=torch.channels_last)).shape == (5, 10)
        assert fast(images[:0]).shape == (0, 10)
    assert fast.backend == backend
    assert not fast(given).requires_grad


def test_auto_measures_chooses_and_remembers(model: nn.Module, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = optimize(model, seconds=0.2)
    assert fast.milliseconds.keys() >= set(EXACT)
    assert (
        fast.milliseconds[fast.backend] == min(fast.milliseconds[b] for b in EXACT) or fast.backend == "openvino-bf16"
    )
    (choice,) = cache.glob("*.json")
    assert json.loads(choice.read_text())["backend"] == fast.backend
    choice.write_text(json.dumps({"backend": "torchscript", "milliseconds": {"torchscript": 0.1}}))
    assert optimize(model).backend == "torchscript"  # taken from there, not measured
    for damage in ("{", "[]", '{"backend": "rm", "milliseconds": {}}', '{"backend": "pytorch", "milliseconds": 3}'):
        choice.write_text(damage)
        assert optimize(model, seconds=0.1).milliseconds.keys() >= set(EXACT)
    changed = sqzoo.create_model("sq1", pretrained=True)
    changed.pretrained_cfg = model.pretrained_cfg
    with torch.no_grad():
        changed.fc2.bias.add_(1)
    monkeypatch.setattr("sqzoo.optimization.EXACT", ("pytorch",))
    monkeypatch.setattr("sqzoo.optimization.BF16", ())
    assert optimize(changed, seconds=0.1).milliseconds.keys() == {"pytorch"}  # other weights: measured anew
    assert optimize(model, batch_size=2, seconds=0.1).milliseconds.keys() == {"pytorch"}  # so is another batch size


def test_a_damaged_graph_is_made_again(model: nn.Module, cache: Path) -> None:
    optimize(model, "onnxruntime")
    key = Subject(model).key
    (file,) = cache.glob(f"{key}-*.onnx")
    whole = file.read_bytes()
    (entry,) = (k for k in kept() if k.kind == "graphs")
    assert entry.damage() is None
    file.write_bytes(whole[:-1])
    assert "is damaged" in str(entry.damage())
    assert Subject(model).onnx == whole == file.read_bytes()


def test_int8_is_kept_only_where_it_pays_and_is_right(
    model: nn.Module, pictures: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        images = Preprocessing.of(model.pretrained_cfg)(pictures.images)
        labels = torch.cat([model(part) for part in images.split(64)]).argmax(1).numpy()
    monkeypatch.setattr("sqzoo.optimization._times", lambda runs, *_: {n: 2.0 if "int8" in n else 3.0 for n in runs})
    right = Dataset(pictures.images, labels)  # float32 has every label right, so int8 can only lose
    found = optimize(model, calibration=right)
    run = BACKENDS["onnxruntime-int8"](Subject(model, False, pictures.images[:320]))
    lost = 100 * float((run(images[320:]).argmax(1).numpy() != labels[320:]).mean())
    assert ("int8" in found.backend) == (lost <= 0.3)
    monkeypatch.setattr("sqzoo.optimization.POINTS_LOST", 100.0)
    again = Dataset(pictures.images, labels[::-1].copy())  # another digest: nothing remembered
    assert "int8" in optimize(model, calibration=again).backend
    monkeypatch.setattr("sqzoo.optimization.SPEEDUP", 1.6)
    slow = Dataset(pictures.images, np.roll(labels, 1))
    assert optimize(model, calibration=slow).backend in EXACT


def test_failures_fall_back_with_a_warning(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Subject) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setitem(BACKENDS, "onnxruntime", broken)
    with pytest.warns(RuntimeWarning, match=r"onnxruntime left out \(RuntimeError: no such instruction\)"):
        assert optimize(model, batch_size=3, seconds=0.1).backend != "onnxruntime"

    def wrong(subject: Subject):
        return lambda x: subject.module(x) + 0.01

    monkeypatch.setitem(BACKENDS, "onnxruntime", wrong)
    with pytest.warns(RuntimeWarning, match="other outputs than PyTorch"):
        optimize(model, batch_size=4, seconds=0.1)

    images = torch.randn(2, 3, SIDE, SIDE)
    fast = optimize(model, "torchscript")
    fast._run = lambda x: broken(None)
    with pytest.warns(RuntimeWarning, match="torchscript failed .* going on with PyTorch"):
        found = fast(images)
    assert fast.backend == "pytorch"
    torch.testing.assert_close(found, model(images).detach(), atol=1e-4, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(images)


def test_the_model_itself_is_left_alone(model: nn.Module) -> None:
    model.train()
    fast = optimize(model, "pytorch")
    assert model.training and next(model.parameters()).requires_grad
    assert not fast.training
    model.eval()


def test_predict_takes_an_optimised_model() -> None:
    model = sqzoo.create_model("sq1", pretrained=True)
    cat = ROOT / "examples" / "cat.jpg"
    (wanted,), (found,) = predict(model, cat), predict(sqzoo.optimize(model, "torchscript"), cat)
    assert (found[0].label, found[0].probability) == (wanted[0].label, pytest.approx(wanted[0].probability, abs=1e-4))


def test_mistakes_are_one_clear_sentence(model: nn.Module, pictures: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, args, options in (
        ("Unknown backend 'onnxruntim'. Did you mean 'onnxruntime'", ("onnxruntim",), {}),
        ("batch_size must be a whole number from 1, not 0", ("auto", 0), {}),
        ("calibration must be 1,320 or more", ("auto",), {"calibration": pictures[:50]}),
    ):
        with pytest.raises(ArgumentError, match=words) as caught:
            optimize(model, *args, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match="Linear is no model of create_model"):
        optimize(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="the model is on meta; give"):
        optimize(sqzoo.create_model("sq1", device="meta"))
    for name in ["onnxruntime", *(m for m in sys.modules if m.startswith("onnxruntime."))]:
        monkeypatch.setitem(sys.modules, name, None)  # as an import finds it where it is not installed
    with pytest.raises(MissingExtraError, match=r"needs onnxruntime, .*pip install 'sqzoo\[export\]'"):
        optimize(model, "onnxruntime")
    assert "onnxruntime" not in optimize(model, batch_size=7, seconds=0.1).milliseconds


def test_a_folder_that_cannot_be_written_only_warns(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQZOO_CACHE", "/proc/none")
    with pytest.warns(RuntimeWarning, match="not remembered"):
        assert optimize(model, seconds=0.1).backend in BACKENDS


def test_import_stays_light() -> None:
    code = "import sys, sqzoo; print([m for m in sys.modules if m.startswith(('sqzoo.opt', 'sqzoo.back', 'onnx'))]); "
    code += "print(callable(sqzoo.optimize)); from sqzoo.optimization import Optimized; print(callable(sqzoo.optimize))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.stdout.split("\n") == ["[]", "True", "True", ""], done.stderr


def test_what_is_kept_can_be_removed(model: nn.Module, cache: Path) -> None:
    optimize(model, "onnxruntime")
    assert isinstance(optimize(model, "pytorch"), Optimized)
    assert remove("optimize").path == cache
    assert not cache.exists()
