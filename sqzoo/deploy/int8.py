"""Quantise an ONNX graph to int8, statically, with ranges from calibration images."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from sqzoo.data import cifar10
from sqzoo.deploy.onnx_graph import image_size, onnx_bytes, quiet_exporters, run_onnx
from sqzoo.deploy.parity import INT8_TOLERANCE, compare
from sqzoo.environment import require
from sqzoo.errors import ArgumentError, ExportError, shown
from sqzoo.images.reader import ImageReader, has_cifar10_classes, read_ahead
from sqzoo.images.walk import image_files
from sqzoo.models.upsample import SOURCE_SIZE

CALIBRATION, _FEWEST, COMPARED = 320, 128, 64  # images: by default, at least, of these to compare the outputs
FEWEST_FILES = _FEWEST // 2  # of a folder: each image and its mirror image


def calibration_images(
    net: nn.Module, given: np.ndarray | None = None, root: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """Return training images that set the ranges of int8, uint8 (N, size, size, 3).

    Args:
        net: the model.
        given: images, which are checked; None takes 320: of CIFAR-10's training images, evenly spaced, for a model of
            its classes, else of the images in `root`, drawn at random, and their mirror images where they are few.
        root: CIFAR-10's folder, as for `sqzoo.data.cifar10`; for other classes the folder that the model learned from.

    Raises:
        ArgumentError: the images or the model do not fit.
        DataError: CIFAR-10 cannot be had.
    """
    size = image_size(net)
    if net.in_chans != 3:
        raise ArgumentError(
            f"int8 is for models of 3 input channels, not {net.in_chans}; use another format or backend."
        )
    if given is None and has_cifar10_classes(net) and size == SOURCE_SIZE:
        images = cifar10("train", root).images
        return images[:: len(images) // CALIBRATION][:CALIBRATION]
    if given is None and root is None:
        raise ArgumentError(
            f"int8 for a model with {net.num_classes} classes that are not CIFAR-10's needs its own training images: "
            f"--data FOLDER, or in Python calibration=, uint8 (N, {size}, {size}, 3)."
        )
    images = _of_folder(net, Path(root)) if given is None and root else np.asarray(given)
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or len(images) < _FEWEST:
        raise ArgumentError(
            f"calibration must be {_FEWEST} or more training images, uint8 (N, {size}, {size}, 3), not "
            f"{images.dtype} {list(images.shape)}."
        )
    return images


def _of_folder(net: nn.Module, root: Path) -> np.ndarray:
    """Read images for calibration from a folder, or from its part `train`; unreadable ones are left out."""
    if not root.is_dir():
        raise ArgumentError(f"No folder {os.fspath(root)!r}; give one of images to set int8's ranges by.")
    files = list(image_files(root / "train" if (root / "train").is_dir() else root))
    order = np.random.default_rng(0).permutation(len(files))[:CALIBRATION]
    read = [image for _, image in read_ahead([files[i] for i in order], ImageReader.of(net), ahead=64)]
    images = [image for image in read if isinstance(image, np.ndarray)]
    if len(images) < _FEWEST:
        images += [image[:, ::-1] for image in images]
    if len(images) < _FEWEST:
        raise ArgumentError(
            f"int8 and 4bit need {FEWEST_FILES} or more images to set their ranges, and {len(images) // 2} of "
            f"{shown(root)} can be read; add some, or name another folder."
        )
    return np.stack(images)


def to_int8(graph: nn.Module, onnx_file: bytes, images: torch.Tensor, metadata: Mapping[str, str]) -> bytes:
    """Quantise a graph's ONNX file to int8 (QDQ, static, weights per channel), with ranges from its input `images`.

    Weights have 8 bits, or 7 where 8 do not give PyTorch's outputs here: a CPU with AVX2 but without VNNI saturates
    sums of 8-bit products, as onnxruntime's documentation warns. The last 64 images set no ranges: on them the outputs
    are compared with the graph's.

    Raises:
        ExportError: with 7 bits the outputs differ, too.
    """
    checks = [images[-COMPARED:]]
    for reduce_range in (False, True):
        data = _quantise(onnx_file, images[:-COMPARED], metadata, reduce_range)
        try:
            compare(graph, run_onnx(data), checks, "int8", INT8_TOLERANCE)
        except ExportError:
            if reduce_range:
                raise
        else:
            break
    return data


def _quantise(onnx_file: bytes, images: torch.Tensor, metadata: Mapping[str, str], reduce_range: bool) -> bytes:
    """Quantise an ONNX file with ranges from `images`; weights have 7 bits with `reduce_range`, else 8."""
    onnx = require("onnx", "export", "int8")
    quantization = require("onnxruntime.quantization", "export", "int8")
    shape_inference = require("onnxruntime.quantization.shape_inference", "export", "int8")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.batches = iter(images.split(8))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder, quiet_exporters():
        source, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("source", "prepared", "int8"))
        source.write_bytes(onnx_file)
        shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            quantised,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MaxPool", "AveragePool", "Concat", "Relu", "Gemm"],
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx_bytes(onnx.load(quantised), metadata)
