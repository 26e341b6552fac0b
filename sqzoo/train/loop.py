"""The training loop, top to bottom: data, optimiser, epochs, evaluation, checkpoint; it resumes where it stopped.

Each epoch starts from a random state made of the seed and the epoch's number, so a run that was killed and started
again ends in the same weights, on the same machine, as one that was not.
"""

import ctypes
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from sqzoo.data import Dataset, hold_out
from sqzoo.environment import environment
from sqzoo.errors import ArgumentError, DataError
from sqzoo.hashing import file_sha256, tensors_sha256
from sqzoo.registry import create_model, start_from_imagenet
from sqzoo.train.evaluate import Metrics, score
from sqzoo.train.features import FeatureCache, trunk_features
from sqzoo.train.recipe import Recipe
from sqzoo.train.shared import SharedTrunk
from sqzoo.weights import load_trunk

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def train(
    recipe: Recipe,
    train_set: Dataset,
    test_set: Dataset,
    run: str | os.PathLike[str],
    *,
    trunk: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train by a recipe and return the result, which is also the run folder's `result.json`.

    run: folder of the run: recipe.json, log.jsonl (a line an epoch), best.safetensors, last.safetensors (model and
    optimiser, for resuming), result.json. A folder with an unfinished run of the same recipe and data is resumed.
    trunk: file or folder with the ImageNet trunk (see `sqzoo.create_model`). cache: folder for the frozen trunk's
    features; None keeps them in memory.

    Held-out images are looked at after every epoch. Test images are, too, where the recipe selects on them (the
    paper's way); otherwise once, at the end, with the chosen weights.
    """
    _keep_freed_memory()
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"recipe": recipe.to_json(), "train_digest": train_set.digest, "test_digest": test_set.digest}
    if recipe.start != "imagenet":
        about["start_sha256"] = _start_sha256(recipe.start)
    _same_run_or_raise(folder, about)
    if (folder / "result.json").is_file():
        return _read_json(folder / "result.json")
    surroundings = environment()  # now, while the commit is that of the code in memory

    torch.manual_seed(recipe.seed)
    if "+" in recipe.model:
        model: nn.Module = SharedTrunk(recipe.model)
        if recipe.start == "imagenet":
            start_from_imagenet(model, "sq1")
    else:
        model = create_model(recipe.model, init="imagenet", trunk=trunk, **recipe.model_args)
    if recipe.head == "last" and recipe.model == "alexnet_cifar":
        whole = model.state_dict() | load_trunk("alexnet", trunk, linear=True)
        model.load_state_dict(whole, strict=True)
    if recipe.start != "imagenet":
        _start_from(model, recipe.start)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept, held = hold_out(train_set.labels, recipe.hold_out)
    frozen = recipe.trunk == "frozen"
    source = _Frozen if frozen else _Images
    data = source(recipe, model, train_set, test_set, kept, held, Path(cache) if cache else None, device, progress)

    parameters = {n: p for n, p in model.named_parameters() if not (frozen and n.startswith("features."))}
    if recipe.head == "last":
        last = {id(p) for p in model.get_classifier().parameters()}  # type: ignore[operator]
        parameters = {n: p for n, p in parameters.items() if id(p) in last}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in parameters)
    # Batch norm, which a head may have, changes its running statistics too.
    learned = {n: t.detach() for n, t in (parameters | dict(model.named_buffers())).items()}
    decayed = [p for p in parameters.values() if p.dim() > 1]
    plain = [p for p in parameters.values() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)  # Adam where weight_decay is 0
    steps_per_epoch = -(-len(kept) // recipe.batch_size)
    state = _resume(folder, learned, parameters, optimizer)

    for epoch in range(state.epoch, recipe.epochs):
        began = time.perf_counter()
        side = data.enter_epoch(epoch)
        torch.manual_seed(recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(len(kept)).numpy()
        model.train()
        for name, parameter in parameters.items():
            parameter.requires_grad_(epoch >= recipe.head_epochs or not name.startswith("features."))
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        bar = tqdm(
            data.training(kept[order]),
            total=steps_per_epoch,
            desc=f"{recipe.model} epoch {epoch + 1}/{recipe.epochs}, {side} px{state.text}",
            disable=not progress,
            leave=False,
        )
        for step, (inputs, labels) in enumerate(bar):
            lr = _learning_rate(recipe, epoch * steps_per_epoch + step, recipe.epochs * steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr
            logits = data.forward(inputs)
            loss = F.cross_entropy(logits, labels.repeat(len(logits) // len(labels)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss_sum += loss.detach() * len(labels)
        state.seconds += time.perf_counter() - began

        model.eval()
        seen = {"held_out": score(data.forward, data.held_out())} if len(held) else {}
        if recipe.select == "test":
            seen["test"] = score(data.forward, data.test())
        row: dict[str, Any] = {"epoch": epoch + 1, "side": side, "train_loss": loss_sum.item() / len(kept)}
        row |= {name: dataclasses.asdict(m) for name, m in seen.items()}
        row |= {"seconds": round(time.perf_counter() - began, 2), "time": time.strftime("%Y-%m-%dT%H:%M:%S")}
        state.record(epoch + 1, row, seen[recipe.select], learned)
        state.save(folder, learned, parameters, optimizer)
        if progress:
            tqdm.write(f"{recipe.model} epoch {epoch + 1}/{recipe.epochs} {json.dumps(row)}")

    with torch.no_grad():
        for name, tensor in learned.items():
            tensor.copy_(state.best[name])
    model.eval()
    data.enter_epoch(recipe.epochs - 1)
    result = about | {
        "epoch": state.best_epoch,
        **_scores(data.forward, data, len(held) > 0),
        "training_seconds": round(state.seconds, 1),
        "feature_seconds": round(data.feature_seconds, 1),
        "params": sum(p.numel() for p in model.parameters()),
        "environment": surroundings,
        "log": state.log,
    }
    if isinstance(model, SharedTrunk):
        result["models"] = {name: _scores(model.alone(name), data, len(held) > 0) for name in model.depths}
    _write_tensors(folder / "best.safetensors", learned, {"format": "pt"})
    state.write_log(folder)  # once more, should the run have been killed between its last checkpoint and its log
    _write_text(folder / "result.json", json.dumps(result, indent=1))
    return result


def _scores(
    forward: Callable[[torch.Tensor], torch.Tensor], data: "_Frozen | _Images", held_out: bool
) -> dict[str, dict[str, Any] | None]:
    return {
        "test": dataclasses.asdict(score(forward, data.test())),
        "held_out": dataclasses.asdict(score(forward, data.held_out())) if held_out else None,
    }


def _start_sha256(file: str) -> str:
    try:
        return file_sha256(file)
    except OSError as e:
        raise ArgumentError(f"Cannot read start={file!r} ({e.strerror}); give a run's best.safetensors.") from e


def _start_from(model: nn.Module, file: str) -> None:
    """Load an all-layers run's trunk, and its head if the names and shapes are this model's."""
    try:
        start = load_file(file)
    except Exception as e:  # whatever a foreign or damaged file makes safetensors raise
        raise ArgumentError(f"start={file!r} is not a safetensors file ({e}); give a run's best.safetensors.") from e
    own = model.state_dict()
    fitting = {k: v for k, v in start.items() if k in own and v.shape == own[k].shape}
    trunk = {k: v for k, v in fitting.items() if k.startswith("features.")}
    missing = [k for k in own if k.startswith("features.") and k not in trunk]
    if missing:
        raise ArgumentError(
            f"start={file!r} lacks {len(missing)} tensors of the trunk, {missing[0]} first; give the best.safetensors "
            "of a finetune run."
        )
    model.load_state_dict(own | (fitting if fitting.keys() == own.keys() else trunk), strict=True)


def _keep_freed_memory() -> None:
    """Have glibc keep large freed blocks instead of giving each back to the kernel and faulting it in again.

    Activations are megabytes each: measured on two cores, all-layer training at 128 pixels rose from 205 to 265
    images a second. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 512 << 20)


def _learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    if recipe.schedule == "constant":
        return recipe.lr
    rise = max(1, int(recipe.warm_up * steps))
    if step < rise:
        return recipe.lr * (step + 1) / rise
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


class _Frozen:
    """Batches of cached trunk features; `forward` is the head alone."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        train_set: Dataset,
        test_set: Dataset,
        kept: np.ndarray,
        held: np.ndarray,
        cache: Path | None,
        device: str,
        progress: bool,
    ) -> None:
        self.batch_size, self.device, self.held = recipe.batch_size, device, held
        self.side = recipe.sizes[0][0]
        self.forward: Callable[[torch.Tensor], torch.Tensor] = model.forward_head  # type: ignore[assignment]
        first = model.input_dropout()  # type: ignore[operator]
        self.drop_rate = first.p if first else 0.0
        if first:
            first.p = 0.0  # the cache does it, on the non-zeros alone
        self.labels = (torch.from_numpy(train_set.labels), torch.from_numpy(test_set.labels))
        began = time.perf_counter()
        self.train_features, self.test_features = (
            self._features(model, data, recipe, cache, name if progress else None)
            for name, data in (("train", train_set), ("test", test_set))
        )
        self.feature_seconds = time.perf_counter() - began

    def _features(
        self, model: nn.Module, data: Dataset, recipe: Recipe, cache: Path | None, name: str | None
    ) -> FeatureCache:
        with tqdm(
            total=len(data), desc=f"trunk features, {name}", unit="img", disable=name is None, leave=False
        ) as bar:
            return trunk_features(
                model.features,  # type: ignore[arg-type]
                data.images,
                recipe.preprocessing(self.side),
                data.digest,
                cache,
                lambda done, of: bar.update(done - bar.n),
            )

    def enter_epoch(self, epoch: int) -> int:
        return self.side

    def training(self, order: np.ndarray) -> Batches:
        return self._batches(self.train_features, self.labels[0], order, self.drop_rate)

    def held_out(self) -> Batches:
        return self._batches(self.train_features, self.labels[0], self.held)

    def test(self) -> Batches:
        return self._batches(self.test_features, self.labels[1], np.arange(len(self.test_features)))

    def _batches(
        self, features: FeatureCache, labels: torch.Tensor, order: np.ndarray, drop_rate: float = 0.0
    ) -> Batches:
        for low in range(0, len(order), self.batch_size):
            part = order[low : low + self.batch_size]
            yield features.batch(part, drop_rate).to(self.device), labels[torch.from_numpy(part)].to(self.device)


class _Images:
    """Batches of images, cropped and flipped at 32 pixels, enlarged and normalised by batch; all layers run."""

    feature_seconds = 0.0

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        train_set: Dataset,
        test_set: Dataset,
        kept: np.ndarray,
        held: np.ndarray,
        cache: Path | None,
        device: str,
        progress: bool,
    ) -> None:
        self.recipe, self.forward, self.device = recipe, model, device
        self.sides = [side for side, epochs in recipe.sizes for _ in range(epochs)]
        self.train_set, self.test_set, self.held_set = train_set, test_set, train_set[held]

    def enter_epoch(self, epoch: int) -> int:
        self.prepare = self.recipe.preprocessing(self.sides[epoch])
        return self.sides[epoch]

    def training(self, order: np.ndarray) -> Batches:
        for low in range(0, len(order), self.recipe.batch_size):
            part = self.train_set[order[low : low + self.recipe.batch_size]]
            images = augment(torch.from_numpy(part.images), self.recipe.pad, self.recipe.flip)
            yield self.prepare(images).to(self.device), torch.from_numpy(part.labels).to(self.device)

    def held_out(self) -> Batches:
        return self._batches(self.held_set)

    def test(self) -> Batches:
        return self._batches(self.test_set)

    def _batches(self, data: Dataset) -> Batches:
        for low in range(0, len(data), 32):
            part = data[low : low + 32]
            yield self.prepare(part.images).to(self.device), torch.from_numpy(part.labels).to(self.device)


def augment(images: torch.Tensor, pad: int, flip: bool) -> torch.Tensor:
    """Shift (N, H, W, 3) uint8 images by up to `pad` pixels (edges reflected) and mirror half of them."""
    count, height, width, _ = images.shape
    rows = torch.arange(height).repeat(count, 1) + torch.randint(-pad, pad + 1, (count, 1))
    columns = torch.arange(width).repeat(count, 1) + torch.randint(-pad, pad + 1, (count, 1))
    rows, columns = _reflect(rows, height), _reflect(columns, width)
    if flip:
        columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    return images[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


@dataclass
class _State:
    """Where a run stands: what a checkpoint holds."""

    epoch: int
    best_epoch: int
    best_score: tuple[float, float]
    best: dict[str, torch.Tensor]
    seconds: float
    log: list[dict[str, Any]]

    @property
    def text(self) -> str:
        return f", best {self.best_score[0]:.2f} %" if self.best_epoch else ""

    def record(self, epoch: int, row: dict[str, Any], metrics: Metrics, learned: dict[str, torch.Tensor]) -> None:
        self.epoch = epoch
        self.log.append(row)
        if (metrics.top1, -metrics.loss) > self.best_score:
            self.best_epoch, self.best_score = epoch, (metrics.top1, -metrics.loss)
            self.best = {n: t.clone() for n, t in learned.items()}

    def save(
        self,
        folder: Path,
        learned: dict[str, torch.Tensor],
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        tensors = {f"model.{n}": t for n, t in learned.items()}
        tensors |= {f"best.{n}": t for n, t in self.best.items()}
        for name, parameter in parameters.items():
            tensors |= {f"optimizer.{name}.{k}": v for k, v in optimizer.state[parameter].items()}
        about = {"epoch": self.epoch, "best_epoch": self.best_epoch, "best_score": self.best_score}
        run = json.dumps(about | {"seconds": self.seconds, "log": self.log})
        metadata = {"format": "pt", "run": run, "sha256": _seal(run, tensors)}
        _write_tensors(folder / "last.safetensors", tensors, metadata)
        self.write_log(folder)

    def write_log(self, folder: Path) -> None:
        _write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.log))


def _resume(
    folder: Path,
    learned: dict[str, torch.Tensor],
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> _State:
    """Return the state of an earlier start of this run, its weights and optimiser restored, or a fresh one."""
    file = folder / "last.safetensors"
    if not file.is_file():
        return _State(0, 0, (-1.0, 0.0), {}, 0.0, [])
    from safetensors import safe_open

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
        for name, tensor in learned.items():
            tensor.copy_(tensors[f"model.{name}"])
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
    return _State(about["epoch"], about["best_epoch"], score_, best, about["seconds"], about["log"])


def _seal(run: str, tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(f"{run}\n{tensors_sha256(tensors)}".encode()).hexdigest()


def _same_run_or_raise(folder: Path, about: dict[str, Any]) -> None:
    file = folder / "recipe.json"
    if not file.is_file():
        _write_text(file, json.dumps(about, indent=1))
    elif _read_json(file) != about:
        raise ArgumentError(
            f"{folder} holds a run of another recipe or other data; give another folder, or delete this one."
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as e:
        raise DataError(f"{file} is damaged ({e}); delete the folder to start the run again.") from e


def _write_text(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _write_tensors(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)
    temporary.replace(file)
