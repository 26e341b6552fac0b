"""Convert a model for phones and small boards: ExecuTorch, LiteRT (TFLite), Core ML and NCNN, in float or int8.

A file takes one image of one size. int8 has weights per channel and activations per tensor, with ranges from images.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from sqzoo.deploy.int8 import COMPARED
from sqzoo.deploy.ncnn_int8 import ncnn_to_int8
from sqzoo.deploy.onnx_graph import FromPixels, quiet_exporters
from sqzoo.deploy.parity import BF16_TOLERANCE, INT8_TOLERANCE, Runtime, compare
from sqzoo.environment import require
from sqzoo.errors import ExportError, SqzooError, why


class FromPlanes(nn.Module):
    """`FromPixels` for float32 (1, 3, H, W) from 0 to 255, as NCNN and Core ML hand images over.

    A batch norm normalises: in NCNN's files that is one layer, and products with constants are four.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.norm = net, nn.BatchNorm2d(3, eps=1e-5, affine=False)
        mean, std = (255 * torch.tensor(net.pretrained_cfg[name]) for name in ("mean", "std"))
        self.norm.load_state_dict({"running_mean": mean, "running_var": std**2 - 1e-5}, strict=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(self.norm(images)).softmax(1)


def to_phone(
    format: str, graph: nn.Module, images: torch.Tensor, file: Path, facts: Mapping[str, str], int8: bool
) -> None:
    """Write a graph to a new file for another runtime, after comparing its outputs with PyTorch's where that runs here.

    Args:
        format: "executorch", "litert", "coreml" or "ncnn".
        graph: the network, or `FromPixels` of it, in evaluation mode.
        images: the graph's inputs; with `int8` the last 64 are compared and the others set ranges.
        file: a name that is free, in a folder for this file alone: NCNN writes a .bin beside it, Core ML a folder.
        facts: metadata, for Core ML, whose files hold some.
        int8: quantise weights and activations.

    Raises:
        ExportError: the model cannot be converted, or the outputs differ.
        MissingExtraError: a package is not installed.
    """
    ranges, checks = (images[:-COMPARED], images[-COMPARED:]) if int8 else (images[:1], images)
    graph = graph.to(memory_format=torch.contiguous_format)  # LiteRT's converter misreads channels-last weights
    try:
        with quiet_exporters(), _silent():
            _WRITERS[format](graph, ranges, file, facts, int8)
    except (SqzooError, OSError):
        raise
    except Exception as e:  # whatever the converters raise
        raise ExportError(f"{format} cannot convert this model ({why(e)}); use another format.") from e
    if format != "coreml":  # which runs on Apple's systems alone
        tolerance = INT8_TOLERANCE if int8 else BF16_TOLERANCE if format == "ncnn" else None  # NCNN: half precision
        compare(graph, run_phone(file), [checks], f"{format}{'-int8' * int8}", tolerance)


def run_phone(file: Path) -> Runtime:
    """Return a function that runs a file of ExecuTorch, LiteRT or NCNN, image by image, on one thread."""
    run_one = {".pte": _run_executorch, ".tflite": _run_litert, ".param": _run_ncnn}[file.suffix](file)
    return lambda x: torch.stack([run_one(image) for image in x.contiguous().split(1)])


def _exported(graph: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(graph, (example,))


def _quantised(graph: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return a graph with quantise and dequantise nodes (PT2E), as ExecuTorch's XNNPACK and Core ML read them."""
    pt2e = require("torchao.quantization.pt2e.quantize_pt2e", "executorch", "int8")
    xnnpack = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", "executorch", "int8")
    quantizer = xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    prepared = pt2e.prepare_pt2e(_exported(graph, images[:1]).module(), quantizer)
    for image in images.split(1):
        prepared(image)
    result: nn.Module = pt2e.convert_pt2e(prepared)
    return result


def _write_executorch(graph: nn.Module, images: torch.Tensor, file: Path, facts: Mapping[str, str], int8: bool) -> None:
    exir = require("executorch.exir", "executorch", "The format executorch")
    xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch", "executorch")
    program = _exported(_quantised(graph, images) if int8 else graph, images[:1])
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    file.write_bytes(lowered.to_executorch().buffer)


def _run_executorch(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    runtime = require("executorch.runtime", "executorch", "The format executorch")
    with _silent():  # it reports which files about the CPU it misses
        method = runtime.Runtime.get().load_program(file).load_method("forward")
    return lambda image: method.execute([image])[0][0].clone()


def _write_litert(graph: nn.Module, images: torch.Tensor, file: Path, facts: Mapping[str, str], int8: bool) -> None:
    converter = require("litert_torch", "litert", "The format litert")
    converter.convert(graph, (images[:1],)).export(str(file))
    if int8:
        quantizer, recipe = (require(f"ai_edge_quantizer.{name}", "litert", "int8") for name in ("quantizer", "recipe"))
        work = quantizer.Quantizer(str(file), recipe.static_wi8_ai8())
        # The ends stay uint8 or float32. So do the pool and the linear layers: in int8, sq1's error is 0.17 for 0.07.
        for kind in ("INPUT", "OUTPUT", "MEAN", "FULLY_CONNECTED"):
            work.update_quantization_recipe(".*", kind, algorithm_key="no_quantize")
        ranges = work.calibrate({"serving_default": [{"args_0": image.numpy()} for image in images.split(1)]}, None, 1)
        file.unlink()
        work.quantize(ranges).export_model(str(file))


def _run_litert(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    runtime = require("ai_edge_litert.interpreter", "litert", "The format litert")
    interpreter = runtime.Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(image: torch.Tensor) -> torch.Tensor:
        interpreter.set_tensor(source, image.numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(result)[0])

    return run


def _planes(graph: nn.Module, images: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """Return a graph and its images with the channels first, as NCNN and Core ML have them."""
    if not isinstance(graph, FromPixels):
        return graph, images
    return FromPlanes(graph.net).eval(), images.permute(0, 3, 1, 2).float().contiguous()


def _write_coreml(graph: nn.Module, images: torch.Tensor, file: Path, facts: Mapping[str, str], int8: bool) -> None:
    coreml = require("coremltools", "coreml", "The format coreml")
    pixels = isinstance(graph, FromPixels)
    graph, images = _planes(graph, images)
    graph = _quantised(graph, images) if int8 else graph
    kinds: dict[str, Any] = {}
    if pixels:
        kinds["inputs"] = [coreml.ImageType("images", shape=tuple(images[:1].shape))]
    program = _exported(graph, images[:1]).run_decompositions({})
    model = coreml.convert(program, minimum_deployment_target=coreml.target.iOS17, **kinds)
    model.user_defined_metadata.update(facts)
    model.save(str(file))


def _write_ncnn(graph: nn.Module, images: torch.Tensor, file: Path, facts: Mapping[str, str], int8: bool) -> None:
    pnnx = require("pnnx", "ncnn", "The format ncnn")
    graph, images = _planes(graph, images)
    weights = file.with_suffix(".bin")
    with tempfile.TemporaryDirectory() as folder:
        traced = f"{folder}/m.pt"
        pnnx.export(
            graph, traced, (images[:1],), check_trace=False, fp16=not int8, ncnnparam=str(file), ncnnbin=str(weights)
        )
    if not (file.is_file() and weights.is_file()):
        raise ExportError("pnnx did not convert this model; use another format.")
    if int8:
        ncnn_to_int8(file, weights, images, _load_ncnn(file))


def _load_ncnn(file: Path) -> Any:
    ncnn = require("ncnn", "ncnn", "The format ncnn")
    net = ncnn.Net()
    net.opt.num_threads, net.opt.lightmode = 1, False
    net.load_param(str(file))
    net.load_model(str(file.with_suffix(".bin")))
    return net


def _run_ncnn(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    ncnn, net = require("ncnn", "ncnn", "The format ncnn"), _load_ncnn(file)

    def run(image: torch.Tensor) -> torch.Tensor:
        planes = image.permute(0, 3, 1, 2).float() if image.dtype == torch.uint8 else image
        array = planes[0].contiguous().numpy()  # named, because Mat does not keep it alive until clone
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(array).clone())
        return torch.from_numpy(np.array(extractor.extract("out0")[1]))

    return run


_WRITERS = {
    "executorch": _write_executorch,
    "litert": _write_litert,
    "coreml": _write_coreml,
    "ncnn": _write_ncnn,
}


@contextmanager
def _silent() -> Iterator[None]:
    """Silence what converters print, compiled ones and started processes too."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(n) for n in (1, 2)]
    try:
        with open(os.devnull, "w") as nowhere:
            for n in (1, 2):
                os.dup2(nowhere.fileno(), n)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for n, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, n)
            os.close(descriptor)
