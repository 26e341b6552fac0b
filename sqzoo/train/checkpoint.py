"""A run folder: its lock, the checkpoint that a run resumes from, its log and its result; all written atomically."""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from tqdm import tqdm

from sqzoo.errors import ArgumentError, BusyError, DataError, WeightsError, shown, why
from sqzoo.files import claim_folder, open_regular, read_json, tensors_sha256, write_tensors, write_text
from sqzoo.train.recipes import Recipe
from sqzoo.weights.header import read_selected, read_tensors
from sqzoo.weights.untrusted import LARGEST, read_bytes

_LARGEST = 1 << 31  # bytes of a run's tensors: AlexNet's, with AdamW's and averages, take 1.1 billion


@dataclass
class Progress:
    """How far a run is: epochs done, the best of them and its weights, training seconds, a log row per epoch."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: list[float] = field(default_factory=lambda: [-1.0, 0.0])
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)

    def record(self, row: dict[str, Any], recipe: Recipe, weights: dict[str, torch.Tensor]) -> None:
        """Add an epoch's row, and keep its weights if it is the best of those that the recipe may choose."""
        self.epoch = row["epoch"]
        self.log.append(row)
        if (recipe.select == "last" or recipe.prune) and self.epoch < recipe.epochs:
            return
        score = [row[recipe.select]["top1"], -row[recipe.select]["loss"]] if recipe.select in row else [0.0, 0.0]
        if score > self.best_score:
            self.best_epoch, self.best_score = self.epoch, score
            self.best = {n: t.clone() for n, t in weights.items()}


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Claim a run folder (see `claim_folder`) and hold its lock; raise `BusyError` while another process trains."""
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
    """Return the result of a finished run of these facts, None for a new or unfinished one; refuse any other run."""
    file = folder / "recipe.json"
    if file.is_file() and (other := read_json(file)) != facts:
        differing = sorted(k for k in facts.keys() | other.keys() if facts.get(k) != other.get(k))
        raise ArgumentError(
            f"{folder} holds a run of another recipe or other data ({', '.join(differing)} not the same); give another "
            "folder, or delete this one."
        )
    result = folder / "result.json"
    return read_json(result) if result.is_file() else None


def save(folder: Path, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
    """Write the checkpoint `last.safetensors`, a run's tensors and progress, and `log.jsonl`."""
    run = json.dumps({k: v for k, v in vars(progress).items() if k != "best"})
    tensors = tensors | {f"best.{n}": t for n, t in progress.best.items()}
    write_tensors(folder / "last.safetensors", tensors, {"format": "pt", "run": run, "sha256": _sha256(run, tensors)})
    write_log(folder, progress)


def write_log(folder: Path, progress: Progress) -> None:
    """Write `log.jsonl`, a line per epoch."""
    write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in progress.log))


def restore(folder: Path) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Read what `save` wrote; before the first checkpoint, no progress and no tensors."""
    file = folder / "last.safetensors"
    if not file.is_file():
        return Progress(), {}
    try:
        with open_regular(file) as stream:  # its header is checked first
            tensors = read_selected(stream, shown(file), lambda name: True, _LARGEST)
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        if metadata["sha256"] != _sha256(metadata["run"], tensors):
            raise ValueError("its SHA-256 is not the one noted in it")
        progress = Progress(**json.loads(metadata["run"]))
    except Exception as e:  # whatever a damaged file makes safetensors raise
        raise DataError(f"{file} is damaged ({e}); delete it to start the run again.") from e
    progress.best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
    return progress, tensors


def _sha256(run: str, tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(f"{run}\n{tensors_sha256(tensors)}".encode()).hexdigest()


def best_weights(folder: Path, result: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read a finished run's weights, whose SHA-256 must be the one in its result.

    Raises:
        WeightsError: the file is missing, cut or changed.
    """
    file, advice = folder / "best.safetensors", f"delete {shown(folder)} and train again."
    try:
        data = read_bytes(file, LARGEST)
    except OSError as e:
        raise WeightsError(f"Cannot read {shown(file)} ({why(e)}); {advice}") from e
    if hashlib.sha256(data).hexdigest() != result.get("weights_sha256"):
        raise WeightsError(f"{shown(file)} is not what the run wrote, result.json has another SHA-256; {advice}")
    return read_tensors(data, str(file))


def tensorboard(folder: Path, epoch: int) -> Any:
    """Open a TensorBoard writer for a run of `epoch` epochs so far; a context of None without that package."""
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=epoch + 1)
    except ImportError:
        return nullcontext()


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """Return an epoch's losses and accuracies by name, such as "val top1"."""
    metrics = {f"{name} {k}": row[name][k] for name in ("val", "test") if name in row for k in ("loss", "top1")}
    return {"train loss": row["train_loss"], **metrics}


def log_row(progress: Progress, epochs: int, events: Any, show: bool) -> None:
    """Write the last epoch's TensorBoard `events`; if `show`, print its line, with the minutes left of `epochs`."""
    row = progress.log[-1]
    left = sum(r["seconds"] for r in progress.log) / progress.epoch * (epochs - progress.epoch) / 60
    cells = [f"epoch {row['epoch']:>3}/{epochs}", f"{row['size']} px"]
    for name, value in scalars(row).items():
        cells.append(f"{name} {value:.2f} %" if "top1" in name else f"{name} {value:.4f}")
        if events:
            events.add_scalar(name, value, row["epoch"])
    cells += [f"{row['seconds']:.0f} s", f"{left:.0f} min left", "best" if progress.best_epoch == row["epoch"] else ""]
    if show:
        tqdm.write("  ".join(cells).rstrip(), file=sys.stderr)
