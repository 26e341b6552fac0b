"""The networks that latency.py times, and the process that each of them runs in."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import timm
import torch
import torch.nn as nn
import torchvision

import sqzoo
from benchmarks.size.published import resnet
from sqzoo import create_model
from sqzoo.data import Dataset
from sqzoo.deploy.backends import ExportModel
from sqzoo.deploy.int8 import CALIBRATION
from sqzoo.deploy.onnx_graph import to_onnx
from sqzoo.environment import require

# Here, not where they are used: the process that all others are forked from loads them once.
onnx, onnxruntime, openvino = (require(name, "dev", "The benchmark") for name in ("onnx", "onnxruntime", "openvino"))

WARM_UP = 3  # runs at the beginning of each turn that do not count: the caches are full of another network's data


@dataclass(frozen=True)
class Contender:
    """A network as somebody would run it.

    network: `architecture.tag` of ours, which enlarges 32x32 images to `side`; an architecture of ours without weights,
    which takes images of `side`; or a peer's name in `PEERS`. how: "eager" (`model(x)` in inference mode, as
    loaded), "optimize" (`sqzoo.optimize`), "optimize, int8 allowed" (with calibration images), or a runtime of its own
    on the same ONNX graph: "onnxruntime", "openvino" (float32), and both with "-int8".
    """

    network: str
    side: int
    how: str

    @property
    def name(self) -> str:
        return f"{self.network} {self.side}, {self.how}"


# Their weights are random: a network's time does not hang on them.
PEERS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "torchvision squeezenet1_1": (224, lambda: torchvision.models.squeezenet1_1()),
    "torchvision alexnet": (224, lambda: torchvision.models.alexnet()),
    "timm mobilenetv3_small_100": (224, lambda: timm.create_model("mobilenetv3_small_100")),
    "timm lcnet_050": (224, lambda: timm.create_model("lcnet_050")),
    "timm resnet18": (224, lambda: timm.create_model("resnet18")),
    "ResNet-20": (32, lambda: resnet(20)),
    "ResNet-56": (32, lambda: resnet(56)),
}


def network(name: str, side: int) -> nn.Module:
    """Return a network in evaluation mode: ours by tag with its weights, or by architecture without."""
    if name in PEERS:
        return PEERS[name][1]().eval()
    if "." in name:
        return create_model(name, pretrained=True, upsample=side).eval()
    model = create_model(name, num_classes=10).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, side, side)}  # type: ignore[dict-item]
    return model


def input_size(name: str, side: int) -> tuple[int, int, int]:
    """Return the shape of the images that a network takes."""
    side = 32 if "." in name and name not in PEERS else side
    return (3, side, side)


class Process:
    """A contender in a process of its own: the peak memory is its own, and its idle threads are put to sleep."""

    def __init__(self, contender: Contender, threads: list[int], calibration: Dataset) -> None:
        # All share what importing takes, or 34 processes would fill 24 GB.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["contenders"])
        self.contender = contender
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(contender, threads, calibration, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def about(self) -> dict[str, Any]:
        """Wait until it is ready; return what is known of the network."""
        return dict(self._receive())

    def time(self, threads: int, batch: int, runs: int, seconds: float) -> list[float]:
        """Return the seconds of each of up to `runs` runs, fewer where `seconds` are over."""
        self._ours.send((threads, batch, runs, seconds))
        return list(self._receive())

    def close(self) -> int:
        """End it; return its peak memory in bytes."""
        self._ours.send(None)
        peak = int(self._receive())
        self._process.join()
        return peak

    def _receive(self) -> Any:
        found = self._ours.recv()
        if isinstance(found, Exception):
            raise found
        return found


def _serve(contender: Contender, threads: list[int], calibration: Dataset, pipe: Connection) -> None:
    try:
        started = time.perf_counter()
        runs, about = _runners(contender, threads, calibration)
        pipe.send(about | {"ready_seconds": round(time.perf_counter() - started, 2)})
        inputs: dict[int, torch.Tensor] = {}
        while ask := pipe.recv():
            count, batch, most, seconds = ask
            torch.set_num_threads(count)
            if batch not in inputs:
                inputs[batch] = torch.randn(batch, *input_size(contender.network, contender.side))
            pipe.send(_times(runs[count], inputs[batch], most, seconds))
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    except Exception as e:
        pipe.send(RuntimeError(f"{contender.name}: {type(e).__name__}: {e}"))


def _times(run: Callable[[torch.Tensor], Any], images: torch.Tensor, most: int, seconds: float) -> list[float]:
    found: list[float] = []
    with torch.inference_mode():
        for _ in range(WARM_UP):
            run(images)
        end = time.perf_counter() + seconds
        while len(found) < most and (time.perf_counter() < end or not found):
            began = time.perf_counter()
            run(images)
            found.append(time.perf_counter() - began)
    return found


def _runners(
    contender: Contender, threads: list[int], calibration: Dataset
) -> tuple[dict[int, Callable[[torch.Tensor], Any]], dict[str, Any]]:
    """Return a function for each number of threads, and what is known of the network."""
    model = network(contender.network, contender.side)
    about: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters())}
    about["bytes"] = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    how, found = contender.how, {}
    if how == "eager":
        return dict.fromkeys(threads, model), about | {"backend": "pytorch"}
    if how.startswith("optimize"):
        for count in threads:
            torch.set_num_threads(count)
            found[count] = sqzoo.optimize(model, calibration=calibration if "int8" in how else None)
        about["backend"] = {count: fast.backend for count, fast in found.items()}
        return found, about | {"milliseconds": {count: fast.milliseconds for count, fast in found.items()}}
    graph = _graph(model, contender, calibration)
    about |= {"backend": how, "bytes": len(graph)}
    for count in threads:
        make = _onnxruntime if how.startswith("onnxruntime") else _openvino
        found[count] = make(graph, count)
    return found, about


def _graph(model: nn.Module, contender: Contender, calibration: Dataset) -> bytes:
    if contender.network in PEERS:
        return to_onnx(model, torch.zeros(2, 3, contender.side, contender.side), {})
    ours = ExportModel(model, calibration=calibration.images[:CALIBRATION])
    return ours.int8(ours.shape(1)) if contender.how.endswith("int8") else ours.onnx(ours.shape(1))


def _onnxruntime(graph: bytes, threads: int) -> Callable[[torch.Tensor], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"images": x.numpy()})[0]


def _openvino(graph: bytes, threads: int) -> Callable[[torch.Tensor], np.ndarray]:
    core, requests = openvino.Core(), {}
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}

    def run(x: torch.Tensor) -> np.ndarray:
        if len(x) not in requests:  # at its best: with the shape fixed
            shaped = core.read_model(graph)
            shaped.reshape({0: list(x.shape)})
            requests[len(x)] = core.compile_model(shaped, "CPU", hints).create_infer_request()
        return requests[len(x)].infer([x.numpy()], share_inputs=True, share_outputs=True)[0]

    return run
