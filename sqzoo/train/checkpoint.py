"""A run folder's files: the checkpoint that a run resumes from, its log and its result, each whole or not there."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sqzoo.errors import ArgumentError, BusyError, DataError
from sqzoo.files import write_whole
from sqzoo.hashing import tensors_sha256
from sqzoo.train.recipe import Recipe


@dataclass
class Checkpoint:
    """Where a run stands: what a checkpoint holds."""

    epoch: int
    best_epoch: int
    best_score: tuple[float, float]
    best: dict[str, torch.Tensor]
    seconds: float
    log: list[dict[str, Any]]

    def text(self, epochs: int) -> str:
        """What the progress bar shows of the run so far: the best accuracy and the time left."""
        if not self.best_epoch:
            return ""
        left = sum(row["seconds"] for row in self.log) / self.epoch * (epochs - self.epoch)
        return f", best {self.best_score[0]:.2f} %, about {left / 60:.0f} min left"

    def record(
        self, epoch: int, row: dict[str, Any], score: tuple[float, float] | None, learned: dict[str, torch.Tensor]
    ) -> None:
        self.epoch = epoch
        self.log.append(row)
        if score and score > self.best_score:
            self.best_epoch, self.best_score = epoch, score
            self.best = {n: t.clone() for n, t in learned.items()}

    def save(
        self,
        folder: Path,
        learned: dict[str, torch.Tensor],
        average: dict[str, torch.Tensor],
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        tensors = {f"model.{n}": t for n, t in learned.items()}
        tensors |= {f"average.{n}": t for n, t in average.items()}
        tensors |= {f"best.{n}": t for n, t in self.best.items()}
        for name, parameter in parameters.items():
            tensors |= {f"optimizer.{name}.{k}": v for k, v in optimizer.state[parameter].items()}
        about = {"epoch": self.epoch, "best_epoch": self.best_epoch, "best_score": self.best_score}
        run = json.dumps(about | {"seconds": self.seconds, "log": self.log})
        metadata = {"format": "pt", "run": run, "sha256": _seal(run, tensors)}
        write_tensors(folder / "last.safetensors", tensors, metadata)
        self.write_log(folder)

    def write_log(self, folder: Path) -> None:
        write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.log))


def resume(
    folder: Path,
    learned: dict[str, torch.Tensor],
    average: dict[str, torch.Tensor],
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> Checkpoint:
    """Return the state of an earlier start of this run, its weights and optimiser restored, or a fresh one."""
    file = folder / "last.safetensors"
    if not file.is_file():
        return Checkpoint(0, 0, (-1.0, 0.0), {}, 0.0, [])
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        if metadata["sha256"] != _seal(metadata["run"], tensors):
            raise ValueError("its SHA-256 is not the one noted in it")
        about = json.loads(metadata["run"])
    except Exception as e:  # whatever a damaged file makes safetensors raise
        raise DataError(f"{file} is damaged ({e}); delete it to start the run again.") from e
    with torch.no_grad():
        for prefix, own in (("model", learned), ("average", average)):
            for name, tensor in own.items():
                tensor.copy_(tensors[f"{prefix}.{name}"])
    for name, parameter in parameters.items():
        prefix = f"optimizer.{name}."
        # The moments lie in memory as the weights do, so that a resumed run adds in the same order.
        optimizer.state[parameter] = {
            k.removeprefix(prefix): v.to(parameter.device).contiguous(
                memory_format=torch.channels_last if v.dim() == 4 else torch.contiguous_format
            )
            for k, v in tensors.items()
            if k.startswith(prefix)
        }
    best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
    score_ = (about["best_score"][0], about["best_score"][1])
    return Checkpoint(about["epoch"], about["best_epoch"], score_, best, about["seconds"], about["log"])


def _seal(run: str, tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(f"{run}\n{tensors_sha256(tensors)}".encode()).hexdigest()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock; raise `BusyError` where another process trains there."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as e:
        raise BusyError(f"Another process is training in {folder}; wait for it, or give another folder.") from e
    try:
        yield
    finally:
        lock.release()


_LATER = (
    *("ema", "label_smoothing", "trunk_norm", "patience", "precision", "cutout", "prune", "teacher"),
    *("frozen_layers", "lr_end", "norm_images", "noise", "sharpness", "cutmix"),
)
_DEFAULTS = {name: getattr(Recipe, name) for name in _LATER}


def same_run_or_raise(folder: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """Return the folder's result if it holds this very run, finished; raise `ArgumentError` if it holds another.

    A run at a constant learning rate is the beginning of a longer one: it is made that one, and goes on.
    """
    file = folder / "recipe.json"
    found = read_json(file) if file.is_file() else None
    if found is not None and isinstance(found.get("recipe"), dict):
        # A run of an earlier version, whose recipes had fewer fields, is the same run where the new ones are unused.
        found["recipe"] = _DEFAULTS | found["recipe"]
    if found is not None and found != about and not _begins(found, about):
        raise ArgumentError(
            f"{folder} holds a run of another recipe or other data; give another folder, or delete this one."
        )
    if found != about:
        (folder / "result.json").unlink(missing_ok=True)  # first, or a kill here would leave the shorter run's result
        write_text(file, json.dumps(about, indent=1))
    result = folder / "result.json"
    return read_json(result) if result.is_file() else None


def _begins(shorter: dict[str, Any], longer: dict[str, Any]) -> bool:
    """Whether two runs differ in the number of epochs alone, at a constant learning rate and one size."""
    try:
        (side, epochs), *others = shorter["recipe"]["sizes"]
        lengthened = shorter | {"recipe": shorter["recipe"] | {"sizes": longer["recipe"]["sizes"]}}
        (same_side, more), *_ = longer["recipe"]["sizes"]
    except (KeyError, TypeError, ValueError):
        return False
    constant = longer["recipe"]["schedule"] == "constant" and not longer["recipe"]["prune"] and not others
    return constant and side == same_side and epochs < more and lengthened == longer


def read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as e:
        raise DataError(f"{file} is damaged ({e}); delete the folder to start the run again.") from e


def write_text(file: Path, text: str) -> None:
    write_whole(file, text.encode())


def write_tensors(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)
    temporary.replace(file)
