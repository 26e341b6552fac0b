"""A model as a graph in memory: ONNX bytes, in float32 or int8, with the preparation of the images inside if wanted."""

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from sqzoo.data import cifar10
from sqzoo.deploy.parity import INT8_TOLERANCE, Run, compare
from sqzoo.environment import require
from sqzoo.errors import ArgumentError, why
from sqzoo.images.reader import has_cifar10_classes
from sqzoo.models.upsample import SOURCE_SIZE, Upsample

OPSET = 18
CALIBRATION, _FEWEST, HELD_BACK = 320, 128, 64  # images


def frozen_copy(model: nn.Module) -> Any:
    """Return a copy of a model in float32 on the CPU, in evaluation mode, without gradients.

    Raises:
        ArgumentError: the model cannot be copied, for layers of it are pruned or parametrised.
    """
    try:
        return copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    except (RuntimeError, TypeError) as e:
        raise ArgumentError(
            f"The model cannot be copied ({why(e)}); where its layers are pruned or parametrised, undo that first "
            "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations)."
        ) from e


class FromPixels(nn.Module):
    """A network with its preparation before it and softmax behind: uint8 (N, H, W, 3) to probabilities (N, classes)."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        config: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
        self.net = net
        mean, std = (torch.tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (config["mean"], config["std"]))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(self.prepare(images)).softmax(1)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Turn uint8 (N, H, W, 3) into what the network takes, float32 (N, 3, side, side)."""
        return images.permute(0, 3, 1, 2).float() * self.scale + self.shift


