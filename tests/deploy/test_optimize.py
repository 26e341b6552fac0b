"""`sqzoo.optimize`: every backend gives what the model gives; the choice is measured, remembered, and safe."""

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn

import sqzoo
from sqzoo.cache import entries, remove
from sqzoo.data import Dataset, Normalise
from sqzoo.deploy.backends import BACKENDS, ExportModel, Shape, graph_folder
from sqzoo.deploy.onnx_graph import FromPixels, ResizeMatrices
from sqzoo.deploy.optimize import EXACT, optimize
from sqzoo.deploy.optimized import SHAPES, Optimized
from sqzoo.errors import ArgumentError, MissingExtraError
from sqzoo.models.upsample import Upsample
from sqzoo.predict import predict
from tests.support import ROOT
from tests.support.sentences import assert_one_sentence

SIDE = 32


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return sqzoo.create_model("sq1", pretrained=True, upsample=64)


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    """A network that takes images as they come."""
    torch.manual_seed(0)
    return sqzoo.create_model("sq1", num_classes=10).eval()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield graph_folder()


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
    images = Normalise.of(model)(pictures.images[:5])
    with torch.inference_mode():
        wanted = FromPixels(model).eval()(torch.from_numpy(pictures.images[:5])) if preprocessing else model(images)
    given = torch.from_numpy(pictures.images[:5]) if preprocessing else images
    for count in (1, 5, 2):
        torch.testing.assert_close(fast(given[:count]), wanted[:count], atol=1e-4, rtol=0)
    if not preprocessing:
        torch.testing.assert_close(fast(images.double().requires_grad_()), wanted, atol=1e-4, rtol=0)
        assert fast(images.contiguous(memory_format=torch.channels_last)).shape == (5, 10)
        assert fast(images[:0]).shape == (0, 10)
    assert fast.backend == backend
    assert not fast(given).requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("backend", EXACT)
