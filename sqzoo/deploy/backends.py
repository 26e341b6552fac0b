"""Backends: each turns a model into a function from images to outputs, both PyTorch tensors, in its runtime."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from sqzoo import __version__
from sqzoo.data import Normalise
from sqzoo.deploy.int8 import calibration_images, to_int8
from sqzoo.deploy.onnx_graph import FromPixels, frozen_copy, run_onnx, to_onnx
from sqzoo.deploy.parity import BF16_TOLERANCE, Runtime, compare, photo_crops
from sqzoo.environment import package_version, require
from sqzoo.errors import ArgumentError
from sqzoo.files import cache_folder, tensors_sha256, write_bytes

Shape = tuple[int, ...]  # of a batch of images, (N, C, H, W) or (N, H, W, 3)


def graph_folder() -> Path:
    """Return the cache folder for graphs and measured choices; `sqzoo cache` shows and removes it."""
    return cache_folder() / "optimize"


@contextmanager
def default_modes() -> Iterator[None]:
    """Leave the caller's inference mode, gradients and autocast, which would change or prevent the export of graphs."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        yield


class ExportModel:
    """A model's float32 copy on the CPU, in evaluation mode and channels-last layout, and its ONNX graphs.

    A graph is for one image size and any batch size. It is exported once and cached on disk.

    Args:
        model: from `create_model`, compiled by `torch.compile` or not; it is left as it is.
        preprocessing: uint8 (N, H, W, 3) to probabilities, by `FromPixels`.
        calibration: uint8 training images (N, H, W, 3) that set int8's ranges; None for CIFAR-10's.

    Raises:
        ArgumentError: the model was not created by `create_model`, or cannot have its preprocessing inside.
    """

    def __init__(self, model: nn.Module, preprocessing: bool = False, calibration: np.ndarray | None = None) -> None:
        model = getattr(model, "_orig_mod", model)  # compiled by torch.compile
        if not hasattr(model, "pretrained_cfg"):
            raise ArgumentError(f"{type(model).__name__} was not created by create_model; pass a model that was.")
        if preprocessing and (model.in_chans != 3 or not model.num_classes):
            raise ArgumentError("preprocessing=True needs a model with 3 input channels and classes; leave it out.")
        with default_modes():
            self.net: Any = frozen_copy(model)
        self.preprocessing = preprocessing
        self.calibration = calibration
        module = FromPixels(self.net) if preprocessing else self.net
        self.module: nn.Module = module.eval().to(memory_format=torch.channels_last)

    def shape(self, batch_size: int, size: tuple[int, int] | None = None) -> Shape:
        """Return the shape of a batch of images of a size (H, W), by default the model's own."""
        size = size or self.net.pretrained_cfg["input_size"][1:]
        return (batch_size, *size, 3) if self.preprocessing else (batch_size, self.net.in_chans, *size)

    def samples(self, shape: Shape) -> torch.Tensor:
        """Return the same images each time, as the model takes them: crops of a photo, noise of other channels."""
        if self.net.in_chans != 3:
            return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        crops = photo_crops(shape[0], shape[1:3] if self.preprocessing else shape[2:])
        return self.prepared(crops.permute(0, 2, 3, 1).contiguous().numpy())

    def prepared(self, pixels: np.ndarray, shape: Shape | None = None) -> torch.Tensor:
        """Return uint8 images (N, H, W, 3) as the model takes them, resized to the size of `shape`."""
        images = torch.from_numpy(np.require(pixels, requirements="W"))
        size = pixels.shape[1:3] if shape is None else shape[1:3] if self.preprocessing else shape[2:]
        if pixels.shape[1:3] != size:
            resized = F.interpolate(images.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
            images = resized.permute(0, 2, 3, 1).contiguous()
        return images if self.preprocessing else Normalise.of(self.net)(images).contiguous()

    def key(self, shape: Shape) -> str:
        """Return the SHA-256 of everything the outputs depend on: tensors, modules, image size, exporters' versions."""
        tensors = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        parts = [tensors_sha256(tensors), repr(self.module), str(shape[1:]), __version__]
        for module in self.module.modules():  # their repr lacks some, such as the temperature
            settings = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str | tuple | list)}
            parts += [f"{type(module).__module__} {sorted(settings.items())}"]
        parts += [str(package_version(name)) for name in ("torch", "onnx", "onnxscript", "onnxruntime")]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def onnx(self, shape: Shape) -> bytes:
        """Return the float32 graph for the image size of `shape`."""
        return _cached(self.key(shape), lambda: to_onnx(self.module, self.samples((2, *shape[1:])), {}))

    def int8(self, shape: Shape) -> bytes:
        """Return the graph in int8 for the image size of `shape`."""
        ranges = "cifar10"
        if self.calibration is not None:
            ranges = hashlib.sha256(np.ascontiguousarray(self.calibration).data).hexdigest()

        def make() -> bytes:
            pixels = calibration_images(self.net, self.calibration)
            return to_int8(self.module, self.onnx(shape), self.prepared(pixels, shape), {})

        return _cached(hashlib.sha256(f"{self.key(shape)} {ranges}".encode()).hexdigest(), make)


