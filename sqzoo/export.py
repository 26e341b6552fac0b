"""Export models to files for other runtimes, each compared with PyTorch."""

import copy
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from safetensors.torch import load, save

from sqzoo.compress.palette import palettise, to_4bit
from sqzoo.deploy.backends import ExportModel, default_modes
from sqzoo.deploy.int8 import COMPARED, calibration_images, to_int8
from sqzoo.deploy.onnx_graph import run_onnx, to_onnx, traced
from sqzoo.deploy.parity import INT8_TOLERANCE, Runtime, compare
from sqzoo.deploy.phones import to_phone
from sqzoo.environment import require
from sqzoo.errors import ArgumentError, ExportError, WeightsError, did_you_mean
from sqzoo.files import write_bytes
from sqzoo.hub import save_pretrained
from sqzoo.weights.header import read_tensors
from sqzoo.weights.metadata import metadata
from sqzoo.weights.untrusted import LARGEST, read_bytes

FORMATS = {
    "onnx": ".onnx",
    "onnx-int8": ".onnx",
    "onnx-4bit": ".onnx",
    "openvino": ".xml",
    "torch-export": ".pt2",
    "safetensors-int8": ".safetensors",
    "transformers-js": "",  # a folder
}
_PHONES = {"executorch": ".pte", "litert": ".tflite", "coreml": ".mlpackage", "ncnn": ".param"}
FORMATS |= {name + int8: suffix for name, suffix in _PHONES.items() for int8 in ("", "-int8")}
# These take training images.
CALIBRATED = [n for n in FORMATS if n.endswith(("-int8", "-4bit")) and n != "safetensors-int8"]
_SCALE = ".scale"


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    format: str = "onnx",
    *,
    preprocessing: bool = False,
    calibration: np.ndarray | None = None,
) -> Path:
    """Export a model to a file for another runtime, after comparing its outputs with PyTorch's.

    The metadata has labels, tag, input size, mean, std, origin and the SHA-256 of the weights. The batch size is free,
    but for executorch, litert, coreml and ncnn, which take one image. Of these only Core ML's file holds the metadata.

    Args:
        model: a model of `create_model`.
        path: file to write, atomically.
        format: "onnx"; "onnx-int8" (static QDQ, weights by channel); "onnx-4bit" (the smallest, with 4 to 8 bits per
            weight and float arithmetic); "openvino" (path.xml and path.bin); "torch-export" (for `torch.export.load`);
            "safetensors-int8" (weights alone, for `read_int8`); "transformers-js" (a folder: what
            `sqzoo.hub.save_pretrained` writes, and what transformers.js reads, for images of any size); or
            "executorch" (XNNPACK), "litert" (TFLite), "coreml" (iOS 17; not compared, because it runs on Apple's
            systems alone) and "ncnn" (path.param and path.bin, half precision), each also with "-int8".
        preprocessing: False: `images` (N, 3, size, size) float32, normalised, to `logits` (N, classes). True: `images`
            (N, size, size, 3) uint8 to `probabilities` (N, classes); the size is 32 for CIFAR-10's classes, with the
            upsampling in the graph, else the model's input size. NCNN and Core ML take planes instead,
            (1, 3, size, size) from 0 to 255: what `ncnn::Mat::from_pixels` gives, and a Core ML image.
        calibration: 128 or more training images for int8, uint8 (N, size, size, 3); by default 320 of CIFAR-10's.

    Returns:
        The file.

    Raises:
        ArgumentError: an argument is not as above.
        DataError: CIFAR-10 cannot be had for calibration.
        ExportError: the file cannot be written, or its outputs differ by more than `sqzoo.deploy.parity` allows.
        MissingExtraError: a package is not installed.
    """
    if format == "transformers-js":
        if preprocessing:
            raise ArgumentError("transformers-js has its own preparation; leave preprocessing out.")
        save_pretrained(model, path, transformers_js=True)
        return Path(path)
    target = _target(path, format)
    if preprocessing and format == "safetensors-int8":
        raise ArgumentError("preprocessing=True needs a graph, not safetensors-int8; leave it out.")
    with default_modes():
        return _export(ExportModel(model, preprocessing), target, format, calibration)


def _export(model: ExportModel, target: Path, format: str, calibration: np.ndarray | None) -> Path:
    net, graph = model.net, model.module
    facts = metadata(net) | {"input": "uint8 NHWC" if model.preprocessing else "float32 NCHW, normalised"}
    pixels = calibration_images(net, calibration) if format in CALIBRATED else None
    images = model.samples(model.shape(3)) if pixels is None else model.prepared(pixels)
    if format == "safetensors-int8":
        return _write(target, _int8_weights(net, images, facts))
    if format == "torch-export":
        return _write(target, _torch_export(graph, images, facts))
    if (phone := format.removesuffix("-int8")) in _PHONES:
        return _write_files(target, lambda file: to_phone(phone, graph, images, file, facts, phone != format))
    if format == "openvino":
        require("openvino", "openvino", "The format openvino")
    require("onnxruntime", "export", f"The format {format}")
    if pixels is not None and format == "onnx-4bit":
        return _write(target, _four_bits(model, pixels, facts))
    data = to_onnx(graph, images[:2], facts)
    if format == "openvino":
        return _write_openvino(target, data, graph, images, facts)
    if format == "onnx-int8":
        return _write(target, to_int8(graph, data, images, facts))
    compare(graph, run_onnx(data), [images[:1], images], format)
    return _write(target, data)