def test_any_size_goes_through_the_runtime(
    backend: str, plain: nn.Module, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    prepared = []

    def counted(export_model: ExportModel, shape: Shape, make: Any = BACKENDS[backend]) -> Any:
        prepared.append(shape)
        return make(export_model, shape)

    monkeypatch.setitem(BACKENDS, backend, counted)
    fast = optimize(plain, backend, input_size=(48, 80))
    assert prepared == [(1, 3, 48, 80)]
    shapes = [(1, 3, 48, 80), (1, 3, 96, 96), (2, 3, 96, 96), (1, 3, 48, 80)]
    for shape in shapes:
        images = torch.randn(shape)
        torch.testing.assert_close(fast(images), plain(images).detach(), atol=1e-4, rtol=0)
    assert prepared == shapes[:3]  # each once
    for batch in range(3, SHAPES + 2):  # with the two above, one more than are kept, and (2, 3, 96, 96) the eldest
        fast(torch.randn(1, 3, 48, 80))
        fast(torch.randn(batch, 3, 32, 32))
    assert len(fast._runs) == SHAPES
    prepared.clear()
    fast(torch.randn(1, 3, 48, 80))
    assert prepared == []
    fast(torch.randn(2, 3, 96, 96))
    assert prepared == [(2, 3, 96, 96)]
    assert not [w for w in recwarn if w.category is RuntimeWarning]


@pytest.mark.parametrize("size", [(32, 32), (28, 30), (100, 60)])
@pytest.mark.parametrize("args", [(64,), (80, 70)])
def test_an_enlargement_by_matrices_is_the_same(args: tuple[int, ...], size: tuple[int, int]) -> None:
    images, upsample = torch.randn(2, 3, *size), Upsample(*args)
    torch.testing.assert_close(ResizeMatrices(upsample, size)(images), upsample(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", EXACT)
def test_a_network_that_enlarges_takes_any_size(backend: str, model: nn.Module) -> None:
    fast = optimize(model, backend)
    for size in ((32, 32), (100, 60)):
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(fast(images), model(images).detach(), atol=1e-4, rtol=0)


def test_auto_measures_at_the_given_size(model: nn.Module) -> None:
    assert optimize(model, input_size=(3, 40, 56), seconds=0.1)._runs.keys() == {
        (torch.get_num_threads(), 1, 3, 40, 56)
    }


@pytest.mark.slow
@pytest.mark.parametrize("backend", EXACT)
def test_copies_go_to_other_processes(backend: str, model: nn.Module, tmp_path: Path) -> None:
    fast = optimize(model, backend)
    images = torch.randn(1, 3, SIDE, SIDE)
    wanted = fast(images)
    data = pickle.dumps(fast)
    assert len(data) < 1.1 * len(pickle.dumps(model))  # the weights once, and no graph
    for copied in (copy.deepcopy(fast), pickle.loads(data)):
        assert (copied.backend, copied.milliseconds, copied._runs) == (backend, {}, {})
        torch.testing.assert_close(copied(images), wanted, atol=1e-5, rtol=0)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        torch.testing.assert_close(pool.submit(_call, fast, images).result(), wanted, atol=1e-5, rtol=0)


def _call(fast: Optimized, images: torch.Tensor) -> torch.Tensor:
    return fast(images).clone()


@pytest.mark.slow
def test_the_callers_modes_do_not_matter(model: nn.Module) -> None:
    images = torch.randn(2, 3, 36, 36)
    wanted = model(images).detach()
    torch.set_default_dtype(torch.float64)
    try:
        for backend in EXACT:
            optimize(model, backend, preprocessing=True)
            found = optimize(model, backend)(images.double())
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        fast = [optimize(model, backend, input_size=40) for backend in EXACT[1:]]
        found = [each(images) for each in fast]
    for each in found:
        torch.testing.assert_close(each, wanted, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_compiled_model_is_taken(model: nn.Module) -> None:
    images = torch.randn(1, 3, SIDE, SIDE)
    fast = optimize(torch.compile(model, backend="eager"), "onnxruntime")
    torch.testing.assert_close(fast(images), model(images).detach(), atol=1e-4, rtol=0)


def test_it_stays_what_it_is(model: nn.Module) -> None:
    fast, images = optimize(model, "pytorch"), torch.randn(2, 3, SIDE, SIDE)
    wanted = fast(images)
    assert not fast.train().training
    assert torch.equal(fast(images), wanted)  # no dropout
    assert fast.to("cpu").float() is fast
    for change in (fast.half, lambda: fast.to("meta"), lambda: fast.load_state_dict(fast.state_dict())):
        with pytest.raises(ArgumentError, match=r"An optimised model (stays|takes no other weights)"):
            change()


def test_auto_measures_chooses_and_remembers(model: nn.Module, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove("optimize")
    fast = optimize(model, seconds=0.2)
    assert fast.milliseconds.keys() >= set(EXACT)
    assert (
        fast.milliseconds[fast.backend] == min(fast.milliseconds[b] for b in EXACT) or fast.backend == "openvino-bf16"
    )
    (choice,) = cache.glob("*.json")
    assert json.loads(choice.read_text())["backend"] == fast.backend
    choice.write_text(json.dumps({"backend": "pytorch", "milliseconds": {"pytorch": 0.1}}))
    assert optimize(model).milliseconds == {"pytorch": 0.1}  # taken from there, not measured
    for damage in ("{", "[]", '{"backend": "rm", "milliseconds": {}}', '{"backend": "pytorch", "milliseconds": 3}'):
        choice.write_text(damage)
        assert optimize(model, seconds=0.1).milliseconds.keys() >= set(EXACT)
    changed = sqzoo.create_model("sq1", pretrained=True, upsample=64)
    with torch.no_grad():
        changed.fc2.bias.add_(1)
    monkeypatch.setattr("sqzoo.deploy.optimize.EXACT", ("pytorch",))
    monkeypatch.setattr("sqzoo.deploy.optimize.BF16", ())
    assert optimize(changed, seconds=0.1).milliseconds.keys() == {"pytorch"}  # other weights: measured anew
    model.temperature, own = 2 * model.temperature, model.temperature
    assert optimize(model, seconds=0.1).milliseconds.keys() == {"pytorch"}  # so are other settings
    model.temperature = own
    assert optimize(model, batch_size=2, seconds=0.1).milliseconds.keys() == {"pytorch"}  # so is another batch size


def test_a_damaged_graph_is_made_again(model: nn.Module, cache: Path) -> None:
    optimize(model, "onnxruntime")
    ours = ExportModel(model)
    key = ours.key(ours.shape(1))
    (file,) = cache.glob(f"{key}-*.onnx")
    whole = file.read_bytes()
    (entry,) = (k for k in entries() if k.kind == "graphs")
    assert entry.damage() is None
    file.write_bytes(whole[:-1])
    assert "is damaged" in str(entry.damage())
    assert ours.onnx(ours.shape(1)) == whole == file.read_bytes()


@pytest.mark.slow
def test_int8_is_kept_only_where_it_pays_and_is_right(
    model: nn.Module, pictures: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        images = Normalise.of(model)(pictures.images)
        labels = torch.cat([model(part) for part in images.split(64)]).argmax(1).numpy()
    monkeypatch.setattr("sqzoo.deploy.optimize._times", lambda runs, *_: {n: 2.0 if "int8" in n else 3.0 for n in runs})
    right = Dataset(pictures.images, labels)  # float32 has every label right, so int8 can only lose
    found = optimize(model, calibration=right)
    ours = ExportModel(model, calibration=pictures.images[:320])
    run = BACKENDS["onnxruntime-int8"](ours, ours.shape(1))
    lost = 100 * float((run(images[320:]).argmax(1).numpy() != labels[320:]).mean())
    assert ("int8" in found.backend) == (lost <= 0.3)
    monkeypatch.setattr("sqzoo.deploy.optimize.POINTS_LOST", 100.0)
    again = Dataset(pictures.images, labels[::-1].copy())  # another digest: nothing remembered
    assert "int8" in optimize(model, calibration=again).backend
    monkeypatch.setattr("sqzoo.deploy.optimize.SPEEDUP", 1.6)
    slow = Dataset(pictures.images, np.roll(labels, 1))
    assert optimize(model, calibration=slow).backend in EXACT


def test_failures_fall_back_with_a_warning(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    images = torch.randn(2, 3, SIDE, SIDE)
    fast = optimize(model, "onnxruntime")
    monkeypatch.setitem(BACKENDS, "onnxruntime", broken)
    for again in (fast, optimize(model, "openvino")):
        again._runs = {(torch.get_num_threads(), 2, 3, SIDE, SIDE): broken} if again is not fast else {}
        with pytest.warns(RuntimeWarning, match=r"failed for \[2, 3, 32, 32\] .* PyTorch takes over"):
            found = again(images)
        torch.testing.assert_close(found, model(images).detach(), atol=1e-4, rtol=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is told once
            again(images)
    with pytest.warns(RuntimeWarning, match=r"onnxruntime left out \(RuntimeError: no such instruction\)"):
        assert optimize(model, batch_size=3, seconds=0.1).backend != "onnxruntime"

    def wrong(ours: ExportModel, shape: Shape) -> Any:
        return lambda x: ours.module(x) + 0.01

    monkeypatch.setitem(BACKENDS, "onnxruntime", wrong)
    with pytest.warns(RuntimeWarning, match="other outputs than PyTorch"):
        optimize(model, batch_size=4, seconds=0.1)


def test_the_model_itself_is_left_alone(model: nn.Module) -> None:
    model.train()
    fast = optimize(model, "pytorch")
    assert model.training and next(model.parameters()).requires_grad
    assert not fast.training
    model.eval()


def test_predict_takes_an_optimised_model() -> None:
    model = sqzoo.create_model("sq1", pretrained=True)
    cat = ROOT / "examples" / "cat.jpg"
    (wanted,), (found,) = predict(model, cat), predict(sqzoo.optimize(model, "onnxruntime"), cat)
    assert (found[0].label, found[0].probability) == (wanted[0].label, pytest.approx(wanted[0].probability, abs=1e-4))


def test_mistakes_are_one_clear_sentence(model: nn.Module, pictures: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, args, options in (
        ("Unknown backend 'onnxruntim'. Did you mean 'onnxruntime'", ("onnxruntim",), {}),
        ("batch_size must be a whole number from 1, not 0", ("auto", 0), {}),
        ("calibration must be 1,320 or more", ("auto",), {"calibration": pictures[:50]}),
        (r"input_size must be .* \(3, height, width\), not \(1, 64, 64\)", (), {"input_size": (1, 64, 64)}),
        ("input_size must be .* not True", (), {"input_size": True}),
    ):
        with pytest.raises(ArgumentError, match=words) as caught:
            optimize(model, *args, **options)
        assert_one_sentence(caught.value)
    with pytest.raises(ArgumentError, match="Linear was not created by create_model"):
        optimize(nn.Linear(2, 2))
    fast = optimize(model, "pytorch")
    for images in (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 64, 64), torch.zeros(1, 1, 64, 64)):
        with pytest.raises(
            ArgumentError, match=r"takes images float \(N, 3, H, W\), normalised, on the CPU, not torch"
        ):
            fast(images)
    assert optimize(sqzoo.create_model("sq1"), "pytorch")(torch.zeros(1, 3, 2, 2)).shape == (1, 10)  # enlarged
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


@pytest.mark.slow
def test_import_stays_light() -> None:
    code = "import sys, sqzoo; print([m for m in sys.modules if m.startswith(('sqzoo.deploy', 'onnx'))]); "
    code += "print(callable(sqzoo.optimize)); "
    code += "from sqzoo.deploy.optimized import Optimized; print(callable(sqzoo.optimize))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.stdout.split("\n") == ["[]", "True", "True", ""], done.stderr


def test_what_is_kept_can_be_removed(model: nn.Module, cache: Path) -> None:
    optimize(model, "onnxruntime")
    assert isinstance(optimize(model, "pytorch"), Optimized)
    assert remove("optimize").path == cache
    assert not cache.exists()
