"""Runtimes behind one call: each backend turns a model into a function from images to outputs, both PyTorch tensors."""

import hashlib
import threading
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from sqzoo import __version__
from sqzoo.cache import folder
from sqzoo.data import Preprocessing
from sqzoo.environment import package_version
from sqzoo.errors import ArgumentError
from sqzoo.extras import require
from sqzoo.files import write_whole
from sqzoo.graph import FromPixels, calibration_images, pixels_side, run_onnx, to_int8, to_onnx
from sqzoo.hashing import tensors_sha256
from sqzoo.parity import Run

_SHAPES = 4  # batch sizes that OpenVINO keeps a network for


def kept_folder() -> Path:
    """Return where graphs and measured choices are kept between processes; `sqzoo cache` shows and removes them."""
    return folder() / "optimize"


class Subject:
    """A model to be run: its float32 copy in channels-last layout, and its ONNX graphs, made once and kept on disk.

    calibration: training images that set int8's ranges; None for CIFAR-10's.
    """

    def __init__(self, net: nn.Module, preprocessing: bool = False, calibration: np.ndarray | None = None) -> None:
        self.net = net
        self.preprocessing = preprocessing
        self.calibration = calibration
        module = FromPixels(net) if preprocessing else net
        self.module = module.eval().to(memory_format=torch.channels_last)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        if self.preprocessing:
            side = pixels_side(self.net)
            return (side, side, 3)
        return (int(self.net.in_chans), *self.net.pretrained_cfg["input_size"][1:])  # type: ignore[arg-type, index]

    def noise(self, count: int) -> torch.Tensor:
        """Return images of noise as the model takes them, the same each time."""
        generator = torch.Generator().manual_seed(0)
        if self.preprocessing:
            return torch.randint(0, 256, (count, *self.shape), dtype=torch.uint8, generator=generator)
        return torch.randn(count, *self.shape, generator=generator)

    def prepared(self, pixels: np.ndarray) -> torch.Tensor:
        """Return uint8 pictures as the model takes them."""
        if self.preprocessing:
            return torch.from_numpy(pixels)
        return Preprocessing.of(self.net.pretrained_cfg)(pixels).contiguous()  # type: ignore[arg-type]

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that the outputs hang on: tensors, structure, preparation, and the versions that export."""
        parts = [tensors_sha256(self.net.state_dict()), repr(self.module), str(self.shape), __version__]
        parts += [str(Preprocessing.of(self.net.pretrained_cfg))]  # type: ignore[arg-type]
        parts += [str(package_version(name)) for name in ("torch", "onnx", "onnxscript", "onnxruntime")]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @cached_property
    def onnx(self) -> bytes:
        """The float32 graph."""
        return _kept(self.key, lambda: to_onnx(self.module, self.noise(2), {}))

    @cached_property
    def int8(self) -> bytes:
        """The graph in int8."""
        ranges = "cifar10"
        if self.calibration is not None:
            ranges = hashlib.sha256(np.ascontiguousarray(self.calibration).data).hexdigest()
        key = hashlib.sha256(f"{self.key} {ranges}".encode()).hexdigest()

        def make() -> bytes:
            pixels = calibration_images(self.net, self.calibration)
            return to_int8(self.module, self.onnx, self.prepared(pixels), {})

        return _kept(key, make)


def _kept(key: str, make: Callable[[], bytes]) -> bytes:
    """Return a graph from the cache, verified by the SHA-256 in its name, or make it and keep it there."""
    for file in kept_folder().glob(f"{key}-*.onnx"):
        data = file.read_bytes()
        if file.stem == f"{key}-{hashlib.sha256(data).hexdigest()}":
            return data
    data = make()
    try:
        write_whole(kept_folder() / f"{key}-{hashlib.sha256(data).hexdigest()}.onnx", data)
    except OSError:  # a full or read-only disk: it is made again next time
        pass
    return data


def _pytorch(subject: Subject) -> Run:
    return lambda x: subject.module(_channels_last(x))


def _torchscript(subject: Subject) -> Run:
    # Frozen, convolution and ReLU are one oneDNN call, and batch norm is folded into the weights before it.
    example = _channels_last(subject.noise(2))
    with torch.inference_mode():
        frozen = torch.jit.freeze(torch.jit.trace(subject.module, example))
    return lambda x: frozen(_channels_last(x))


def _inductor(subject: Subject) -> Run:
    compiled = torch.compile(subject.module, options={"freezing": True})
    return lambda x: compiled(_channels_last(x))


def _onnxruntime(subject: Subject, int8: bool = False) -> Run:
    return run_onnx(subject.int8 if int8 else subject.onnx)


def _openvino(subject: Subject, precision: str = "f32") -> Run:
    openvino = require("openvino", "openvino", "The backend openvino")
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ArgumentError("The backend openvino-bf16 needs a CPU with bf16 instructions; use another one.")
    network = core.read_model(subject.int8 if precision == "int8" else subject.onnx)
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    compiled: dict[int, Any] = {}
    lock = threading.Lock()  # a request serves one thread at a time

    def run(x: torch.Tensor) -> torch.Tensor:
        images = x.contiguous().numpy()
        with lock:
            if len(x) not in compiled:  # a fixed shape is 15 % faster than a free one, and compiles in 0.2 s
                if len(compiled) == _SHAPES:
                    compiled.pop(next(iter(compiled)))
                network.reshape({0: [len(x), *subject.shape]})
                compiled[len(x)] = core.compile_model(network, "CPU", hints).create_infer_request()
            found = compiled[len(x)].infer([images], share_inputs=True, share_outputs=True)
            return torch.from_numpy(np.array(found[0]))

    return run


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.is_floating_point() else x


BACKENDS: dict[str, Callable[[Subject], Run]] = {
    "pytorch": _pytorch,
    "torchscript": _torchscript,
    "inductor": _inductor,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "openvino-bf16": partial(_openvino, precision="bf16"),
    "onnxruntime-int8": partial(_onnxruntime, int8=True),
    "openvino-int8": partial(_openvino, precision="int8"),
}
