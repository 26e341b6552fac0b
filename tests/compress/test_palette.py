"""ONNX in 4 bits: the file computes with exactly the values that were chosen, and they are chosen well."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn as nn

import sqzoo
from sqzoo.compress.palette import palettise, to_4bit
from sqzoo.compress.quantize import quantize_to
from sqzoo.compress.stages import Moments
from sqzoo.deploy.onnx_graph import run_onnx, to_onnx
from sqzoo.export import export


def test_errors_are_compensated() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 64, generator=draw) @ torch.randn(64, 64, generator=draw)
    covariance = inputs.T.cov().double()
    upper = torch.linalg.cholesky(covariance.flip(0, 1)).flip(0, 1)
    spread = torch.linalg.solve_triangular(upper, torch.eye(64).double(), upper=True).float()
    rows = torch.randn(32, 64, generator=draw)
    indices, values = quantize_to(rows, Moments(inputs.mean(0), spread), 16)
    assert len(values) == 16 and int(indices.max()) <= 15
    nearest = values[(rows[..., None] - values).abs().argmin(-1)]
    error, plain = (float(((w - rows) @ inputs.T).square().mean()) for w in (values[indices], nearest))
    assert error < 0.7 * plain


def test_the_file_computes_with_the_chosen_values() -> None:
    draw = np.random.default_rng(0)
    values = np.sort(draw.normal(size=16)).astype(np.float32)
    indices = draw.integers(0, 16, (16, 7, 3, 3), np.uint8)  # of odd length per channel
    scale = draw.uniform(0.5, 2, (16, 1, 1, 1)).astype(np.float32)
    net = nn.Sequential(nn.Conv2d(7, 16, 3), nn.ReLU(), nn.Conv2d(16, 20, 1, bias=False)).eval().requires_grad_(False)
    net[0].weight.copy_(torch.from_numpy(values[indices] * scale))
    images = torch.randn(2, 7, 8, 8)
    data = to_4bit(to_onnx(net, images, {}), {"0.weight": (indices, values, scale)}, {"tag": "t"})
    file = onnx.load_from_string(data)
    onnx.checker.check_model(file, full_check=True)
    kinds = {i.name: i.data_type for i in file.graph.initializer}
    assert kinds["0.weight.indices"] == onnx.TensorProto.UINT4 and kinds["2.weight.int8"] == onnx.TensorProto.INT8
    eight = net[2].weight
    step = eight.abs().amax((1, 2, 3), keepdim=True) / 127
    net[2].weight.copy_((eight / step).round() * step)
    torch.testing.assert_close(run_onnx(data)(images), net(images), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_network_in_half_a_megabyte(photo_squares: np.ndarray, tmp_path: Path) -> None:
    model = sqzoo.create_model("sq1", pretrained=True)
    file = export(model, tmp_path / "m.onnx", "onnx-4bit", preprocessing=True, calibration=photo_squares[:320])
    assert file.stat().st_size < 500_000
    small, palettes = palettise(model, photo_squares[:128])
    assert all(len(np.unique(v)) <= 16 for _, v, _ in palettes.values()) and len(palettes) > 8
    assert sum(i.size for i, _, _ in palettes.values()) > 0.8 * sum(p.numel() for p in small.parameters())
