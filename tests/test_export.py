"""Exported files: they give what PyTorch gives, say what they hold, and appear whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch

import sqzoo
from sqzoo.data import Preprocessing
from sqzoo.export import FORMATS, TOLERANCE, export, onnx_run, openvino_run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return sqzoo.create_model("sq1", pretrained=True)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Smooth pictures of 32 pixels: noise of 4, enlarged."""
    coarse = torch.rand(160, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def expected(model: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(Preprocessing.of(model.pretrained_cfg)(pixels)).softmax(1).numpy()


def by_torch_export(file: Path, images: np.ndarray) -> np.ndarray:
    return torch.export.load(file).module()(torch.from_numpy(images)).detach().numpy()


RUNNERS = {
    "onnx": lambda file, images: onnx_run(file.read_bytes())(images),
    "onnx-int8": lambda file, images: onnx_run(file.read_bytes())(images),
    "openvino": lambda file, images: openvino_run(file)(images),
    "torch-export": by_torch_export,
}


@pytest.mark.parametrize("format", RUNNERS)
def test_pixels_in_probabilities_out(format: str, model: torch.nn.Module, pixels: np.ndarray, tmp_path: Path) -> None:
    file = export(model, tmp_path / f"new/sq1{FORMATS[format]}", format, preprocessing=True, calibration=pixels)
    for count in (1, 5):
        found = RUNNERS[format](file, pixels[:count])
        error = np.abs(found - expected(model, pixels[:count])).max()
        assert found.shape == (count, 10)
        assert np.allclose(found.sum(1), 1, atol=1e-5)
        assert error < (0.2 if format == "onnx-int8" else TOLERANCE)
    assert (
        [p.suffix for p in sorted(file.parent.iterdir())] == [".bin", ".xml"] if format == "openvino" else [file.suffix]
    )