def _cached(key: str, make: Callable[[], bytes]) -> bytes:
    """Return a graph from the cache, where its name holds its SHA-256, or make it and cache it."""
    for file in graph_folder().glob(f"{key}-*.onnx"):
        data = file.read_bytes()
        if file.stem == f"{key}-{hashlib.sha256(data).hexdigest()}":
            return data
    data = make()
    try:
        write_bytes(graph_folder() / f"{key}-{hashlib.sha256(data).hexdigest()}.onnx", data)
    except OSError:  # a full or read-only disk: it is made again next time
        pass
    return data


def _pytorch(model: ExportModel, shape: Shape) -> Runtime:
    return lambda x: model.module(_channels_last(x))


def _inductor(model: ExportModel, shape: Shape) -> Runtime:
    compiled = torch.compile(model.module, dynamic=False, options={"freezing": True})
    return lambda x: compiled(_channels_last(x))


def _onnxruntime(model: ExportModel, shape: Shape, int8: bool = False) -> Runtime:
    return run_onnx(model.int8(shape) if int8 else model.onnx(shape))


def _openvino(model: ExportModel, shape: Shape, precision: str = "f32") -> Runtime:
    openvino = require("openvino", "openvino", "The backend openvino")
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ArgumentError("The backend openvino-bf16 needs a CPU with bf16 instructions; use another one.")
    network = core.read_model(model.int8(shape) if precision == "int8" else model.onnx(shape))
    network.reshape({0: list(shape)})  # a fixed batch size is 15 % faster than a free one
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    request = core.compile_model(network, "CPU", hints).create_infer_request()
    lock = threading.Lock()  # a request serves one thread at a time

    def run(x: torch.Tensor) -> torch.Tensor:
        images = x.contiguous().numpy()
        with lock:
            return torch.from_numpy(np.array(request.infer([images], share_inputs=True, share_outputs=True)[0]))

    return run


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.is_floating_point() else x


# Each prepares its runtime for one shape and the number of threads that PyTorch has then.
BACKENDS: dict[str, Callable[[ExportModel, Shape], Runtime]] = {
    "pytorch": _pytorch,
    "inductor": _inductor,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "openvino-bf16": partial(_openvino, precision="bf16"),
    "onnxruntime-int8": partial(_onnxruntime, int8=True),
    "openvino-int8": partial(_openvino, precision="int8"),
}


def prepare(model: ExportModel, backend: str, shape: Shape) -> Runtime:
    """Prepare a backend's runtime for a shape, and compare its outputs with PyTorch's.

    Raises:
        MissingExtraError, ExportError, DataError: also whatever model and runtime raise.
    """
    with default_modes():
        runtime = BACKENDS[backend](model, shape)
        if "int8" not in backend:  # whose outputs were compared when its graph was made
            batches = -(-8 // shape[0])  # 8 images or more, so that none alone decides on bf16
            images = model.samples((batches * shape[0], *shape[1:]))
            tolerance = BF16_TOLERANCE if "bf16" in backend else None
            compare(model.module, runtime, images.split(shape[0]), f"The backend {backend}", tolerance)
    return runtime
