"""The training loop: per epoch batches, forward, loss, backward, step, EMA; then validation and a checkpoint.

Each epoch seeds its random numbers from the recipe's seed and its own number, so a run that was killed and resumed ends
in the weights of an uninterrupted one: bit for bit on a CPU, up to the order of max pooling's sums on a GPU.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from sqzoo.data import Dataset
from sqzoo.environment import check_device, environment, keep_freed_memory, pick_precision
from sqzoo.errors import ArgumentError
from sqzoo.evaluation import exact_arithmetic, metrics
from sqzoo.files import file_sha256, write_json, write_tensors
from sqzoo.images.augment import augment, random_resized_crop
from sqzoo.models.sparse import SparseMaps
from sqzoo.models.upsample import Upsample
from sqzoo.registry import start_sha256
from sqzoo.train.batch_norm import fold_batch_norm
from sqzoo.train.checkpoint import Progress, log_row, open_run, restore, run_lock, save, scalars, tensorboard, write_log
from sqzoo.train.distributed import init_process_group, processes, rank, rank_zero_first, shard, sum_over_processes
from sqzoo.train.learner import Folder, Learner
from sqzoo.train.optimizer import learning_rate, prune
from sqzoo.train.recipes import Recipe


def train(
    recipe: Recipe,
    train_set: Dataset,
    test_set: Dataset | None,
    run: str | os.PathLike[str],
    *,
    trunk: Folder = None,
    cache: Folder = None,
    device: str = "cpu",
    precision: str = "auto",
    compile: bool = False,
    log_test: bool = False,
    progress: bool = True,
    on_epoch: Callable[[dict[str, Any]], Any] = lambda row: None,
) -> dict[str, Any]:
    """Train by a recipe; resume an unfinished run of the same recipe and data, return a finished one's result.

    Args:
        recipe: what to train, and how.
        train_set: images and labels, `recipe.hold_out` of them for validation.
        test_set: evaluated once, at the end, with the chosen weights; after every epoch if the recipe selects on it
            (as the paper does) or `log_test` is set; never if None.
        run: the run's folder: new, empty, or this very run's.
        trunk: file or folder with the ImageNet backbone.
        cache: folder for a frozen backbone's features; None keeps them in memory.
        device: "cpu", "cuda", "cuda:N" or "mps"; under torchrun "cuda" gives each process its own.
        precision: of the layers in training: "float32", "bfloat16" or "auto", the faster. The rest is float32.
        compile: compile the network (torch.compile), which takes minutes at first and then saves kernel launches.
        log_test: evaluate on the test images after every epoch; the choice of the epoch does not depend on it.
        progress: show a bar on a terminal, and a line per epoch.
        on_epoch: called with each epoch's row of the log; may raise to end the run.

    Returns:
        The content of result.json: recipe, data digests, chosen epoch, metrics "val" and "test", times, log.

    Raises:
        ArgumentError: the recipe, the device or the run's folder cannot be used, or training diverged.
        DataError: the run's checkpoint is damaged.
    """
    check_device(device)
    keep_freed_memory()
    log_test = log_test or recipe.select == "test"
    if test_set is None and log_test:
        raise ArgumentError("This recipe looks at test images and there are none; give select='val'.")
    precision = pick_precision(precision, device, device != "cpu" or recipe.layers == "all")
    sets = {"train": train_set} | ({"test": test_set} if test_set else {})
    facts: dict[str, Any] = {"recipe": recipe.to_json(), "precision": precision, "log_test": log_test}
    facts |= {f"{name}_digest": sets[name].digest if name in sets else None for name in ("train", "test")}
    facts["start_sha256"] = None if recipe.start == "imagenet" else start_sha256(recipe.start)
    folder, started = Path(run), environment()  # now, while the commit is that of the code in memory
    with ExitStack() as stack:
        device = stack.enter_context(init_process_group(device))
        stack.enter_context(exact_arithmetic())
        if processes() > 1 and recipe.layers != "all":
            raise ArgumentError("A frozen trunk's heads train in one process; start the same command without torchrun.")
        with rank_zero_first():
            stack.enter_context(run_lock(folder) if rank() == 0 else nullcontext())
            if finished := open_run(folder, facts):
                return finished
        show = progress and rank() == 0
        try:
            learner = Learner(recipe, sets, trunk, cache, device, precision == "bfloat16", show)
            learner.forward = torch.compile(learner.forward) if compile else learner.forward
            state, tensors = restore(folder)
            learner.load_state(tensors)
            if rank() == 0:  # not earlier: after a mistaken argument the right one is not refused
                write_json(folder / "recipe.json", facts)
            events = stack.enter_context(tensorboard(folder, state.epoch) if rank() == 0 else nullcontext())
            for epoch in range(state.epoch, recipe.epochs):
                if state.best_epoch and 0 < recipe.patience <= epoch - state.best_epoch:
                    break
                began = time.perf_counter()
                loss = train_epoch(learner, epoch, show)
                state.seconds += time.perf_counter() - began
                row: dict[str, Any] = {"epoch": epoch + 1, "size": recipe.size_at(epoch), "train_loss": loss}
                row |= evaluate_ema(learner, "val") | (evaluate_ema(learner, "test") if log_test else {})
                if not all(map(math.isfinite, scalars(row).values())):
                    raise ArgumentError(
                        f"The loss of epoch {epoch + 1} is NaN or infinite: training diverged at lr={recipe.lr:g}; "
                        "give a lower one, such as --set lr=0.0005, and another run folder."
                    )
                row |= {"seconds": time.perf_counter() - began, "time": time.strftime("%Y-%m-%dT%H:%M:%S")}
                state.record(row, recipe, learner.averaged_weights)
                if rank() == 0:
                    save(folder, state, learner.state())
                    log_row(state, recipe.epochs, events, show)
                on_epoch(row)
            result = facts | finalize(learner, state) | {"environment": started, "device": device, "log": state.log}
        except torch.OutOfMemoryError as e:
            raise ArgumentError(
                f"{device} has too little memory for batch_size={recipe.batch_size} at {recipe.sizes[-1][0]} pixels; "
                f"give a smaller batch, such as --set batch_size={max(1, recipe.batch_size // 2)}."
            ) from e
        if rank() == 0:
            write_tensors(folder / "best.safetensors", learner.averaged_weights, {"format": "pt"})
            result["weights_sha256"] = file_sha256(folder / "best.safetensors")
            write_log(folder, state)  # once more, should the run have been killed between checkpoint and log
            write_json(folder / "result.json", result)
        return result


def train_epoch(learner: Learner, epoch: int, show: bool) -> float:
    """Train on all training images once; return their mean loss (nats), the only value that leaves the device."""
    recipe, count, epochs = learner.recipe, len(learner.train_idx), learner.recipe.epochs
    learner.set_size(recipe.size_at(epoch))
    learner.network.train()
    torch.manual_seed(recipe.seed * 1_000_003 + epoch)
    batches = learner.train_idx[torch.randperm(count).to(learner.device)].split(recipe.batch_size)
    loss_sum, reduction = torch.zeros((), device=learner.device), "sum" if learner.distributed else "mean"
    title = f"{recipe.model} epoch {epoch + 1}/{epochs}, {recipe.size_at(epoch)} px"
    for number, idx in enumerate(tqdm(batches, title, leave=False, disable=None if show else True)):
        step = epoch * len(batches) + number
        inputs, labels = batch(learner, idx)
        logits = learner.forward(inputs).float()
        loss = F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=recipe.label_smoothing)
        loss = loss / len(idx) if learner.distributed else loss
        loss.backward()
        update(learner, step, epochs * len(batches))
        update_ema(learner, step)
        loss_sum += loss.detach() * len(idx)
    if learner.distributed:
        sum_over_processes([loss_sum])
    return loss_sum.item() / count


def batch(learner: Learner, idx: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Return this process's shard of a batch, (inputs, labels): features, or augmented and normalised images."""
    # Every process augments the whole batch: the random numbers are then the same for any number of processes.
    part = shard(len(idx)) if learner.distributed else slice(None)
    x, recipe = learner.inputs["train"][idx], learner.recipe
    if isinstance(x, SparseMaps):  # in bfloat16, products of all values are faster than float32's of the non-zeros
        x = x.dense(learner.dtype) if learner.half else x
    elif not learner.frozen:
        if recipe.random_crop:
            x = random_resized_crop(x, recipe.random_crop, recipe.flip)
        else:
            x = augment(x, recipe.pad, recipe.flip, recipe.cutout)
        x = learner.normalise(x[part]).to(learner.dtype)
    return x, learner.labels["train"][idx[part]]