class ResizeMatrices(nn.Module):
    """An `Upsample` for one image size: each axis is resized by a product with a constant matrix.

    Resizing is linear, along each axis apart. Every runtime has a fast matrix product, while their resizing operators
    differ, some have none with antialiasing, and OpenVINO's makes sq1.ft_cifar10 12 % slower in bf16.
    """

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, upsample: Upsample, size: tuple[int, int]) -> None:
        super().__init__()
        # The identity along one axis, constant along the other: what comes out is the matrix of the first.
        height, width = (torch.eye(n, dtype=torch.float32) for n in size)
        rows = upsample(height[None, :, :, None].expand(1, -1, -1, size[1]))[0, :, :, 0].t()
        columns = upsample(width[None, :, None, :].expand(1, -1, size[0], -1))[0, :, 0].t()
        self.register_buffer("rows", rows.contiguous(), persistent=False)
        self.register_buffer("columns", columns.t().contiguous(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows @ (x @ self.columns)


def pixels_side(net: nn.Module) -> int:
    """Return the side of the pictures that `FromPixels` takes, after the resize and centre crop."""
    config: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
    return int(config["input_size"][1])


def calibration_images(
    net: nn.Module, given: np.ndarray | None = None, root: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """Return training images that set int8's ranges, uint8 (N, side, side, 3): `given` once checked, or CIFAR-10's.

    CIFAR-10's are `CALIBRATION` images from the training split in `root` (as `sqzoo.data.cifar10` takes it), evenly
    spaced, for models that know its classes.
    Raises `ArgumentError`, or `DataError` where CIFAR-10 is not to be had.
    """
    side = pixels_side(net)
    if net.in_chans != 3:
        raise ArgumentError(
            f"int8 is for models of 3 input channels, not {net.in_chans}; use another format or backend."
        )
    if given is None:
        if not has_cifar10_classes(net) or side != SOURCE_SIZE:
            raise ArgumentError(
                f"int8 for a model with {net.num_classes} classes that are not CIFAR-10's needs calibration= images of "
                f"its own: training images, uint8 (N, {side}, {side}, 3)."
            )
        images = cifar10("train", root).images
        return images[:: len(images) // CALIBRATION][:CALIBRATION]
    images = np.asarray(given)
    if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3) or len(images) < _FEWEST:
        raise ArgumentError(
            f"calibration must be {_FEWEST} or more training images, uint8 (N, {side}, {side}, 3), not "
            f"{images.dtype} {list(images.shape)}."
        )
    return images


def names(graph: nn.Module) -> tuple[str, str]:
    """Return what a graph's input and output are called in a file: as its own `names` say, where it has them."""
    own: tuple[str, str] | None = getattr(graph, "names", None)
    return own or ("images", "probabilities" if isinstance(graph, FromPixels) else "logits")


def traced(graph: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """Return torch.export's program of a graph in evaluation mode, with a free batch size; `example` has 2 images.

    Height and width are free, too, where the graph says `any_size`. The notes on each operation that name files of
    this machine are left out.
    """
    free = {0: torch.export.Dim("N", min=1)}
    if getattr(graph, "any_size", False):
        free |= {2: torch.export.Dim("H", min=1), 3: torch.export.Dim("W", min=1)}
    with _quietly():
        program = torch.export.export(graph, (example,), dynamic_shapes=(free,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def to_onnx(graph: nn.Module, example: torch.Tensor, metadata: Mapping[str, str]) -> bytes:
    """Return a graph in evaluation mode as an ONNX file's bytes; `example` is an input of 2 images."""
    onnx = require("onnx", "export", "ONNX")
    require("onnxscript", "export", "ONNX")
    source, result = names(graph)
    graph = _with_matrices(graph, example)
    with _quietly():
        program = torch.onnx.export(
            traced(graph, example),
            input_names=[source],
            output_names=[result],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    found = program.model_proto
    parts = (found.graph.node, found.graph.input, found.graph.output, found.graph.value_info, found.graph.initializer)
    for part in (found.graph, *(each for some in parts for each in some)):
        del part.metadata_props[:]
        part.doc_string = ""
    del found.functions[:]
    return _with_metadata(found, metadata, onnx)


def _with_matrices(graph: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a graph whose enlargement, of the images that come from an example, is matrix products."""
    graph = copy.deepcopy(graph)
    sizes: dict[str, tuple[int, int]] = {}
    for name, module in graph.named_modules():
        if isinstance(module, Upsample):
            module.register_forward_pre_hook(lambda _, images, name=name: sizes.update({name: images[0].shape[2:]}))
    with torch.no_grad():
        graph(example)
    for name, size in sizes.items():
        graph.set_submodule(name, ResizeMatrices(graph.get_submodule(name), size))  # type: ignore[arg-type]
    return graph


def run_onnx(data: bytes) -> Run:
    """Return a function that runs an ONNX graph by onnxruntime, on as many threads as PyTorch has."""
    runtime = require("onnxruntime", "export", "ONNX")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (source,) = (each.name for each in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {source: x.contiguous().numpy()})[0])


def to_int8(graph: nn.Module, onnx_bytes: bytes, images: torch.Tensor, metadata: Mapping[str, str]) -> bytes:
    """Return a graph's ONNX quantised to int8: QDQ, static, weights by channel, ranges from `images`.

    The last `HELD_BACK` images set no ranges: on them the outputs are compared with `graph`'s. Raises `ExportError`
    where they differ by more than `INT8_TOLERANCE`.
    """
    onnx = require("onnx", "export", "int8")
    quantization = require("onnxruntime.quantization", "export", "int8")
    shape_inference = require("onnxruntime.quantization.shape_inference", "export", "int8")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.batches = iter(images[:-HELD_BACK].split(8))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder, _quietly():
        source, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("source", "prepared", "int8"))
        source.write_bytes(onnx_bytes)
        shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            quantised,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MaxPool", "AveragePool", "Concat", "Relu", "Gemm"],
            per_channel=True,
            # All 8 bits: 7 lose accuracy. In exchange a CPU with AVX2 but without VNNI may saturate a sum, which
            # onnxruntime warns of in its documentation; there `optimize` finds it as it checks the accuracy.
            reduce_range=False,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        data = _with_metadata(onnx.load(quantised), metadata, onnx)
    compare(graph, run_onnx(data), [images[-HELD_BACK:]], "int8", INT8_TOLERANCE)
    return data


def _with_metadata(model: Any, metadata: Mapping[str, str], onnx: Any) -> bytes:
    model.producer_name, model.producer_version = "sqzoo", metadata.get("sqzoo", "")
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporters' progress and their advice to programmers from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