def read_int8(file: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Dequantise a safetensors-int8 file to float32, for `model.load_state_dict`.

    Each output channel of a weight is its int8 values times the channel's scale, stored as `NAME.scale`.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    try:
        data = read_bytes(Path(file), LARGEST)
    except OSError as e:
        raise WeightsError(f"Cannot read {os.fspath(file)} ({e.strerror}); name a safetensors-int8 file.") from e
    tensors = read_tensors(data, os.fspath(file))
    try:
        return _from_int8(tensors)
    except (KeyError, RuntimeError) as e:
        raise WeightsError(f"{os.fspath(file)} is no safetensors-int8 file: its int8 tensors lack scales.") from e


def _target(path: str | os.PathLike[str], format: str) -> Path:
    """Return the file to write, after checking that its folder can be written to."""
    if format not in FORMATS:
        raise ArgumentError(
            f"Unknown format {format!r}.{did_you_mean(str(format), FORMATS)} There are: {', '.join(FORMATS)}."
        )
    target, suffix = Path(path), FORMATS[format]
    if target.suffix != suffix:
        raise ArgumentError(f"{format} is written to a file that ends in {suffix}, not to {str(target)!r}; rename it.")
    try:
        if target.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as e:
        raise ExportError(
            f"Cannot write {target} ({e.strerror}); name a file in a folder that you may write to."
        ) from e
    return target


def _write(target: Path, data: bytes) -> Path:
    try:
        write_bytes(target, data)
    except OSError as e:
        raise ExportError(f"Cannot write {target} ({e.strerror}); free some space, or name another folder.") from e
    return target


def _torch_export(graph: nn.Module, images: torch.Tensor, facts: dict[str, str]) -> bytes:
    stream, program = io.BytesIO(), traced(graph, images[:2])
    program.example_inputs = None  # or they would be in the file
    for weight in graph.parameters():
        weight.data = weight.data.contiguous()  # torch warns of those in channels_last that it can save no whole tensor
    torch.export.save(program, stream, extra_files={"sqzoo.json": json.dumps(facts)})
    stream.seek(0)
    compare(graph, torch.export.load(stream).module(), [images[:1], images], "torch-export")
    return stream.getvalue()


def _four_bits(model: ExportModel, pixels: np.ndarray, facts: dict[str, str]) -> bytes:
    small, palettes = palettise(model.net, pixels[:-COMPARED])
    graph = ExportModel(small, model.preprocessing).module
    checks = model.prepared(pixels[-COMPARED:])
    data = to_4bit(to_onnx(graph, checks[:2], facts), palettes, facts)
    # Probabilities: of logits, a part that is common to all classes does no harm.
    end = nn.Identity() if model.preprocessing else nn.Softmax(1)
    run = run_onnx(data)
    compare(nn.Sequential(model.module, end), lambda x: end(run(x)), [checks], "onnx-4bit", INT8_TOLERANCE)
    return data


def _write_openvino(target: Path, data: bytes, graph: nn.Module, images: torch.Tensor, facts: dict[str, str]) -> Path:
    import openvino

    network = openvino.Core().read_model(data)
    for key, value in facts.items():
        network.set_rt_info(value, ["sqzoo", key])

    def write(file: Path) -> None:
        openvino.save_model(network, file, compress_to_fp16=False)
        compare(graph, run_openvino(file), [images[:1], images], "openvino")

    return _write_files(target, write)


def _write_files(target: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` write a file, with a .bin beside it or as a folder, and move it to its place."""
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as folder:
            written = Path(folder) / target.name
            write(written)
            target.unlink(missing_ok=True)  # it comes last: where it is, its .bin is complete
            if written.with_suffix(".bin").exists():
                written.with_suffix(".bin").replace(target.with_suffix(".bin"))
            written.replace(target)
    except OSError as e:
        raise ExportError(f"Cannot write {target} ({e.strerror}); free some space, or name another folder.") from e
    return target


def run_openvino(file: Path) -> Runtime:
    """Return a function that runs an OpenVINO .xml file on the CPU in float32."""
    openvino = require("openvino", "openvino", "The format openvino")
    # OpenVINO would choose bf16 on CPUs that have it.
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: torch.from_numpy(np.array(compiled([x.contiguous().numpy()])[0]))


def _int8_weights(net: nn.Module, images: torch.Tensor, facts: dict[str, str]) -> bytes:
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in net.state_dict().items():
        if tensor.dim() < 2:
            tensors[name] = tensor
            continue
        largest = tensor.abs().amax(tuple(range(1, tensor.dim())), keepdim=True)
        scale = torch.where(largest > 0, largest / 127, 1.0)
        tensors |= {name: (tensor / scale).round().to(torch.int8), name + _SCALE: scale}
    data = save({k: v.contiguous() for k, v in tensors.items()}, facts | {"format": "pt"})
    again = copy.deepcopy(net)
    again.load_state_dict(_from_int8(load(data)))
    compare(net, again, [images], "safetensors-int8", INT8_TOLERANCE)
    return data


def _from_int8(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    values = {k: v for k, v in tensors.items() if not k.endswith(_SCALE)}
    return {k: v.float() * tensors[k + _SCALE] if v.dtype == torch.int8 else v for k, v in values.items()}
