"""Exported files: they give what PyTorch gives, say what they hold, and appear whole or not at all."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn as nn
from PIL import Image

import sqzoo
from sqzoo.cli import main
from sqzoo.data import Normalise
from sqzoo.deploy.int8 import calibration_images
from sqzoo.deploy.onnx_graph import FromPixels, run_onnx
from sqzoo.deploy.parity import INT8_TOLERANCE, TOLERANCE, compare
from sqzoo.errors import ArgumentError, ExportError, MissingExtraError, WeightsError
from sqzoo.export import FORMATS, export, metadata, read_int8, run_openvino
from sqzoo.files import tensors_sha256
from sqzoo.predict import predict
from sqzoo.weights import CIFAR10_CLASSES, get_weights
from tests.support import ROOT
from tests.support.sentences import assert_one_sentence

SMALL = {"input_size": (3, 64, 64), "crop_pct": 1.0}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return sqzoo.create_model("sq1", pretrained=True)


@pytest.fixture(scope="module")
def pixels(photo_squares: np.ndarray) -> np.ndarray:
    return photo_squares[:160]


def run_file(file: Path, images: torch.Tensor) -> torch.Tensor:
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(images)
    return run_openvino(file)(images) if file.suffix == ".xml" else run_onnx(file.read_bytes())(images)


@pytest.mark.parametrize(
    ("format", "preprocessing"),
    [("onnx", False), ("onnx", True), ("openvino", True), ("torch-export", False), ("torch-export", True)],
)
def test_a_file_gives_what_pytorch_gives(
    format: str, preprocessing: bool, model: nn.Module, pixels: np.ndarray, tmp_path: Path
) -> None:
    file = export(model, tmp_path / f"new/sq1{FORMATS[format]}", format, preprocessing=preprocessing)
    images = Normalise.of(model)(pixels[:5])
    with torch.inference_mode():
        wanted = FromPixels(model).eval()(torch.from_numpy(pixels[:5])) if preprocessing else model(images)
    for count in (1, 5):  # the batch is free
        found = run_file(file, torch.from_numpy(pixels[:count]) if preprocessing else images[:count])
        torch.testing.assert_close(found, wanted[:count], atol=TOLERANCE * float(wanted.abs().max()), rtol=0)
    names = [file.name] if format != "openvino" else ["sq1.bin", "sq1.xml"]
    assert sorted(p.name for p in file.parent.iterdir()) == names
    assert str(ROOT).encode() not in file.read_bytes()


@pytest.mark.slow
def test_int8(model: nn.Module, pixels: np.ndarray, tmp_path: Path) -> None:
    file = export(model, tmp_path / "q.onnx", "onnx-int8", preprocessing=True, calibration=pixels)
    graph = onnx.load(file).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") > 26
    weights = {i.name: i for i in graph.initializer if i.data_type == onnx.TensorProto.INT8}
    assert len([i for i in weights.values() if len(i.dims) == 4]) == 26
    assert next(i for i in graph.initializer if "features.0.weight_scale" in i.name).dims == [64]  # by channel
    assert file.stat().st_size < 0.32 * get_weights("sq1").size
    whole = FromPixels(model).eval()
    compare(whole, run_onnx(file.read_bytes()), [torch.from_numpy(pixels)], "int8", INT8_TOLERANCE)


def test_int8_weights(model: nn.Module, pixels: np.ndarray, tmp_path: Path) -> None:
    file = export(model, tmp_path / "q.safetensors", "safetensors-int8")
    assert file.stat().st_size < 0.27 * get_weights("sq1").size
    tensors = read_int8(file)
    for name, tensor in model.state_dict().items():
        rows = tensor.reshape(len(tensor), -1)
        step = rows.abs().amax(1, keepdim=True) / 127 if tensor.dim() > 1 else torch.zeros(1)
        assert ((tensors[name].reshape(rows.shape) - rows).abs() <= 0.51 * step).all(), name
    damaged = tmp_path / "d.safetensors"
    damaged.write_bytes(file.read_bytes()[:-1])
    for bad in (damaged, tmp_path / "absent.safetensors"):
        with pytest.raises(WeightsError, match=bad.name):
            read_int8(bad)


def test_pixels_are_prepared_as_everywhere(model: nn.Module, pixels: np.ndarray) -> None:
    graph = FromPixels(model)
    torch.testing.assert_close(graph.prepare(torch.from_numpy(pixels)), Normalise.of(model)(pixels), atol=1e-5, rtol=0)


def test_probabilities_are_at_the_models_temperature(pixels: np.ndarray) -> None:
    model = sqzoo.create_model("sq1", pretrained=True)
    model.temperature, model.ood_threshold = 2.0, 0.5
    (wanted,) = predict(model, pixels[0], top_k=10)
    found = FromPixels(model).eval()(torch.from_numpy(pixels[:1]))[0].detach()
    assert [p.probability for p in wanted] == pytest.approx([float(found[p.index]) for p in wanted], abs=1e-5)
    assert json.loads(metadata(model)["ood_threshold"]) == 0.5


def test_metadata_says_what_the_file_holds(model: nn.Module, tmp_path: Path) -> None:
    found = {p.key: p.value for p in onnx.load(export(model, tmp_path / "m.onnx", preprocessing=True)).metadata_props}
    entry = get_weights("sq1")
    assert found == metadata(model) | {"input": "uint8 NHWC"}
    assert json.loads(found["labels"]) == list(CIFAR10_CLASSES)
    assert (found["tag"], found["file_sha256"]) == (entry.tag, entry.sha256)
    assert found["weights_sha256"] == tensors_sha256(model.state_dict())
    assert json.loads(found["mean"]) == list(entry.mean)
    assert json.loads(found["input_size"]) == list(entry.input_size)
    changed = sqzoo.create_model("sq1", pretrained=True)
    with torch.no_grad():
        changed.fc2.bias.add_(1)
    assert "tag" not in metadata(changed)  # no longer the tag's weights: no claim to its origin and accuracy
    assert metadata(sqzoo.create_model("sq1", num_classes=3))["labels"] == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes", "args"),
    [("squeezenet_cifar", 0, {}), ("fire_next", 5, {"batch_norm": True}), ("alexnet_cifar", 5, {})],
)
def test_every_architecture(name: str, classes: int, args: dict[str, Any], tmp_path: Path) -> None:
    model = sqzoo.create_model(name, num_classes=classes, in_chans=1, **args)
    model.pretrained_cfg = {**model.pretrained_cfg, **SMALL}
    onnx.checker.check_model(onnx.load(export(model, tmp_path / "m.onnx")), full_check=True)


@pytest.mark.slow
def test_other_outputs_are_not_written(model: nn.Module, tmp_path: Path) -> None:
    class Random(nn.Module):  # what a broken exporter would give
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return model(x) + 0.01

    images = torch.randn(3, *get_weights("sq1").input_size)
    with pytest.raises(ExportError, match="onnx gives other outputs than PyTorch"):
        compare(model, Random(), [images], "onnx")
    with pytest.raises(ExportError, match="shape"):
        compare(model, lambda x: model(x) * float("nan"), [images], "onnx")
    # int8 of pictures far from those that set the ranges
    pixels = np.zeros((128, 32, 32, 3), np.uint8)
    pixels[64:] = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    with pytest.raises(ExportError, match="int8 gives other outputs"):
        export(model, tmp_path / "q.onnx", "onnx-int8", calibration=pixels)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "sq1.ft_cifar10", str(tmp_path / "m.pt2"), "--format", "torch-export"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'm.pt2'}: 3.3")
    assert main(["export", "sq1", str(tmp_path / "js"), "--format", "transformers-js"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'js'}: a folder")
    assert (tmp_path / "js" / "onnx" / "model.onnx").is_file() and (tmp_path / "js" / "config.json").is_file()
    for words, expected in (
        (["sq1", "--format", "onxx"], "Did you mean 'onnx'"),
        (["sq2"], "Did you mean 'sq1'"),
        (["sq1", "/proc/m.onnx"], "Cannot write /proc/m.onnx"),
    ):
        assert main(["export", *words]) == 2
        err = capsys.readouterr().err
        assert expected in err
        assert err.count("\n") == 1


def test_int8_of_ones_own_model_takes_ranges_from_its_folder(tmp_path: Path, photo_squares: np.ndarray) -> None:
    """And no image of the validation part; of few images the mirror images, too."""
    mine = sqzoo.create_model("sq1", num_classes=3).eval()
    mine.pretrained_cfg.update(input_size=(3, 32, 32), crop_pct=1.0)
    for number, pixels in enumerate(photo_squares[:70]):
        part = tmp_path / "photos" / ("train" if number < 66 else "val") / str(number % 3)
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(part / f"{number}.png")
    found = calibration_images(mine, root=tmp_path / "photos")
    assert found.shape == (132, 32, 32, 3)
    wanted = {pixels[:, ::step].tobytes() for pixels in photo_squares[:66] for step in (1, -1)}
    assert {pixels.tobytes() for pixels in found} == wanted
    for folder, words in (("photos/val", "64 or more images.*and 4 of"), ("no", "No folder")):
        with pytest.raises(ArgumentError, match=words) as caught:
            calibration_images(mine, root=tmp_path / folder)
        assert_one_sentence(caught.value)


def test_mistakes_are_one_clear_sentence(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    few = np.zeros((10, 32, 32, 3), np.uint8)
    for words, args, error in (
        ("Unknown format 'onxx'. Did you mean 'onnx'", ("m.onnx", "onxx"), ArgumentError),
        ("ends in .xml", ("m.onnx", "openvino"), ArgumentError),
        ("Cannot write .*file/m.onnx .*Not a directory|File exists", ("file/m.onnx",), ExportError),
        ("Cannot write .*/proc/m.onnx", ("/proc/m.onnx",), ExportError),
    ):
        with pytest.raises(error, match=words) as caught:
            export(model, tmp_path / args[0], *args[1:])
        assert_one_sentence(caught.value)
    with pytest.raises(ArgumentError, match="Linear was not created by create_model"):
        export(nn.Linear(2, 2), tmp_path / "m.onnx")
    with pytest.raises(ArgumentError, match="calibration must be 128 or more"):
        export(model, tmp_path / "m.onnx", "onnx-int8", calibration=few)
    with pytest.raises(ArgumentError, match="needs its own training images: --data FOLDER"):
        export(sqzoo.create_model("sq1", num_classes=3), tmp_path / "m.onnx", "onnx-int8")
    with pytest.raises(ArgumentError, match="preprocessing=True needs a graph"):
        export(model, tmp_path / "m.safetensors", "safetensors-int8", preprocessing=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("package", "format", "extra"),
    [
        *(("onnxruntime", "onnx", "export"), ("onnx", "onnx", "export"), ("openvino", "openvino", "openvino")),
        *(("executorch.exir", "executorch", "executorch"), ("litert_torch", "litert", "litert")),
        *(("coremltools", "coreml", "coreml"), ("pnnx", "ncnn", "ncnn")),
    ],
)
def test_a_missing_extra_is_named(
    package: str, format: str, extra: str, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [package, *(m for m in sys.modules if m.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)  # as an import finds it where it is not installed
    with pytest.raises(
        MissingExtraError, match=rf"needs {package.partition('.')[0]}, .*pip install 'sqzoo\[{extra}\]'"
    ):
        export(model, tmp_path / f"m{FORMATS[format]}", format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_kill_leaves_nothing_half_written(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    code = f"""
import sqzoo
from sqzoo.export import export
model = sqzoo.create_model("sq1", num_classes=3)
model.pretrained_cfg = {{**model.pretrained_cfg, "input_size": (3, 64, 64)}}
export(model, {str(target)!r})
print("once", flush=True)
from sqzoo.files import write_bytes
while True:
    write_bytes(__import__("pathlib").Path({str(target)!r}), open({str(target)!r}, "rb").read())
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "once\n"
    time.sleep(0.3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    onnx.checker.check_model(onnx.load(target), full_check=True)