@torch.no_grad()
def update(learner: Learner, step: int, steps: int) -> None:
    """Take step number `step` of `steps`: float32 gradients of the whole batch, learning rate, optimizers, pruning."""
    if learner.half:
        torch._foreach_copy_(learner.grads, [p.grad for p in learner.copies])
        for p, grad in zip(learner.copied, learner.grads, strict=True):
            p.grad = grad
    if learner.distributed:
        sum_over_processes([p.grad for p in learner.params.values() if p.grad is not None])
    masks = [p != 0 for p in learner.pruned]
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(learner.recipe, group["initial_lr"], step, steps)
        optimizer.step()
    for p, mask in zip(learner.pruned, masks, strict=True):
        prune(p, mask, learner.recipe.prune, step, steps)
    if learner.half:
        torch._foreach_copy_(learner.copies, learner.copied)
    for p in (*learner.model.parameters(), *learner.network.parameters()):
        p.grad = None


@torch.no_grad()
def update_ema(learner: Learner, step: int) -> None:
    """Move the averaged weights towards the weights; a young average moves faster, to forget the initial weights."""
    if learner.recipe.ema:
        names = [n for n, t in learner.weights.items() if t.is_floating_point()]
        averages, weights = ([of[n] for n in names] for of in (learner.averaged_weights, learner.weights))
        torch._foreach_lerp_(averages, weights, 1 - min(learner.recipe.ema, (1 + step) / (10 + step)))


