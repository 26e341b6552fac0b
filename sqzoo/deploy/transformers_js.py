"""Files for transformers.js: ONNX graphs that take a picture of any size, and the two configurations beside them."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from sqzoo.deploy.onnx_graph import frozen_copy, run_onnx, to_onnx
from sqzoo.deploy.parity import INT8_TOLERANCE, compare
from sqzoo.environment import require
from sqzoo.errors import ArgumentError

MODEL, QUANTIZED, PROCESSOR = "onnx/model.onnx", "onnx/model_quantized.onnx", "preprocessor_config.json"
# transformers.js picks a class by this name, from a list that timm's is not on; all it means there is one ONNX graph
# from pixel_values to logits. Python's transformers must not see it: it reads `TRANSFORMERS_CONFIG` instead.
MODEL_TYPE = "resnet"
TRANSFORMERS_CONFIG = "config.4.48.0.json"  # read from that version on, the first that knows timm's models
TRANSFORMERS_PROCESSOR = "processor_config.json"  # read before preprocessor_config.json, which is transformers.js'
_LARGEST_SIDE = 2048  # pixels; transformers.js shrinks larger pictures to it, roughly, so that memory stays small
# A layer's weights up to so many values stay float32 in the quantized file: those of the first layers and the narrow
# ones, which move the answers more than all others and are 0.08 MB of 3.
_KEPT_WEIGHTS = 12_288


class PixelValues(nn.Module):
    """A network behind the preparation that transformers.js lacks: normalised images of any size to logits.

    transformers.js resizes without antialiasing in Node and by the browser's canvas elsewhere. So it is told to leave
    the size alone, and the graph resizes the short side to side / crop_pct and takes the centre, as
    `timm.data.create_transform` does by Pillow: a triangle filter, as wide as the reduction asks, along the width, then
    the height, each rounded to whole levels.
    """

    names = ("pixel_values", "logits")
    any_size = True
    mean: torch.Tensor  # in levels of 0...255, as the deviation is
    std: torch.Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        config: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
        self.net = net
        self.side = int(config["input_size"][1])
        self.whole = int(self.side / config["crop_pct"])
        mean, std = (255 * torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net(self.prepare(pixel_values))

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Turn images (N, 3, H, W) into (N, 3, side, side)."""
        height, width = (torch.arange(length, dtype=torch.float32) + 0.5 for length in images.shape[2:])
        short = torch.minimum(height[-1], width[-1]) + 0.5
        levels = images * self.std + self.mean
        levels = torch.floor(levels @ self._weights(width, short).t() + 0.5)
        levels = torch.floor(self._weights(height, short) @ levels + 0.5)
        return (levels - self.mean) / self.std

    def _weights(self, places: torch.Tensor, short: torch.Tensor) -> torch.Tensor:
        """Return the matrix (side, length) that resizes an axis, whose pixels' centres are `places`, and crops it."""
        length = places[-1] + 0.5
        resized = torch.floor(self.whole * length / short)
        low = torch.round((resized - self.side) / 2)
        scale = length / resized
        wanted = (torch.arange(self.side, dtype=torch.float32) + 0.5 + low) * scale
        weights = torch.relu(1 - (places[None] - wanted[:, None]).abs() / scale.clamp(min=1))
        return weights / weights.sum(1, keepdim=True)


def javascript_files(model: nn.Module, metadata: Mapping[str, str]) -> dict[str, bytes]:
    """Return preprocessor_config.json and the ONNX graphs, float32 and quantized, by their names in a repository.

    Args:
        model: a model of `create_model` with 3 input channels and classes.
        metadata: what the graphs say about it.

    Raises:
        ArgumentError: for other models.
        ExportError: a graph gives other outputs than PyTorch.
        MissingExtraError: the packages of the extra `export` are not installed.
    """
    if model.in_chans != 3 or not model.num_classes:
        raise ArgumentError(
            f"transformers.js takes models with 3 input channels and classes, not with {model.in_chans} channels and "
            f"{model.num_classes} classes; create the model with in_chans=3 and num_classes=."
        )
    graph = PixelValues(frozen_copy(model)).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, graph.whole + 5, graph.whole + 32), generator=generator)
    images = (images - graph.mean) / graph.std
    data = to_onnx(graph, images[:2], metadata)
    compare(graph, run_onnx(data), [images], "onnx")
    quantized = quantize_weights(data)
    compare(graph, run_onnx(quantized), [images], "quantized onnx", INT8_TOLERANCE)
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    processor = {
        "feature_extractor_type": "ImageFeatureExtractor",  # transformers.js' name for its plain image processor
        "do_convert_rgb": True,
        "do_resize": False,
        "do_thumbnail": True,  # shrinks what is larger, and enlarges nothing
        "size": {"height": _LARGEST_SIDE, "width": _LARGEST_SIDE},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": config["mean"],
        "image_std": config["std"],
    }
    return {PROCESSOR: json_bytes(processor), MODEL: data, QUANTIZED: quantized}


def configurations(config: Mapping[str, Any], labels: list[str]) -> dict[str, bytes]:
    """Return config.json with what transformers.js reads, and what Python's transformers reads in place of its files.

    Both would take the same files of a repository, config.json and preprocessor_config.json, for their own.

    Args:
        config: the configuration in timm's form; sqzoo and timm still find it in config.json.
        labels: the classes' names.
    """
    script = {
        "model_type": MODEL_TYPE,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "transformers.js_config": {"dtype": "fp32"},  # a browser would take the quantized file by default
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
    """Return an ONNX file with its convolutions' and linear layers' large weights in int8, by output channel.

    They become float32 again as the file is loaded, so the answers stay close, no images are needed for ranges, and
    any runtime will do; what is gained is a file of a third of the size.
    """
    onnx = require("onnx", "export", "ONNX")
    model = onnx.load_from_string(data)
    graph = model.graph
    nodes, kept, made = [], [], []
    wanted = {node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm")}
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name not in wanted or values.size <= _KEPT_WEIGHTS:
            kept.append(tensor)
            continue
        largest = np.abs(values).reshape(len(values), -1).max(1)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        levels = np.round(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        names = [f"{tensor.name}.int8", f"{tensor.name}.scale"]
        made += [onnx.numpy_helper.from_array(v, name) for v, name in zip((levels, scale), names, strict=True)]
        nodes.append(onnx.helper.make_node("DequantizeLinear", names, [tensor.name], axis=0))
    nodes += list(graph.node)
    for part, content in ((graph.initializer, kept + made), (graph.node, nodes)):
        del part[:]
        part.extend(content)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def json_bytes(value: Any) -> bytes:
    """Return JSON as a file holds it."""
    return (json.dumps(value, indent=2) + "\n").encode()
