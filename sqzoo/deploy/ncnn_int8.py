"""Quantise an NCNN network to int8: the wheel has no ncnn2int8, so its file format is written here.

A .bin file is the layers' weights in the order of the .param file (ncnn's src/modelbin.cpp, layer/convolution.cpp).
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sqzoo.environment import require
from sqzoo.errors import ExportError

_INT8 = 0x000D4B38  # the mark before int8 weights
_COUNTS = {"Convolution": "6", "InnerProduct": "2"}  # the parameter that counts a layer's weights
_BIAS = {"Convolution": "5", "InnerProduct": "1"}  # the one that says whether it has a bias


def ncnn_to_int8(param: Path, weights: Path, images: torch.Tensor, net: Any) -> None:
    """Rewrite a float32 network's files with convolutions in int8, per output channel, with input ranges from images.

    Args:
        param: the .param file, which pnnx wrote with `fp16=False`.
        weights: the .bin file.
        images: the network's inputs, (N, 3, H, W).
        net: the network, loaded in NCNN with its intermediate results kept.

    Raises:
        ExportError: the network has a layer with weights other than convolutions and linear layers.
    """
    lines, data = param.read_text().splitlines(), weights.read_bytes()
    rows = [line.split() for line in lines[2:]]
    sources = {row[4] for row in rows if row[0] == "Convolution"}
    largest = _largest(net, sources, images)
    written, at = b"", 0

    def take(count: int) -> np.ndarray:
        nonlocal at
        at += 4 * count
        return np.frombuffer(data[at - 4 * count : at], "<f4")

    for i, row in enumerate(rows):
        inputs, outputs = int(row[2]), int(row[3])
        values = dict(pair.split("=") for pair in row[4 + inputs + outputs :])
        if row[0] == "BatchNorm":
            written += take(4 * int(values["0"])).tobytes()
        if row[0] not in _COUNTS:
            continue
        if take(1).view("<u4")[0]:
            raise ExportError("ncnn-int8 needs weights in float32; export with another version of pnnx.")
        units = int(values["0"])
        matrix = take(int(values[_COUNTS[row[0]]])).reshape(units, -1)
        bias = take(units if values.get(_BIAS[row[0]]) == "1" else 0)
        if row[0] == "InnerProduct":  # stays float: in int8, sq1's error is 0.17 for 0.05
            written += bytes(4) + matrix.tobytes() + bias.tobytes()
            continue
        scale = 127 / np.maximum(np.abs(matrix).max(1), 1e-12)
        steps = np.rint(matrix * scale[:, None]).astype(np.int8).tobytes()
        written += struct.pack("<I", _INT8) + steps + bytes(-len(steps) % 4) + bias.tobytes()
        written += scale.astype("<f4").tobytes() + struct.pack("<f", 127 / max(largest[row[4]], 1e-12))
        lines[2 + i] += " 8=2"
    if at != len(data):
        raise ExportError("ncnn-int8 does not know a layer of this model; use the format ncnn.")
    param.write_text("\n".join(lines) + "\n")
    weights.write_bytes(written)


def _largest(net: Any, blobs: set[str], images: torch.Tensor) -> dict[str, float]:
    """Return each blob's largest absolute value in an image, the mean over the images."""
    ncnn = require("ncnn", "ncnn", "int8")
    sums = dict.fromkeys(blobs, 0.0)
    for image in images.contiguous().numpy():
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image).clone())
        for blob in blobs:
            sums[blob] += float(np.abs(np.array(extractor.extract(blob)[1])).max())
    return {blob: total / len(images) for blob, total in sums.items()}
