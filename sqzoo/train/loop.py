"""The training loop: epochs over batches, one network or many heads in the same pass; it resumes where it stopped.

Each epoch starts from a random state made of the seed and the epoch's number, so a run that was killed and started
again ends in the same weights, on the same machine, as one that was not. Heads that share a pass each have their own
random stream, so each ends in the same weights as when trained alone.
"""

import ctypes
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sqzoo.data import Dataset
from sqzoo.errors import ArgumentError
from sqzoo.train.batches import FrozenBatches, ImageBatches
from sqzoo.train.checkpoint import alone_in
from sqzoo.train.distributed import joined, part, processes, rank
from sqzoo.train.evaluate import scores
from sqzoo.train.learner import Learner
from sqzoo.train.recipe import Recipe


def train(
    recipe: Recipe,
    train_set: Dataset,
    test_set: Dataset | None,
    run: str | os.PathLike[str],
    *,
    trunk: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train by a recipe and return the result, which is also the run folder's `result.json`.

    run: folder of the run: recipe.json, log.jsonl (a line an epoch), best.safetensors, last.safetensors (model and
    optimiser, for resuming), result.json. A folder with an unfinished run of the same recipe and data is resumed; a
    finished run at a constant learning rate goes on where the recipe has more epochs than it was trained for.
    trunk: file or folder with the ImageNet trunk (see `sqzoo.create_model`). cache: folder for the frozen trunk's
    features; None keeps them in memory.

    Under torchrun an all-layers run is data-parallel: each process takes its part of every batch, and the weights are
    those of one process up to rounding (see `distributed.py`); device="cuda" gives each process its own GPU.

    Held-out images are looked at after every epoch. Test images are, too, where the recipe selects on them (the
    paper's way) or logs them; otherwise once, at the end, with the chosen weights. Without a test set the result's
    "test" is None.
    """
    where: dict[str, Any] = {"trunk": trunk, "cache": cache, "device": device, "progress": progress}
    return train_together([recipe], train_set, test_set, [run], **where)[0]


def train_together(
    recipes: Sequence[Recipe],
    train_set: Dataset,
    test_set: Dataset | None,
    runs: Sequence[str | os.PathLike[str]],
    *,
    trunk: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train several heads of one frozen trunk in one pass over its features; return the results in order.

    Each recipe has its own run folder, and ends there in the same weights, bit for bit on the CPU, as by `train`
    alone. They may differ in the head's model and arguments, learning rate and number of epochs; seed, batch size,
    held-out images, precision, preprocessing and trunk are those of all. The other arguments are those of `train`.
    """
    keep_freed_memory()
    common = {_common(r) for r in recipes}
    if len(common) != 1 or (len(recipes) > 1 and recipes[0].trunk != "frozen"):
        raise ArgumentError(
            "Recipes trained together need frozen trunks and the same seed, batch_size, hold_out, side, crop_pct, "
            "normalisation and precision; train the others by themselves."
        )
    if test_set is None and any(r.looks_at_test for r in recipes):
        raise ArgumentError("This recipe looks at test images and there are none; give select='held_out'.")
    folders = [Path(run) for run in runs]
    with ExitStack() as locks:
        device = locks.enter_context(joined(device))
        if processes() > 1 and recipes[0].trunk == "frozen":
            raise ArgumentError("A frozen trunk's heads train in one process; start the same command without torchrun.")
        progress = progress and rank() == 0
        for folder in folders if rank() == 0 else ():
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(alone_in(folder))
        learners = [Learner(r, train_set, test_set, f, trunk, device) for r, f in zip(recipes, folders, strict=True)]
        unfinished = [learner for learner in learners if not learner.finished]
        if unfinished:
            _train(unfinished, train_set, test_set, Path(cache) if cache else None, device, progress)
        return [learner.finished or {} for learner in learners]


def _train(
    learners: list[Learner],
    train_set: Dataset,
    test_set: Dataset | None,
    cache: Path | None,
    device: str,
    progress: bool,
) -> None:
    recipe = learners[0].recipe
    kept, held = train_set.split(recipe.hold_out)
    data: FrozenBatches | ImageBatches
    if recipe.trunk == "frozen":
        models = [learner.model for learner in learners]
        data = FrozenBatches(recipe, models, train_set, test_set, held, cache, device, progress)
    else:
        data = ImageBatches(recipe, train_set, test_set, held, device)
    steps_per_epoch = -(-len(kept) // recipe.batch_size)
    epochs = max(learner.recipe.epochs for learner in learners)

    for epoch in range(min(learner.state.epoch for learner in learners), epochs):
        # Others have this epoch behind them: fewer epochs in their recipe, or a kill between two checkpoints.
        active = [ln for ln in learners if ln.state.epoch == epoch < ln.recipe.epochs and not ln.stopped]
        if not active:
            continue
        began = time.perf_counter()
        side = data.enter_epoch(epoch)
        torch.manual_seed(recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(len(kept)).numpy()
        for learner in active:
            learner.begin(epoch)
        streams = [_random_state(device)] * len(active)
        heads = f"{len(active)} heads" if len(active) > 1 else active[0].recipe.model
        bar = tqdm(
            data.training(kept[order]),
            total=steps_per_epoch,
            desc=f"{heads} epoch {epoch + 1}/{epochs}, {side} px{active[0].state.text(epochs)}",
            disable=not progress,
            leave=False,
        )
        numbers = torch.from_numpy(kept[order]).split(recipe.batch_size)
        for step, (inputs, labels, answers) in enumerate(bar):
            for i, learner in enumerate(active):
                with _own_stream(streams, i, device):
                    done, steps = epoch * steps_per_epoch + step, learner.recipe.epochs * steps_per_epoch
                    learner.step(inputs, labels, answers, numbers[step], done, steps)
        seconds = time.perf_counter() - began

        few = kept[: recipe.norm_images]
        for learner in active:
            learner.look(data.plain(few[part(len(few))]))
        forwards = [learner.forward for learner in active]
        seen = {"held_out": scores(forwards, data.held_out())} if len(held) else {}
        if any(learner.recipe.looks_at_test for learner in active):
            seen["test"] = scores(forwards, data.test())
        took = time.perf_counter() - began
        for i, learner in enumerate(active):
            looked = {n: m[i] for n, m in seen.items() if n != "test" or learner.recipe.looks_at_test}
            row = learner.end(epoch, side, looked, seconds / len(active), took / len(active))
            if progress:
                name = f"{learner.folder.name}: " if len(learners) > 1 else ""
                tqdm.write(f"{name}{learner.recipe.model} epoch {epoch + 1}/{epochs} {json.dumps(row)}")

    for learner in learners:
        learner.finished = learner.finish(data)


_OWN = (
    *("model", "model_args", "head", "sizes", "select", "log_test", "lr", "weight_decay", "schedule", "warm_up"),
    *("lr_end", "patience", "teacher"),
)


def _common(recipe: Recipe) -> str:
    """Return what recipes that are trained together must have in common, the trunk's layers apart."""
    shared = {k: v for k, v in recipe.to_json().items() if k not in _OWN}
    return json.dumps([shared, recipe.sizes[0][0]])


def _random_state(device: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.startswith("cuda") else None


@contextmanager
def _own_stream(streams: list[tuple[torch.Tensor, torch.Tensor | None]], i: int, device: str) -> Iterator[None]:
    """Draw random numbers from the i-th of several streams; one alone is the global one."""
    if len(streams) == 1:
        yield
        return
    torch.set_rng_state(streams[i][0])
    if streams[i][1] is not None:
        torch.cuda.set_rng_state(streams[i][1], device)  # type: ignore[arg-type]
    yield
    streams[i] = _random_state(device)


def keep_freed_memory() -> None:
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
