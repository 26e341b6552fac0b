"""A run folder: its lock, the checkpoint that a run resumes from, its log and its result, each file atomic."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open

from sqzoo.errors import ArgumentError, BusyError, DataError, WeightsError, shown, why
from sqzoo.files import claim_folder, open_regular, read_json, tensors_sha256, write_json, write_tensors, write_text
from sqzoo.weights.header import read_tensors, read_wanted
from sqzoo.weights.untrusted import LARGEST, read_bytes

_LARGEST = 1 << 31  # bytes of the tensors of a run: those of AlexNet's, with AdamW and averages, take 1.1 billion


@dataclass
class Progress:
    """How far a run is: epochs done, the best of them and its tensors, training seconds, a log row per epoch."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: tuple[float, float] = (-1.0, 0.0)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)

    def record(self, row: dict[str, Any], score: tuple[float, float] | None, weights: dict[str, torch.Tensor]) -> None:
        """Note an epoch's row, and keep its weights if its score is the best; None may not be chosen."""
        self.epoch = row["epoch"]
        self.log.append(row)
        if score and score > self.best_score:
            self.best_epoch, self.best_score = self.epoch, score
            self.best = {n: t.clone() for n, t in weights.items()}


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Claim the run folder (see `claim_folder`) and hold its lock; raise `BusyError` where another process trains."""
    claim_folder(folder)
    lock = FileLock(folder / ".sqzoo-run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as e:
        raise BusyError(f"Another process is training in {folder}; wait for it, or give another folder.") from e
    try:
        yield
    finally:
        lock.release()


def open_run(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """Return the folder's result if it holds this very run, finished; refuse another one; note a new one's facts."""
    file = folder / "recipe.json"
    if not file.is_file():
        write_json(file, facts)
    elif (other := read_json(file)) != facts:
        differing = sorted(k for k in facts.keys() | other.keys() if facts.get(k) != other.get(k))
        raise ArgumentError(
            f"{folder} holds a run of another recipe or other data (their {', '.join(differing)} differ); give another "
            "folder, or delete this one."
        )
    result = folder / "result.json"
    return read_json(result) if result.is_file() else None


def save(folder: Path, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
    """Write `last.safetensors`, a learner's tensors and the progress, and `log.jsonl`."""
    run = json.dumps({k: v for k, v in vars(progress).items() if k != "best"})
    tensors = tensors | {f"best.{n}": t for n, t in progress.best.items()}
    write_tensors(folder / "last.safetensors", tensors, {"format": "pt", "run": run, "sha256": _seal(run, tensors)})
    write_log(folder, progress)


def write_log(folder: Path, progress: Progress) -> None:
    """Write `log.jsonl`, a line per epoch."""
    write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in progress.log))


def restore(folder: Path) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Read what `save` wrote; of a run that has not saved yet, its beginning and no tensors."""
    file = folder / "last.safetensors"
    if not file.is_file():
        return Progress(), {}
    try:
        with open_regular(file) as stream:  # its header is checked first
            tensors = read_wanted(stream, shown(file), lambda name: True, _LARGEST)
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        if metadata["sha256"] != _seal(metadata["run"], tensors):
            raise ValueError("its SHA-256 is not the one noted in it")
        progress = Progress(**json.loads(metadata["run"]))
    except Exception as e:  # whatever a damaged file makes safetensors raise
        raise DataError(f"{file} is damaged ({e}); delete it to start the run again.") from e
    progress.best_score = (progress.best_score[0], progress.best_score[1])
    progress.best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
    return progress, tensors


def _seal(run: str, tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(f"{run}\n{tensors_sha256(tensors)}".encode()).hexdigest()


def best_weights(folder: Path, result: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read a finished run's weights, once their SHA-256 is the one that its result states.

    Raises:
        WeightsError: the file is missing, cut or changed.
    """
    file = folder / "best.safetensors"
    try:
        data = read_bytes(file, LARGEST)
    except OSError as e:
        raise WeightsError(f"Cannot read {shown(file)} ({why(e)}); delete {shown(folder)} and train again.") from e
    if hashlib.sha256(data).hexdigest() != result.get("weights_sha256"):
        raise WeightsError(
            f"{shown(file)} is not what the run wrote: its SHA-256 is not the one in result.json; delete "
            f"{shown(folder)} and train again."
        )
    return read_tensors(data, str(file))
