"""Compress a network without training: shared weights, bits per layer by sensitivity, Huffman codes.

    sqzoo compress sq1.ft_cifar10 sq1.tiny_cifar10

Weight sharing and Huffman coding are those of "Deep Compression" (Han, Mao, Dally 2016). Each layer's sensitivity is
measured on training images that the parent did not train on; the test images choose nothing.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load, save

from sqzoo.compress.bit_allocation import allocate, probe_layers
from sqzoo.compress.quantize import bits_per_weight, quantize_rows, set_rows
from sqzoo.compress.stages import Stages, compressed_layers
from sqzoo.data import Dataset
from sqzoo.errors import ArgumentError
from sqzoo.models.base import ZooModel
from sqzoo.weights.coded import CodedTensor, decode, encode

Progress = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A coded file's bytes, the model that it decodes to, and a row per layer for the record."""

    data: bytes
    model: ZooModel
    layers: dict[str, dict[str, Any]]


def compress(
    parent: ZooModel,
    calibration: Dataset,
    val: Dataset,
    size: int,
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Progress = lambda line: None,
) -> Compressed:
    """Compress a model into a coded file.

    Args:
        parent: a float32 model in evaluation mode, with its `pretrained_cfg`.
        calibration: training images whose activations steer the rounding.
        val: training images on which each layer's sensitivity is measured.
        size: maximum size of the file in bytes.
        metadata: of the file.
        progress: called with a line per layer.

    Raises:
        ArgumentError: the weights are not finite, or `size` cannot be reached.
    """
    if not all(t.isfinite().all() for t in parent.state_dict().values()):
        raise ArgumentError("The weights are not all finite (NaN or infinity): the training failed; give others.")
    model = copy.deepcopy(parent).eval().to(memory_format=torch.channels_last)
    sizes = {name: layer.weight.numel() for name, layer in compressed_layers(model).items()}
    weights = sum(sizes.values())
    others = {k: v for k, v in model.state_dict().items() if k.removesuffix(".weight") not in sizes}
    # What else the file holds: the other tensors in half precision, their names, the codebooks.
    spare = 2 * sum(t.numel() for t in others.values()) + 80 * len(others) + 100 * len(sizes) + 400
    budget = 0.995 * 8 * (size - spare)
    if budget < 0.1 * weights:
        raise ArgumentError(f"size={size} is too small for {weights:,} weights; give at least {spare + weights // 80}.")
    with torch.inference_mode():
        probes, means = probe_layers(model, calibration, val, budget / weights, progress)
        for _ in range(4):
            steps = allocate(probes, sizes, budget)
            coded, biases, rows = _quantize(Stages(copy.deepcopy(model), calibration), means, steps, progress)
            data = save(encode(coded, others | biases), {"format": "pt", **(metadata or {})})
            if len(data) <= size:
                break
            progress(f"{len(data):,} bytes are too many for {size:,}: once more")
            budget -= 10 * (len(data) - size) + 0.005 * budget  # 8 bits per byte, and some more
        else:
            raise ArgumentError(f"size={size} was not reached, only {len(data)}; give more bytes.")
        model.load_state_dict(decode(load(data), weights, "the coded file"), strict=True)
    for name, row in rows.items():
        row["probes"] = [dataclasses.asdict(p) for p in probes[name]]
    return Compressed(data, model, rows)


def _quantize(
    stages: Stages, means: Mapping[str, torch.Tensor], steps: Mapping[str, float], progress: Progress
) -> tuple[dict[str, CodedTensor], dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """Quantise all layers in turn, each on the outputs of those before it; return coded weights, biases, rows."""
    coded: dict[str, CodedTensor] = {}
    biases, rows = {}, {}
    for i, names, inputs in stages:
        for name in names:
            layer = stages.layers[name]
            ((_, moments),) = stages.moments(i, [name], inputs)
            indices, values = quantize_rows(layer.weight.flatten(1), moments, steps[name])
            set_rows(layer, values[indices], means[name], moments.mean)
            shaped = indices.view(layer.weight.shape).to(torch.uint8).numpy()
            coded[f"{name}.weight"] = (shaped, values.half().numpy())
            if layer.bias is not None:
                biases[f"{name}.bias"] = layer.bias.clone()
            rows[name] = {
                "weights": indices.numel(),
                "values": len(values),
                "bits": round(bits_per_weight(indices, values), 4),
                "zeros": round((values[indices] == 0).double().mean().item(), 4),
            }
            progress(f"{name}: {rows[name]}")
    return coded, biases, rows
