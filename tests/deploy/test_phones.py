"""Files for phones and small boards: their own runtimes, where installed, give what PyTorch gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

import sqzoo
from sqzoo.data import Normalise
from sqzoo.deploy.backends import ExportModel
from sqzoo.deploy.ncnn_int8 import ncnn_to_int8
from sqzoo.deploy.onnx_graph import FromPixels
from sqzoo.deploy.parity import INT8_TOLERANCE, TOLERANCE
from sqzoo.deploy.phones import FromPlanes, run_phone
from sqzoo.errors import ExportError
from sqzoo.export import FORMATS, export
from tests.support.sentences import refusal

NEEDS = {"executorch": "executorch", "litert": "litert_torch", "ncnn": "pnnx", "coreml": "coremltools"}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return sqzoo.create_model("sq1", pretrained=True)


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("format", ["executorch", "litert", "ncnn"])
def test_its_runtime_gives_what_pytorch_gives(
    format: str, int8: bool, model: nn.Module, photo_squares: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip(NEEDS[format])
    for preprocessing in (True, False):
        name = f"{format}{'-int8' * int8}"
        file = tmp_path / f"{preprocessing}{FORMATS[name]}"
        assert export(model, file, name, preprocessing=preprocessing, calibration=photo_squares[:192]) == file
        pixels = torch.from_numpy(photo_squares[192:232])
        with torch.inference_mode():
            graph = FromPixels(model).eval() if preprocessing else model
            images = pixels if preprocessing else Normalise.of(model)(pixels.numpy())
            wanted, found = graph(images), run_phone(file)(images)
        error = float((found - wanted).square().mean().sqrt() / wanted.std())
        assert error < (INT8_TOLERANCE if int8 else 0.01 if format == "ncnn" else TOLERANCE)
        size = sum(p.stat().st_size for p in (file, file.with_suffix(".bin")) if p.exists())
        assert size < (0.95e6 if int8 else 1.7e6 if format == "ncnn" else 3.3e6)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".writing")]


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_core_ml(int8: bool, model: nn.Module, photo_squares: np.ndarray, tmp_path: Path) -> None:
    coreml = pytest.importorskip("coremltools")
    name = f"coreml{'-int8' * int8}"
    file = export(model, tmp_path / "m.mlpackage", name, preprocessing=True, calibration=photo_squares[:192])
    spec = coreml.utils.load_spec(str(file))  # it runs on Apple's systems alone: what can be read is checked
    assert spec.description.input[0].type.imageType.width == 32
    assert spec.description.metadata.userDefined["tag"] == "sq1.ft_cifar10"
    kinds = [op.type for op in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations]
    assert kinds.count("conv") == 26
    assert (kinds.count("quantize") > 20) == int8
    assert sum(p.stat().st_size for p in file.rglob("*") if p.is_file()) < (1.1e6 if int8 else 1.8e6)
    with refusal("Is a directory"):  # of another's files, or ours: a folder is not replaced
        export(model, file, name, preprocessing=True, calibration=photo_squares[:192])


def test_planes_are_prepared_as_pixels(model: nn.Module, photo_squares: np.ndarray) -> None:
    net = ExportModel(model).net
    pixels = torch.from_numpy(photo_squares[:2])
    with torch.inference_mode():
        planes = FromPlanes(net).eval()(pixels.permute(0, 3, 1, 2).float())
        torch.testing.assert_close(planes, FromPixels(net).eval()(pixels), atol=1e-5, rtol=0)


def test_ncnn_int8_refuses_a_layer_that_it_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    param, weights = tmp_path / "m.param", tmp_path / "m.bin"
    param.write_text("7767517\n2 2\nInput in0 0 1 in0\nPReLU p 1 1 in0 out0 0=3\n")
    weights.write_bytes(bytes(12))
    with pytest.raises(ExportError, match="does not know a layer"):
        ncnn_to_int8(param, weights, torch.zeros(0, 3, 4, 4), None)
    assert weights.read_bytes() == bytes(12)