@torch.inference_mode()
def evaluate_ema(learner: Learner, name: str) -> dict[str, dict[str, Any]]:
    """Evaluate the averaged weights on the "val" or "test" images; return {name: metrics}, {} without images."""
    source, idx = learner.evaluated[name]
    if not len(idx):
        return {}
    learner.averaged.eval()
    logits = []
    for few in idx.split(32 if learner.device == "cpu" else 1000):
        x = learner.inputs[source][few]
        x = x if isinstance(x, SparseMaps) else x.float() if learner.frozen else learner.normalise(x)
        logits.append(learner.averaged.forward_head(x) if learner.frozen else learner.averaged(x))
    return {name: vars(metrics(torch.cat(logits), learner.labels[source][idx].cpu()))}


def finalize(learner: Learner, state: Progress) -> dict[str, Any]:
    """Load the best epoch's weights, fold batch norm into them, evaluate them; return their entries of the result."""
    for name, tensor in learner.averaged_weights.items():
        tensor.copy_(state.best[name])
    size = learner.recipe.size_at(state.best_epoch - 1)
    learner.set_size(size)  # the weights are for images of it
    if learner.recipe.batch_norm:
        fold_batch_norm(learner.averaged.features)
        learner.averaged_weights = learner.averaged.state_dict()
    up = learner.averaged.upsample
    return {
        "epoch": state.best_epoch,
        "size": size,
        "upsample": [up.resize, up.crop] if isinstance(up, Upsample) else None,
        **{"val": None, "test": None} | evaluate_ema(learner, "val") | evaluate_ema(learner, "test"),
        "training_seconds": round(state.seconds, 1),
        "feature_seconds": round(learner.feature_seconds, 1),
        "params": sum(p.numel() for p in learner.averaged.parameters()),
    }
