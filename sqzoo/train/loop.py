"""The training loop, top to bottom: data, optimiser, epochs, evaluation, checkpoint; it resumes where it stopped.

Each epoch starts from a random state made of the seed and the epoch's number, so a run that was killed and started
again ends in the same weights, on the same machine, as one that was not.
"""

import ctypes
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from tqdm import tqdm

from sqzoo.data import Dataset, hold_out
from sqzoo.environment import environment
from sqzoo.errors import ArgumentError
from sqzoo.hashing import file_sha256
from sqzoo.registry import create_model, start_from_imagenet
from sqzoo.train.batches import FrozenBatches, ImageBatches
from sqzoo.train.checkpoint import alone_in, read_json, resume, same_run_or_raise, write_tensors, write_text
from sqzoo.train.evaluate import score
from sqzoo.train.recipe import Recipe
from sqzoo.train.shared import SharedTrunk
from sqzoo.weights import load_trunk, trunk_source


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
    with alone_in(folder):
        return _train(recipe, train_set, test_set, folder, trunk, Path(cache) if cache else None, device, progress)


def _train(
    recipe: Recipe,
    train_set: Dataset,
    test_set: Dataset,
    folder: Path,
    trunk: str | os.PathLike[str] | None,
    cache: Path | None,
    device: str,
    progress: bool,
) -> dict[str, Any]:
    about = {"recipe": recipe.to_json(), "train_digest": train_set.digest, "test_digest": test_set.digest}
    if recipe.start != "imagenet":
        about["start_sha256"] = _start_sha256(recipe.start)
    same_run_or_raise(folder, about)
    if (folder / "result.json").is_file():
        return read_json(folder / "result.json")
    surroundings = environment()  # now, while the commit is that of the code in memory

    torch.manual_seed(recipe.seed)
    if "+" in recipe.model:
        model: nn.Module = SharedTrunk(recipe.model)
        if recipe.start == "imagenet":
            with trunk_source(trunk):
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
    data: FrozenBatches | ImageBatches
    if frozen:
        data = FrozenBatches(recipe, model, train_set, test_set, held, cache, device, progress)
    else:
        data = ImageBatches(recipe, model, train_set, test_set, held, device)

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
    state = resume(folder, learned, parameters, optimizer)

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
            desc=f"{recipe.model} epoch {epoch + 1}/{recipe.epochs}, {side} px{state.text(recipe.epochs)}",
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
    write_tensors(folder / "best.safetensors", learned, {"format": "pt"})
    state.write_log(folder)  # once more, should the run have been killed between its last checkpoint and its log
    write_text(folder / "result.json", json.dumps(result, indent=1))
    return result


def _scores(
    forward: Callable[[torch.Tensor], torch.Tensor], data: FrozenBatches | ImageBatches, held_out: bool
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
