"""Export a model as an ONNX graph in memory, with the preprocessing of images inside if asked."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn

from sqzoo.deploy.parity import Runtime
from sqzoo.environment import require
from sqzoo.errors import ArgumentError, why
from sqzoo.models.upsample import Upsample

OPSET = 18


def frozen_copy(model: nn.Module) -> Any:
    """Return a copy of a model in float32 on the CPU, in evaluation mode, without gradients.

    Raises:
        ArgumentError: the model cannot be copied, because layers are pruned or parametrised.
    """
    try:
        return copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    except (RuntimeError, TypeError) as e:
        raise ArgumentError(
            f"The model cannot be copied ({why(e)}); where its layers are pruned or parametrised, undo that first "
            "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations)."
        ) from e


class FromPixels(nn.Module):
    """A network with normalisation before it and softmax after: uint8 (N, H, W, 3) to probabilities (N, classes)."""

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
        """Turn uint8 (N, H, W, 3) into the network's input, float32 (N, 3, H, W)."""
        return images.permute(0, 3, 1, 2).float() * self.scale + self.shift


class ResizeMatrices(nn.Module):
    """An `Upsample` for one image size, as a product with a constant matrix along each axis.

    Bilinear resizing is linear. Every runtime has a fast matrix product, while resizing operators differ, some runtimes
    have none with antialiasing, and OpenVINO's makes sq1.ft_cifar10 12 % slower in bf16.
    """

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, upsample: Upsample, size: tuple[int, int]) -> None:
        super().__init__()
        # The identity along one axis, constant along the other, is resized to the matrix of the first.
        height, width = (torch.eye(n, dtype=torch.float32) for n in size)
        rows = upsample(height[None, :, :, None].expand(1, -1, -1, size[1]))[0, :, :, 0].t()
        columns = upsample(width[None, :, None, :].expand(1, -1, size[0], -1))[0, :, 0].t()
        self.register_buffer("rows", rows.contiguous(), persistent=False)
        self.register_buffer("columns", columns.t().contiguous(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows @ (x @ self.columns)


def image_size(net: nn.Module) -> int:
    """Return the size in pixels of the square images that `FromPixels` takes, after resize and centre crop."""
    config: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
    return int(config["input_size"][1])


def names(graph: nn.Module) -> tuple[str, str]:
    """Return the names of a graph's input and output: its attribute `names`, if it has one."""
    own: tuple[str, str] | None = getattr(graph, "names", None)
    return own or ("images", "probabilities" if isinstance(graph, FromPixels) else "logits")


def traced(graph: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """Trace a graph with torch.export, from an example of 2 images; the batch size is free.

    Height and width are free, too, where the graph says `any_size`. Stack traces, which name files of this machine, are
    left out.
    """
    free = {0: torch.export.Dim("N", min=1)}
    if getattr(graph, "any_size", False):
        free |= {2: torch.export.Dim("H", min=1), 3: torch.export.Dim("W", min=1)}
    with quiet_exporters():
        program = torch.export.export(graph, (example,), dynamic_shapes=(free,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def to_onnx(graph: nn.Module, example: torch.Tensor, metadata: Mapping[str, str]) -> bytes:
    """Export a graph in evaluation mode as an ONNX file's bytes, from an example of 2 images."""
    require("onnx", "export", "ONNX")
    require("onnxscript", "export", "ONNX")
    source, result = names(graph)
    graph = _with_matrices(graph, example)
    with quiet_exporters():
        program: Any = torch.onnx.export(
            traced(graph, example),
            input_names=[source],
            output_names=[result],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    g = model.graph
    for part in (g, *g.node, *g.input, *g.output, *g.value_info, *g.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.functions[:]
    return onnx_bytes(model, metadata)


def _with_matrices(graph: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a graph whose `Upsample` modules are `ResizeMatrices` for images of the example's size."""
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


def run_onnx(data: bytes) -> Runtime:
    """Return a function that runs an ONNX graph in onnxruntime, on as many threads as PyTorch has."""
    runtime = require("onnxruntime", "export", "ONNX")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {source: x.contiguous().numpy()})[0])


def onnx_bytes(model: Any, metadata: Mapping[str, str]) -> bytes:
    """Check an ONNX model, add metadata, and return a file's bytes."""
    onnx = require("onnx", "export", "ONNX")
    model.producer_name, model.producer_version = "sqzoo", metadata.get("sqzoo", "")
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence the exporters' progress and warnings."""
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
