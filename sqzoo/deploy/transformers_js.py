"""Write a model for transformers.js: ONNX graphs that take images of any size, and their configuration."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from sqzoo.deploy.onnx_graph import frozen_copy, run_onnx, to_onnx
from sqzoo.deploy.parity import INT8_TOLERANCE, compare, photo_crops
from sqzoo.environment import require
from sqzoo.errors import ArgumentError

MODEL, QUANTIZED, PROCESSOR = "onnx/model.onnx", "onnx/model_quantized.onnx", "preprocessor_config.json"
# transformers.js picks a class by this name, from a list that lacks timm's; it means one ONNX graph from pixel_values
# to logits. Python's transformers must not see it, and reads `TRANSFORMERS_CONFIG` instead.
MODEL_TYPE = "resnet"
TRANSFORMERS_CONFIG = "config.4.48.0.json"  # read by versions from 4.48, the first that has timm's models
TRANSFORMERS_PROCESSOR = (
    "processor_config.json"  # read in place of preprocessor_config.json, which is for transformers.js
)
_LARGEST_SIZE = 2048  # pixels; transformers.js shrinks larger images to about that, to limit memory
# Layers of so few weights, the first and the narrow ones, stay float32 in the quantized file: they change the outputs
# more than all others, and are 0.08 MB of 3.
_FLOAT_WEIGHTS = 12_288


class PixelValues(nn.Module):
    """A network with resize and centre crop before it: normalised images of any size to logits.

    transformers.js resizes without antialiasing in Node and by the browser's canvas elsewhere, so it is told not to.
    The graph resizes the short side to size / crop_pct and takes the centre, as `timm.data.create_transform` does with
    Pillow: an antialiased triangle filter along the width, then the height, each rounded to whole pixel values.
    """

    names = ("pixel_values", "logits")
    any_size = True
    mean: torch.Tensor  # of pixel values 0 to 255, like std
    std: torch.Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        config: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
        self.net = net
        self.size = int(config["input_size"][1])
        self.resize = int(self.size / config["crop_pct"])
        mean, std = (255 * torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net(self.prepare(pixel_values))

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Resize and crop normalised images (N, 3, H, W) to (N, 3, size, size)."""
        height, width = (torch.arange(length, dtype=torch.float32) + 0.5 for length in images.shape[2:])
        short = torch.minimum(height[-1], width[-1]) + 0.5
        pixels = images * self.std + self.mean
        pixels = torch.floor(pixels @ self._weights(width, short).t() + 0.5)
        pixels = torch.floor(self._weights(height, short) @ pixels + 0.5)
        return (pixels - self.mean) / self.std

    def _weights(self, centres: torch.Tensor, short: torch.Tensor) -> torch.Tensor:
        """Return the matrix (size, length) that resizes and crops an axis whose pixels have these centres."""
        length = centres[-1] + 0.5
        resized = torch.floor(self.resize * length / short)
        low = torch.round((resized - self.size) / 2)
        scale = length / resized
        targets = (torch.arange(self.size, dtype=torch.float32) + 0.5 + low) * scale
        weights = torch.relu(1 - (centres[None] - targets[:, None]).abs() / scale.clamp(min=1))
        return weights / weights.sum(1, keepdim=True)


def javascript_files(model: nn.Module, metadata: Mapping[str, str]) -> dict[str, bytes]:
    """Export preprocessor_config.json and the ONNX graphs, float32 and quantized.

    Args:
        model: from `create_model`, with 3 input channels and classes.
        metadata: of the graphs.

    Returns:
        Files by their names in a repository.

    Raises:
        ArgumentError: the model has other channels, or no classes.
        ExportError: a graph gives other outputs than PyTorch.
        MissingExtraError: the packages of the extra `export` are not installed.
    """
    if model.in_chans != 3 or not model.num_classes:
        raise ArgumentError(
            f"transformers.js takes models with 3 input channels and classes, not with {model.in_chans} channels and "
            f"{model.num_classes} classes; create the model with in_chans=3 and num_classes=."
        )
    graph = PixelValues(frozen_copy(model)).eval()
    images = (photo_crops(3, (graph.resize + 5, graph.resize + 32)) - graph.mean) / graph.std
    data = to_onnx(graph, images[:2], metadata)
    compare(graph, run_onnx(data), [images], "onnx")
    quantized = quantize_weights(data)
    compare(graph, run_onnx(quantized), [images], "quantized onnx", INT8_TOLERANCE)
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    processor = {
        "feature_extractor_type": "ImageFeatureExtractor",  # the plain image processor of transformers.js
        "do_convert_rgb": True,
        "do_resize": False,
        "do_thumbnail": True,  # shrinks larger images, and enlarges none
        "size": {"height": _LARGEST_SIZE, "width": _LARGEST_SIZE},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": config["mean"],
        "image_std": config["std"],
    }
    return {PROCESSOR: json_bytes(processor), MODEL: data, QUANTIZED: quantized}


def configurations(config: Mapping[str, Any], labels: list[str]) -> dict[str, bytes]:
    """Return config.json for transformers.js, and other files for Python's transformers, which read the same names.

    Args:
        config: the configuration in timm's format, which config.json keeps for sqzoo and timm.
        labels: names of the classes.

    Returns:
        Files by their names in a repository.
    """
    script = {
        "model_type": MODEL_TYPE,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "transformers.js_config": {"dtype": "fp32"},  # a browser takes the quantized file by default
        "configuration_files": [TRANSFORMERS_CONFIG],
    }
    processor = {key: config[key] for key in ("architecture", "pretrained_cfg")}
    processor["image_processor_type"] = "TimmWrapperImageProcessor"
    return {
        TRANSFORMERS_CONFIG: json_bytes(dict(config) | {"model_type": "timm_wrapper"}),
        TRANSFORMERS_PROCESSOR: json_bytes({"image_processor": processor}),
        "config.json": json_bytes(dict(config) | script),
    }


def quantize_weights(data: bytes) -> bytes:
    """Quantise an ONNX file's large weights to int8, per output channel, which makes it a third of the size.

    A runtime turns them into float32 when it loads the file, so no calibration images are needed.
    """
    onnx = require("onnx", "export", "ONNX")
    model = onnx.load_from_string(data)
    graph = model.graph
    nodes, kept, added = [], [], []
    weights = {node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm")}
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name not in weights or values.size <= _FLOAT_WEIGHTS:
            kept.append(tensor)
            continue
        largest = np.abs(values).reshape(len(values), -1).max(1)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        quantized = np.round(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        names = [f"{tensor.name}.int8", f"{tensor.name}.scale"]
        added += [onnx.numpy_helper.from_array(v, name) for v, name in zip((quantized, scale), names, strict=True)]
        nodes.append(onnx.helper.make_node("DequantizeLinear", names, [tensor.name], axis=0))
    nodes += list(graph.node)
    for part, content in ((graph.initializer, kept + added), (graph.node, nodes)):
        del part[:]
        part.extend(content)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def json_bytes(value: Any) -> bytes:
    """Return a JSON file's bytes."""
    return (json.dumps(value, indent=2) + "\n").encode()
