"""`optimize`: a model behind the runtime that is the fastest on this machine, its outputs checked against PyTorch's."""

import copy
import hashlib
import json
import os
import time
import warnings
from pathlib import Path

import torch
import torch.nn as nn

from sqzoo.backends import BACKENDS, Subject, kept_folder
from sqzoo.data import Dataset
from sqzoo.environment import cpu, package_version
from sqzoo.errors import ArgumentError, MissingExtraError, SqzooError, did_you_mean
from sqzoo.files import write_whole
from sqzoo.graph import CALIBRATION
from sqzoo.parity import BF16_TOLERANCE, Run, compare

EXACT = ("pytorch", "torchscript", "onnxruntime", "openvino")  # what "auto" tries
BF16 = ("openvino-bf16",)
INT8 = ("onnxruntime-int8", "openvino-int8")  # what it tries besides where it can check their accuracy
POINTS_LOST, SPEEDUP = 0.3, 1.3  # the most accuracy that int8 may cost, and how much faster bf16 and int8 must be
_FEWEST = 1000  # images to check int8's accuracy on


class Optimized(nn.Module):
    """A model behind a faster runtime: the same call, the same outputs.

    backend: the runtime's name. milliseconds: the time of a batch by each candidate that was measured, empty
    where a backend was asked for by name. Images of another size, and all images once the runtime fails, which is
    warned of, go through PyTorch.
    """

    def __init__(self, subject: Subject, run: Run, backend: str, milliseconds: dict[str, float]) -> None:
        super().__init__()
        self.model = subject.module
        self.backend, self.milliseconds = backend, milliseconds
        for name in ("pretrained_cfg", "num_classes", "in_chans", "ood_threshold"):  # what `predict` asks a model for
            setattr(self, name, getattr(subject.net, name, None))
        self._shape, self._run = subject.shape, run
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the model returns for the images, without a gradient."""
        with torch.inference_mode():
            if images.shape[1:] == self._shape and images.device.type == "cpu" and len(images):
                try:
                    return self._run(images)
                except Exception as e:  # whatever the runtime raises
                    if self.backend == "pytorch":
                        raise
                    _warn(f"{self.backend} failed ({type(e).__name__}: {e}); going on with PyTorch.")
                    self.backend, self._run = "pytorch", self.model
            return self.model(images)

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"


def optimize(
    model: nn.Module,
    backend: str = "auto",
    batch_size: int = 1,
    *,
    preprocessing: bool = False,
    calibration: Dataset | None = None,
    seconds: float = 1.0,
) -> Optimized:
    """Return a copy of a model, in evaluation mode on the CPU, behind the runtime that runs it fastest on this machine.

    The copy is called as the model is: (N, 3, side, side) to logits (N, classes), the side being that of the model's
    `pretrained_cfg`; or with `preprocessing`, uint8 (N, 32, 32, 3) to probabilities, as in `sqzoo.export.export`.

    backend: "auto", or a name of `BACKENDS`: "pytorch" (channels last, inference mode), "torchscript" (frozen),
    "inductor" (torch.compile with freezing: needs a C++ compiler and half a minute, so "auto" does not try it),
    "onnxruntime", "openvino", "openvino-bf16", "onnxruntime-int8", "openvino-int8".
    "auto" measures what is installed, in turns for `seconds` in all, on batches of `batch_size` and as many threads as
    `torch.get_num_threads()`, drops what differs from PyTorch in float32, and remembers the winner in the cache folder
    (`sqzoo.cache.folder`) until weights, machine or versions change. The batch size stays free in calls.
    bf16 is tried where the CPU has it, and kept where it is 1.3 times as fast as the best in float32.
    calibration: training images with labels, 1,320 or more. With them "auto" tries int8 too: 320 set its ranges, on
    the others it may lose 0.3 points of accuracy, and it too must be 1.3 times as fast. int8 by name, without
    calibration, takes its ranges from CIFAR-10's training images.

    A candidate that fails is left out with a warning. Raises `ArgumentError` for a wrong argument, and
    `MissingExtraError`, `ExportError` or `DataError` where a backend asked for by name is not to be had.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ArgumentError(
            f"Unknown backend {backend!r}.{did_you_mean(str(backend), ['auto', *BACKENDS])} There are: auto, "
            f"{', '.join(BACKENDS)}."
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ArgumentError(f"batch_size must be a whole number from 1, not {batch_size!r}.")
    if not hasattr(model, "pretrained_cfg"):
        raise ArgumentError(f"{type(model).__name__} is no model of create_model; give one that it made.")
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ArgumentError(f"optimize is for the CPU, and the model is on {device}; give model.cpu().")
    if preprocessing and (model.in_chans != 3 or not model.num_classes):
        raise ArgumentError("preprocessing=True needs a model with 3 input channels and classes; leave it out.")
    if calibration is not None and len(calibration) < CALIBRATION + _FEWEST:
        raise ArgumentError(
            f"calibration must be {CALIBRATION + _FEWEST:,} or more training images, {CALIBRATION} to set ranges and "
            f"the others to check the accuracy, not {len(calibration):,}."
        )
    net = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    subject = Subject(net, preprocessing, None if calibration is None else calibration.images[:CALIBRATION])
    if backend != "auto":
        return Optimized(subject, _checked(subject, backend, batch_size), backend, {})
    checks = calibration[CALIBRATION:] if calibration else None
    return _remembered(subject, batch_size, checks) or _fastest(subject, batch_size, checks, seconds)


def _checked(subject: Subject, backend: str, batch_size: int) -> Run:
    """Return a backend's function once its outputs were compared with PyTorch's; int8's were as its graph was made."""
    run = BACKENDS[backend](subject)
    with torch.inference_mode():
        if backend not in INT8:
            spread = BF16_TOLERANCE if "bf16" in backend else None
            compare(subject.module, run, subject.noise(max(2, batch_size)), f"The backend {backend}", spread)
        run(subject.noise(batch_size))
    return run


def _fastest(subject: Subject, batch_size: int, checks: Dataset | None, seconds: float) -> Optimized:
    runs: dict[str, Run] = {}
    for name in (*EXACT, *BF16, *(INT8 if checks else ())):
        try:
            runs[name] = _checked(subject, name, batch_size)
        except (MissingExtraError, ArgumentError):  # not for this machine
            continue
        except Exception as e:  # whatever the runtimes raise
            _warn(f"{name} left out ({type(e).__name__}: {e})")
    times = _times(runs, subject.noise(batch_size), seconds)
    best = min((n for n in times if n in EXACT), key=times.__getitem__)
    exact = best
    for name in sorted(set(times) - set(EXACT), key=times.__getitem__):
        if times[exact] / times[name] < SPEEDUP:
            break
        if not checks or _top1(runs[exact], subject, checks) - _top1(runs[name], subject, checks) <= POINTS_LOST:
            best = name
            break
    _remember(subject, batch_size, checks, best, times)
    return Optimized(subject, runs[best], best, times)


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


def _top1(run: Run, subject: Subject, data: Dataset) -> float:
    with torch.inference_mode():
        found = [run(subject.prepared(data[i : i + 8].images)).argmax(1) for i in range(0, len(data), 8)]
    return 100 * float((torch.cat(found).numpy() == data.labels).mean())


def _choice_file(subject: Subject, batch_size: int, checks: Dataset | None) -> Path:
    machine = [cpu(), torch.backends.cpu.get_cpu_capability(), os.cpu_count(), torch.get_num_threads()]
    versions = [package_version(name) for name in ("sqzoo", "torch", "onnxruntime", "openvino")]
    about = [subject.key, batch_size, machine, versions, checks and checks.digest]
    return kept_folder() / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.json"


def _remembered(subject: Subject, batch_size: int, checks: Dataset | None) -> Optimized | None:
    """Return what was chosen before, if it still gives the right outputs."""
    try:
        choice = json.loads(_choice_file(subject, batch_size, checks).read_text(encoding="utf-8"))
        times = {str(k): float(v) for k, v in choice["milliseconds"].items()}
        backend = choice["backend"]
        return Optimized(subject, _checked(subject, backend, batch_size), backend, times)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SqzooError):
        return None


def _remember(subject: Subject, batch_size: int, checks: Dataset | None, backend: str, times: dict[str, float]) -> None:
    file = _choice_file(subject, batch_size, checks)
    try:
        write_whole(file, json.dumps({"backend": backend, "milliseconds": times}).encode())
    except OSError as e:
        _warn(f"the choice of {backend} is not remembered: cannot write {file} ({e.strerror})")


def _warn(message: str) -> None:
    warnings.warn(f"sqzoo.optimize: {message}", RuntimeWarning, stacklevel=3)
