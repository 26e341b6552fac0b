"""A small ONNX file that any runtime reads: 16 shared values per large layer, 8 bits in the others, float arithmetic.

A large layer's weights are indices of 4 bits into 16 values ("Deep Compression", Han, Mao, Dally 2016), times a scale
per output channel. Cast, Gather and Mul make them float32: of constants, so ONNX Runtime computes them as it loads.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from sqzoo.compress.quantize import quantize_to, set_rows
from sqzoo.compress.stages import Stages, compressed_layers
from sqzoo.data import Dataset
from sqzoo.deploy.onnx_graph import onnx_bytes
from sqzoo.environment import require
from sqzoo.models.base import ZooModel

_LARGE = 16384  # weights of a layer; with smaller ones in 4 bits, too, fire_next's outputs differ 1.4 times as much
_LEVELS = 16
_SMALLEST = 256  # elements of a tensor that is worth three nodes
_OPSET, _IR = 21, 10  # the first with 4-bit integers

Palette = tuple[np.ndarray, np.ndarray, np.ndarray]  # indices in the weight's shape, values, scale per unit


def palettise(parent: ZooModel, images: np.ndarray) -> tuple[ZooModel, dict[str, Palette]]:
    """Return a copy of a model whose large layers have 16 values per layer times a scale per unit, and these.

    Args:
        parent: a float32 model in evaluation mode.
        images: training images, uint8 (N, size, size, 3), whose activations steer the rounding.

    Raises:
        ArgumentError: the model has a grouped convolution.
    """
    data = Dataset(images, np.zeros(len(images), np.int64))
    model, palettes, means = copy.deepcopy(parent), {}, {}
    large = {name for name, layer in compressed_layers(model).items() if layer.weight.numel() >= _LARGE}
    before = Stages(copy.deepcopy(model), data)
    for i, names, inputs in before:
        for name, moments in before.moments(i, [n for n in names if n in large], inputs):
            layer = before.layers[name]
            means[name] = layer.weight.flatten(1) @ moments.mean + (0.0 if layer.bias is None else layer.bias)
    stages = Stages(model, data)
    for i, names, inputs in stages:
        for name in (n for n in names if n in large):
            layer = stages.layers[name]
            ((_, moments),) = stages.moments(i, [name], inputs)
            rows = layer.weight.flatten(1)
            scale = rows.square().mean(1, keepdim=True).sqrt().clamp(min=1e-8)
            indices, values = quantize_to(rows / scale, moments, _LEVELS)
            set_rows(layer, values[indices] * scale, means[name], moments.mean)
            shape = layer.weight.shape
            palettes[f"{name}.weight"] = (
                indices.view(shape).numpy().astype(np.uint8),
                values.numpy(),
                scale.view(-1, *[1] * (len(shape) - 1)).numpy(),
            )
    return model, palettes


def to_4bit(file: bytes, palettes: Mapping[str, Palette], metadata: Mapping[str, str]) -> bytes:
    """Return an ONNX file with its large constants as palettes or, by output channel, in 8 bits."""
    onnx = require("onnx", "export", "The format onnx-4bit")
    make, tensors, kinds = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    model = onnx.load_from_string(file)
    graph = model.graph
    nodes: list[Any] = []
    for tensor in [t for t in graph.initializer if t.data_type == kinds.FLOAT and np.prod(t.dims) >= _SMALLEST]:
        name, array = tensor.name, tensors.to_array(tensor)
        if array.ndim < 2:
            continue
        graph.initializer.remove(tensor)
        parts: dict[str, Any] = {}
        own = next((p for key, p in palettes.items() if name == key or name.endswith(f".{key}")), None)
        distinct, places = np.unique(array, return_inverse=True)
        if own is not None or len(distinct) <= _LEVELS:
            indices, values, scale = own or (places.reshape(array.shape), distinct, None)
            flat = indices.astype(np.uint8).ravel()
            flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
            packed = (flat[::2] | flat[1::2] << 4).tobytes()
            graph.initializer.append(make.make_tensor(f"{name}.indices", kinds.UINT4, array.shape, packed, raw=True))
            parts["values"] = values.astype(np.float32)
            nodes.append(make.make_node("Cast", [f"{name}.indices"], [f"{name}.int32"], to=kinds.INT32))
            gathered = name if scale is None else f"{name}.gathered"
            nodes.append(make.make_node("Gather", [f"{name}.values", f"{name}.int32"], [gathered]))
            if scale is not None:
                parts["scale"] = scale
                nodes.append(make.make_node("Mul", [gathered, f"{name}.scale"], [name]))
        else:
            largest = np.abs(array).max(tuple(range(1, array.ndim)), keepdims=True)
            parts["scale"] = (np.maximum(largest, 1e-12) / 127).astype(np.float32)
            parts["int8"] = np.rint(array / parts["scale"]).astype(np.int8)
            nodes.append(make.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], to=kinds.FLOAT))
            nodes.append(make.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name]))
        graph.initializer.extend(tensors.from_array(part, f"{name}.{key}") for key, part in parts.items())
    for node in reversed(nodes):
        graph.node.insert(0, node)
    del graph.value_info[:]
    model.opset_import[0].version, model.ir_version = _OPSET, _IR
    return onnx_bytes(model, metadata)
