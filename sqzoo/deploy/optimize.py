"""`optimize`: a model behind the runtime that is the fastest on this machine, its outputs checked against PyTorch's."""

import hashlib
import json
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from sqzoo.data import Dataset
from sqzoo.deploy.backends import BACKENDS, ExportModel, Shape, default_modes, kept_folder
from sqzoo.deploy.onnx_graph import CALIBRATION
from sqzoo.deploy.parity import BF16_TOLERANCE, Run, compare
from sqzoo.environment import cpu, package_version
from sqzoo.errors import ArgumentError, MissingExtraError, SqzooError, did_you_mean
from sqzoo.files import write_bytes

EXACT = ("pytorch", "onnxruntime", "openvino")  # what "auto" tries
BF16 = ("openvino-bf16",)
INT8 = ("onnxruntime-int8", "openvino-int8")  # what it tries besides where it can check their accuracy
POINTS_LOST, SPEEDUP = 0.3, 1.3  # the most accuracy that int8 may cost, and how much faster bf16 and int8 must be
SHAPES = 8  # shapes of a batch that a runtime is kept for
_FEWEST = 1000  # images to check int8's accuracy on


class Optimized(nn.Module):
    """A model behind a faster runtime: the same call, the same outputs, without a gradient.

    A runtime is prepared, and its outputs compared with PyTorch's, for each shape of a batch (batch size and image
    size) and number of threads that comes. So the first call of a new shape is slow: 0.1 to 1 s, and some 5 s more at
    an image size whose graph is not in the cache folder. The runtimes of the `SHAPES` shapes that were used last are
    kept. Where one cannot be prepared or fails, a warning says so, and PyTorch takes over for that shape.

    Pickles and deep copies hold model and settings; the receiver prepares its runtimes anew. It stays in evaluation
    mode, on the CPU and in float32; images in another float type are converted.

    Attributes:
        backend: the runtime's name.
        milliseconds: the time of a batch by each candidate that was measured; empty where a backend was asked for.
    """

    def __init__(self, model: ExportModel, backend: str, milliseconds: dict[str, float]) -> None:
        super().__init__()
        self.model = model.module
        self.backend, self.milliseconds = backend, milliseconds
        for name in ("pretrained_cfg", "num_classes", "in_chans", "ood_threshold"):  # what `predict` asks a model for
            setattr(self, name, getattr(model.net, name, None))
        self._export_model = model
        self._runs: dict[tuple[int, ...], Run] = {}  # by threads and shape, the last used last
        self._lock = threading.Lock()
        self.train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the model returns for the images."""
        images = self._checked(images)
        with torch.inference_mode():
            if not len(images):
                return self.model(images)
            try:
                return self._run(tuple(images.shape))(images)
            except Exception as e:  # whatever the runtime raises
                result: torch.Tensor = self.model(images)  # raises what is wrong with the images
                _warn(f"{self.backend} failed for {list(images.shape)} ({type(e).__name__}: {e}); PyTorch takes over.")
                with self._lock:
                    self._keep(tuple(images.shape), self.model)
                return result

    def _checked(self, images: torch.Tensor) -> torch.Tensor:
        pixels = self._export_model.preprocessing
        dtype_fits = images.dtype == torch.uint8 if pixels else images.is_floating_point()
        shape_fits = images.ndim == 4 and images.shape[3 if pixels else 1] == self.in_chans
        if not (dtype_fits and shape_fits and images.device.type == "cpu"):
            wanted = "uint8 (N, H, W, 3)" if pixels else f"float (N, {self.in_chans}, H, W), normalised,"
            raise ArgumentError(
                f"An optimised model takes images {wanted} on the CPU, not {images.dtype} {list(images.shape)} on "
                f"{images.device}."
            )
        return images.detach() if pixels else images.detach().float()

    def _run(self, shape: Shape) -> Run:
        """Return the runtime for a shape, prepared now if it is new."""
        with self._lock:
            run = self._runs.pop((torch.get_num_threads(), *shape), None)
            run = run or prepare(self._export_model, self.backend, shape)
            return self._keep(shape, run)

    def _keep(self, shape: Shape, run: Run) -> Run:
        self._runs[(torch.get_num_threads(), *shape)] = run
        if len(self._runs) > SHAPES:
            del self._runs[next(iter(self._runs))]
        return run

    def train(self, mode: bool = True) -> "Optimized":
        """Stay in evaluation mode, which the runtime was made in."""
        return super().train(False)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Raise `ArgumentError`: the runtime has its own copy of the weights."""
        raise ArgumentError(
            "An optimised model takes no other weights; load them into the model and optimize it again."
        )

    def _apply(self, fn: Any, recurse: bool = True) -> "Optimized":
        """Refuse `.to(...)`, `.half()` and their like where they would change something."""
        before = torch.zeros(1, dtype=torch.float32, device="cpu")
        after = fn(before)
        if (after.dtype, after.device) != (before.dtype, before.device):
            raise ArgumentError(
                f"An optimised model stays on the CPU in float32; it does not become {after.dtype} on {after.device}."
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_runs": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"


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
    """Put a copy of a model behind the runtime that runs it fastest on this machine's CPU.

    The copy is called as the model is, with batches of any size and images of any size: (N, C, H, W) to logits
    (N, classes). `Optimized` says what a new shape costs.

    Args:
        model: a model of `create_model`, compiled by `torch.compile` or not. It stays as it is.
        backend: "auto", or one of "pytorch" (channels last), "inductor" (torch.compile with freezing: needs a C++
            compiler and half a minute, so "auto" does not try it), "onnxruntime", "openvino", "openvino-bf16",
            "onnxruntime-int8", "openvino-int8".
            "auto" measures what is installed, on as many threads as `torch.get_num_threads()`, drops what differs from
            PyTorch in float32, and remembers the winner in the cache folder (`sqzoo.files.cache_folder`) until weights,
            machine or versions change. bf16 is tried where the CPU has it, and taken where it is 1.3 times as fast as
            the best in float32.
        batch_size: images in the batches that are measured.
        input_size: their size, an int, (H, W) or (C, H, W) in pixels; None for that of `pretrained_cfg`.
        preprocessing: take uint8 (N, H, W, 3) and return probabilities, as `sqzoo.export.export` with that argument.
        calibration: 1,320 or more training images with labels. With them "auto" tries int8 too: 320 set its ranges, on
            the others it may lose 0.3 points of accuracy, and it too must be 1.3 times as fast. int8 by name, without
            calibration, takes its ranges from CIFAR-10's training images.
        seconds: time that "auto" measures for, in all. A candidate that fails is left out with a warning.

    Returns:
        The optimised copy, in evaluation mode on the CPU.

    Raises:
        ArgumentError: an argument is wrong.
        MissingExtraError, ExportError, DataError: a backend asked for by name is not to be had.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ArgumentError(
            f"Unknown backend {backend!r}.{did_you_mean(str(backend), ['auto', *BACKENDS])} There are: auto, "
            f"{', '.join(BACKENDS)}."
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
    shape = ours.shape(batch_size, None if input_size is None else _size(input_size, ours.net.in_chans))
    if backend == "auto":
        checks = calibration[CALIBRATION:] if calibration else None
        return _remembered(ours, shape, checks) or _fastest(ours, shape, checks, seconds)
    fast = Optimized(ours, backend, {})
    fast._run(shape)
    return fast


def _size(value: Any, channels: int) -> tuple[int, int]:
    """Return height and width. Raises `ArgumentError`."""
    size = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(size) == 3 and size[0] == channels:
        size = size[1:]
    if len(size) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size):
        raise ArgumentError(
            f"input_size must be a whole number of pixels, (height, width) or ({channels}, height, width), not "
            f"{value!r}."
        )
    return size


def prepare(model: ExportModel, backend: str, shape: Shape) -> Run:
    """Return a backend's function for a shape, its outputs compared with PyTorch's.

    Raises `MissingExtraError`, `ExportError`, `DataError`, and whatever model and runtime raise.
    """
    with default_modes():
        run = BACKENDS[backend](model, shape)
        if backend not in INT8:  # its outputs were compared as its graph was made
            batches = -(-8 // shape[0])  # a few images, lest one alone decide on bf16
            images = model.noise((batches * shape[0], *shape[1:]))
            tolerance = BF16_TOLERANCE if "bf16" in backend else None
            compare(model.module, run, images.split(shape[0]), f"The backend {backend}", tolerance)
    return run


def _fastest(model: ExportModel, shape: Shape, checks: Dataset | None, seconds: float) -> Optimized:
    runs: dict[str, Run] = {"pytorch": prepare(model, "pytorch", shape)}  # raises where the images do not fit the model
    for name in (*EXACT[1:], *BF16, *(INT8 if checks else ())):
        try:
            runs[name] = prepare(model, name, shape)
        except (MissingExtraError, ArgumentError):  # not for this machine
            continue
        except Exception as e:  # whatever the runtimes raise
            _warn(f"{name} left out ({type(e).__name__}: {e})")
    times = _times(runs, model.noise(shape), seconds)
    best = min((n for n in times if n in EXACT), key=times.__getitem__)
    exact = best
    for name in sorted(set(times) - set(EXACT), key=times.__getitem__):
        if times[exact] / times[name] < SPEEDUP:
            break
        if (
            not checks
            or _top1(runs[exact], model, checks, shape) - _top1(runs[name], model, checks, shape) <= POINTS_LOST
        ):
            best = name
            break
    _remember(_choice_file(model, shape, checks), best, times)
    fast = Optimized(model, best, times)
    fast._keep(shape, runs[best])
    return fast


def _times(runs: dict[str, Run], images: torch.Tensor, seconds: float) -> dict[str, float]:
    """Return the milliseconds of each: the fastest tenth, measured in turns, so that other processes hit all alike."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for run in runs.values():
            for _ in range(3):
                run(images)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(found["pytorch"]) < 3:
            for name, run in runs.items():
                run(images)  # after another's turn the caches are full of the other's data
                began = time.perf_counter()
                run(images)
                found[name].append(1000 * (time.perf_counter() - began))
    return {name: sorted(times)[len(times) // 10] for name, times in found.items()}


def _top1(run: Run, model: ExportModel, data: Dataset, shape: Shape) -> float:
    """Return the accuracy of a runtime that was prepared for a shape: the last batch is filled up."""
    right = 0
    with torch.inference_mode():
        for low in range(0, len(data), shape[0]):
            part = np.arange(low, min(low + shape[0], len(data)))
            images = model.prepared(data.images[np.resize(part, shape[0])], shape)
            right += int((run(images).argmax(1)[: len(part)].numpy() == data.labels[part]).sum())
    return 100 * right / len(data)


def _choice_file(model: ExportModel, shape: Shape, checks: Dataset | None) -> Path:
    machine = [cpu(), torch.backends.cpu.get_cpu_capability(), os.cpu_count(), torch.get_num_threads()]
    versions = [package_version(name) for name in ("sqzoo", "torch", "onnxruntime", "openvino")]
    depends_on = [model.key(shape), shape, machine, versions, checks and checks.digest]
    return kept_folder() / f"{hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()}.json"


def _remembered(model: ExportModel, shape: Shape, checks: Dataset | None) -> Optimized | None:
    """Return what was chosen before, if it still gives the right outputs."""
    try:
        choice = json.loads(_choice_file(model, shape, checks).read_text(encoding="utf-8"))
        fast = Optimized(model, choice["backend"], {str(k): float(v) for k, v in choice["milliseconds"].items()})
        fast._run(shape)
        return fast
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SqzooError):
        return None


def _remember(file: Path, backend: str, times: dict[str, float]) -> None:
    try:
        write_bytes(file, json.dumps({"backend": backend, "milliseconds": times}).encode())
    except OSError as e:
        _warn(f"the choice of {backend} is not remembered: cannot write {file} ({e.strerror})")


def _warn(message: str) -> None:
    warnings.warn(f"sqzoo.optimize: {message}", RuntimeWarning, stacklevel=3)
