"""Choose the fastest runtime for a model on this machine, by measurement; its outputs are compared with PyTorch's."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from sqzoo.data import Dataset
from sqzoo.deploy.backends import BACKENDS, ExportModel, Shape, graph_folder, prepare
from sqzoo.deploy.int8 import CALIBRATION
from sqzoo.deploy.optimized import Optimized, warn
from sqzoo.deploy.parity import Runtime
from sqzoo.environment import cpu, package_version
from sqzoo.errors import ArgumentError, MissingExtraError, SqzooError, did_you_mean
from sqzoo.files import write_bytes

EXACT = ("pytorch", "onnxruntime", "openvino")  # what "auto" tries
BF16 = ("openvino-bf16",)
INT8 = ("onnxruntime-int8", "openvino-int8")  # tried only where their accuracy can be checked
POINTS_LOST, SPEEDUP = 0.3, 1.3  # accuracy that int8 may lose, and how much faster bf16 and int8 must be
_FEWEST = 1000  # images to check int8's accuracy on


def optimize(
    model: nn.Module,
    backend: str = "auto",
    batch_size: int = 1,
    *,
    input_size: int | tuple[int, int] | tuple[int, int, int] | None = None,
    preprocessing: bool = False,
    calibration: Dataset | None = None,
    seconds: float = 1.0,
) -> Optimized:
    """Return a copy of a model in the runtime that is fastest on this machine's CPU.

    The copy is called like the model, with batches of any size and images of any size: (N, C, H, W) to logits
    (N, classes). `Optimized` says what a new shape costs.

    Args:
        model: from `create_model`, compiled by `torch.compile` or not; it is left as it is.
        backend: "auto", or one of "pytorch" (channels last), "inductor" (torch.compile with freezing: needs a C++
            compiler and half a minute, so "auto" does not try it), "onnxruntime", "openvino", "openvino-bf16",
            "onnxruntime-int8", "openvino-int8".
            "auto" measures what is installed, on as many threads as `torch.get_num_threads()`, drops what differs from
            PyTorch in float32, and remembers the winner in the cache folder (`sqzoo.files.cache_folder`) until weights,
            machine or versions change. bf16 is tried where the CPU has it, and must be 1.3 times as fast as float32.
        batch_size: of the batches that are measured.
        input_size: of their images in pixels: an int, (H, W) or (C, H, W); None for that of `pretrained_cfg`.
        preprocessing: take uint8 (N, H, W, 3) and return probabilities, as in `sqzoo.export.export`.
        calibration: 1,320 or more training images with labels. With them "auto" tries int8 too: 320 set its ranges; on
            the others it may lose 0.3 points of accuracy, and must be 1.3 times as fast. int8 by name, without
            calibration, takes its ranges from CIFAR-10's training images.
        seconds: total time of the measurement.

    Returns:
        The optimised copy, in evaluation mode on the CPU.

    Raises:
        ArgumentError: an argument is wrong.
        MissingExtraError: a package of the backend asked for is not installed.
        ExportError: the backend asked for gives other outputs than PyTorch.
        DataError: int8 needs CIFAR-10, which cannot be had.
    """
    if backend != "auto" and backend not in BACKENDS:
        known = ["auto", *BACKENDS]
        raise ArgumentError(
            f"Unknown backend {backend!r}.{did_you_mean(str(backend), known)} There are: {', '.join(known)}."
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ArgumentError(f"batch_size must be a whole number from 1, not {batch_size!r}.")
    if calibration is not None and len(calibration) < CALIBRATION + _FEWEST:
        raise ArgumentError(
            f"calibration must be {CALIBRATION + _FEWEST:,} or more training images, {CALIBRATION} to set ranges and "
            f"the others to check the accuracy, not {len(calibration):,}."
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type != "cpu":
        raise ArgumentError(f"optimize is for the CPU, and the model is on {device}; give model.cpu().")
    ours = ExportModel(model, preprocessing, None if calibration is None else calibration.images[:CALIBRATION])
    shape = ours.shape(batch_size, None if input_size is None else _height_width(input_size, ours.net.in_chans))
    if backend == "auto":
        checks = calibration[CALIBRATION:] if calibration else None
        return _remembered(ours, shape, checks) or _fastest(ours, shape, checks, seconds)
    fast = Optimized(ours, backend, {})
    fast.runtime(shape)
    return fast


def _height_width(value: Any, channels: int) -> tuple[int, int]:
    size = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(size) == 3 and size[0] == channels:
        size = size[1:]
    if len(size) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size):
        raise ArgumentError(
            f"input_size must be a whole number of pixels, (height, width) or ({channels}, height, width), not "
            f"{value!r}."
        )
    return size


def _fastest(model: ExportModel, shape: Shape, checks: Dataset | None, seconds: float) -> Optimized:
    runtimes: dict[str, Runtime] = {"pytorch": prepare(model, "pytorch", shape)}  # raises where the images do not fit
    for name in (*EXACT[1:], *BF16, *(INT8 if checks else ())):
        try:
            runtimes[name] = prepare(model, name, shape)
        except (MissingExtraError, ArgumentError):  # not for this machine
            continue
        except Exception as e:  # whatever the runtimes raise
            warn(f"{name} left out ({type(e).__name__}: {e})")
    times = _times(runtimes, model.samples(shape), seconds)
    best = exact = min((n for n in times if n in EXACT), key=times.__getitem__)
    for name in sorted(set(times) - set(EXACT), key=times.__getitem__):
        if times[exact] / times[name] < SPEEDUP:
            break
        accuracies = [_top1(runtimes[n], model, checks, shape) for n in (exact, name)] if checks else [0.0, 0.0]
        if accuracies[0] - accuracies[1] <= POINTS_LOST:
            best = name
            break
    file = _choice_file(model, shape, checks)
    try:
        write_bytes(file, json.dumps({"backend": best, "milliseconds": times}).encode())
    except OSError as e:
        warn(f"the choice of {best} is not remembered: cannot write {file} ({e.strerror})")
    fast = Optimized(model, best, times)
    fast.keep(shape, runtimes[best])
    return fast


def _times(runtimes: dict[str, Runtime], images: torch.Tensor, seconds: float) -> dict[str, float]:
    """Return each one's milliseconds: the fastest tenth, measured in turns, so that other processes disturb all."""
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    with torch.inference_mode():
        for runtime in runtimes.values():
            for _ in range(3):
                runtime(images)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times["pytorch"]) < 3:
            for name, runtime in runtimes.items():
                runtime(images)  # after another's turn the caches are full of the other's data
                began = time.perf_counter()
                runtime(images)
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: sorted(taken)[len(taken) // 10] for name, taken in times.items()}


def _top1(runtime: Runtime, model: ExportModel, data: Dataset, shape: Shape) -> float:
    """Return the accuracy of a runtime that was prepared for a shape; the last batch is filled up."""
    right = 0
    with torch.inference_mode():
        for low in range(0, len(data), shape[0]):
            idx = np.arange(low, min(low + shape[0], len(data)))
            images = model.prepared(data.images[np.resize(idx, shape[0])], shape)
            right += int((runtime(images).argmax(1)[: len(idx)].numpy() == data.labels[idx]).sum())
    return 100 * right / len(data)


def _choice_file(model: ExportModel, shape: Shape, checks: Dataset | None) -> Path:
    machine = [cpu(), torch.backends.cpu.get_cpu_capability(), os.cpu_count(), torch.get_num_threads()]
    versions = [package_version(name) for name in ("sqzoo", "torch", "onnxruntime", "openvino")]
    depends_on = [model.key(shape), shape, machine, versions, checks and checks.digest]
    return graph_folder() / f"{hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()}.json"


def _remembered(model: ExportModel, shape: Shape, checks: Dataset | None) -> Optimized | None:
    """Return what was chosen before, if it still gives the right outputs."""
    try:
        choice = json.loads(_choice_file(model, shape, checks).read_text(encoding="utf-8"))
        fast = Optimized(model, choice["backend"], {str(k): float(v) for k, v in choice["milliseconds"].items()})
        fast.runtime(shape)
        return fast
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SqzooError):
        return None
