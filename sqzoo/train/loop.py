"""The training loop: per epoch batches, forward, loss, backward, step, EMA; then validation and a checkpoint.

Each epoch starts from a random state made of the seed and the epoch's number, so a run that was killed and started
again ends in the same weights as one that was not: on a CPU bit for bit, on a GPU up to max pooling's order of sums.
"""

import copy
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from sqzoo.data import NORMALISATIONS, Dataset, Normalise
from sqzoo.environment import check_device, environment, keep_freed_memory, pick_precision
from sqzoo.errors import ArgumentError
from sqzoo.files import file_sha256, write_json, write_tensors
from sqzoo.models.base import ZooModel
from sqzoo.models.sparse import SparseMaps
from sqzoo.models.upsample import Upsample
from sqzoo.registry import create_model, start_from, start_sha256
from sqzoo.train.augment import augment
from sqzoo.train.batch_norm import fold_batch_norm, insert_batch_norm
from sqzoo.train.checkpoint import Progress, open_run, restore, run_lock, save, write_log
from sqzoo.train.distributed import init_process_group, processes, rank, rank_zero_first, shard, sum_over_processes
from sqzoo.train.evaluation import exact_arithmetic, metrics
from sqzoo.train.features import trunk_features
from sqzoo.train.muon import Muon
from sqzoo.train.recipes import Recipe
from sqzoo.weights import load_trunk

Folder = str | os.PathLike[str] | None
_WARM_UP = 0.1  # of a cosine run's steps
_PRUNED = 1_000_000  # weights of a layer that is pruned: all but a hundredth of AlexNet's lie in two such


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
    """Train by a recipe: resume an unfinished run of the same recipe and data, return a finished one's result.

    Args:
        recipe: what to train, and how.
        train_set: images and labels; `recipe.hold_out` of them are for validation.
        test_set: evaluated once, at the end, with the chosen weights; after every epoch where the recipe selects on it
            (the paper's way) or `log_test` asks for it; None: never.
        run: the run's folder, new, empty or this very run's.
        trunk, cache: file or folder with the ImageNet backbone; folder for its features when frozen, None: in memory.
        device: "cpu", "cuda", "cuda:N" or "mps"; under torchrun "cuda" gives each process its own.
        precision: of the layers in training: "float32", "bfloat16" or "auto", the faster. The rest is float32.
        compile: compile the network (torch.compile), which takes minutes and then saves launches.
        progress: show a bar on a terminal, and a line per epoch.
        on_epoch: called with each epoch's row of the log; may raise to end the run.

    Returns:
        What is also result.json: recipe, data digests, chosen epoch, metrics "val" and "test", times, log.
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
    folder, begun = Path(run), environment()  # now, while the commit is that of the code in memory
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
            events = stack.enter_context(_tensorboard(folder, state.epoch) if rank() == 0 else nullcontext())
            for epoch in range(state.epoch, recipe.epochs):
                if state.best_epoch and 0 < recipe.patience <= epoch - state.best_epoch:
                    break
                began = time.perf_counter()
                loss = learner.train_epoch(epoch, show)
                state.seconds += time.perf_counter() - began
                row: dict[str, Any] = {"epoch": epoch + 1, "size": recipe.size_at(epoch), "train_loss": loss}
                row |= learner.evaluate("val") | (learner.evaluate("test") if log_test else {})
                if not all(math.isfinite(value) for _, value in _scalars(row)):
                    raise ArgumentError(
                        f"The loss of epoch {epoch + 1} is no number, training diverged at lr={recipe.lr:g}; give a "
                        "lower one, such as --set lr=0.0005, and another run folder."
                    )
                row |= {"seconds": time.perf_counter() - began, "time": time.strftime("%Y-%m-%dT%H:%M:%S")}
                state.record(row, learner.score(row), learner.averaged_weights)
                if rank() == 0:
                    save(folder, state, learner.state())
                    _report(row, state, recipe, events, show)
                on_epoch(row)
            result = facts | learner.finish(state) | {"environment": begun, "device": device, "log": state.log}
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


class Learner:
    """A network in training, with its data, its optimisers and its averaged weights.

    `model` is the float32 network that the optimisers change; `network` runs in training, the model or a bfloat16 copy;
    `averaged` is evaluated and kept, the model or a copy that holds the EMA. `weights` and `averaged_weights` are what
    a run learns, by name: the trained parameters and the buffers, which batch norm changes.
    """

    def __init__(
        self,
        recipe: Recipe,
        sets: dict[str, Dataset],
        trunk: Folder,
        cache: Folder,
        device: str,
        half: bool,
        show: bool,
    ) -> None:
        self.recipe, self.device, self.frozen = recipe, device, recipe.layers != "all"
        self.half, self.dtype = half, torch.bfloat16 if half else torch.float32
        self.alone = processes() == 1  # or one of several that have a shard of each batch
        self.inputs: dict[str, Any] = {name: _on_device(data.images, device) for name, data in sets.items()}
        self.labels = {name: torch.from_numpy(data.labels).to(device) for name, data in sets.items()}
        self.train_idx, val_idx = (torch.from_numpy(i).to(device) for i in sets["train"].split(recipe.hold_out))
        test_idx = torch.arange(len(sets["test"]) if "test" in sets else 0, device=device)
        self.looked_at = {"val": ("train", val_idx), "test": ("test", test_idx)}
        self.image_size = sets["train"].images.shape[2]
        self.normalise = Normalise(*NORMALISATIONS[recipe.normalisation])
        model = initial_model(recipe, trunk).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = self.network = self.averaged = model.eval()
        self.set_size(recipe.size_at(0))
        model.requires_grad_(recipe.layers != "last").get_classifier().requires_grad_(True)
        first = len(model.features) if self.frozen else recipe.frozen_layers
        if not self.frozen and first >= len(model.features):
            raise ArgumentError(f"frozen_layers={first} leaves none of the trunk's {len(model.features)}; give fewer.")
        model.features[:first].requires_grad_(False)
        began = time.perf_counter()
        for name, data in sets.items() if self.frozen else ():
            title, images = f"backbone features, {name}" if show else "", self.inputs[name]
            self.inputs[name] = trunk_features(model, images, self.normalise, data.digest, cache, self.dtype, title)
        self.feature_seconds = time.perf_counter() - began if self.frozen else 0.0
        if recipe.batch_norm:
            with torch.no_grad():
                images = self.normalise(self.inputs["train"][self.train_idx[:256]])
                insert_batch_norm(model.features[first:], model.features[:first](model.upsample(images)))
        self.params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        kept = self.params if self.frozen else dict(model.named_parameters())
        self.weights = {n: t.detach() for n, t in (kept | dict(model.named_buffers())).items()}
        self.pruned = [p for p in self.params.values() if recipe.prune and p.dim() > 1 and p.numel() >= _PRUNED]
        if recipe.prune and not self.pruned:
            raise ArgumentError(f"prune is for layers of {_PRUNED:,} weights or more, and none is trained.")
        self.optimizers = _optimizers(recipe, self.params)
        if half:
            self.network = _half_copy(model)
            pairs = zip(self.params.values(), (p for p in self.network.parameters() if p.requires_grad), strict=True)
            self.copied, self.copies = map(list, zip(*((p, q) for p, q in pairs if p is not q), strict=True))
            self.grads = [torch.zeros_like(p) for p in self.copied]
        self.averaged = copy.deepcopy(model) if recipe.ema else model
        self.averaged_weights = {n: t for n, t in self.averaged.state_dict().items() if n in self.weights}
        self.forward: Callable[[Any], torch.Tensor] = self.network.forward_head if self.frozen else self.network

    def train_epoch(self, epoch: int, show: bool) -> float:
        """Train on all training images once; return their mean loss (nats), the one value that leaves the device."""
        recipe, count, epochs = self.recipe, len(self.train_idx), self.recipe.epochs
        self.set_size(recipe.size_at(epoch))
        self.network.train()
        torch.manual_seed(recipe.seed * 1_000_003 + epoch)
        batches = self.train_idx[torch.randperm(count).to(self.device)].split(recipe.batch_size)
        loss_sum, reduction = torch.zeros((), device=self.device), "mean" if self.alone else "sum"
        title = f"{recipe.model} epoch {epoch + 1}/{epochs}, {recipe.size_at(epoch)} px"
        for number, idx in enumerate(tqdm(batches, title, leave=False, disable=None if show else True)):
            step = epoch * len(batches) + number
            inputs, labels = self.batch(idx)
            logits = self.forward(inputs).float()
            loss = F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=recipe.label_smoothing)
            loss = loss if self.alone else loss / len(idx)
            loss.backward()
            self.step(step, epochs * len(batches))
            self.update_ema(step)
            loss_sum += loss.detach() * len(idx)
        if not self.alone:
            sum_over_processes([loss_sum])
        return loss_sum.item() / count

    def batch(self, idx: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Return this process's shard of a batch, (inputs, labels): features, or augmented and normalised images."""
        # All of the batch is augmented in every process: the random numbers are the same for any number of them.
        x, mine, recipe = self.inputs["train"][idx], slice(None) if self.alone else shard(len(idx)), self.recipe
        if isinstance(x, SparseMaps):  # in bfloat16 products of all values are faster than float32's of the non-zeros
            x = x.dense(self.dtype) if self.half else x
        elif not self.frozen:
            x = self.normalise(augment(x, recipe.pad, recipe.flip, recipe.cutout)[mine]).to(self.dtype)
        return x, self.labels["train"][idx[mine]]

    @torch.no_grad()
    def step(self, step: int, steps: int) -> None:
        """Take a step of the optimisers, number `step` of `steps`, with the gradients of the whole batch."""
        if self.half:
            torch._foreach_copy_(self.grads, [p.grad for p in self.copies])
            for p, grad in zip(self.copied, self.grads, strict=True):
                p.grad = grad
        if not self.alone:
            sum_over_processes([p.grad for p in self.params.values() if p.grad is not None])
        masks = [p != 0 for p in self.pruned]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.recipe, group["initial_lr"], step, steps)
            optimizer.step()
        for p, mask in zip(self.pruned, masks, strict=True):
            _prune(p, mask, self.recipe.prune, step, steps)
        if self.half:
            torch._foreach_copy_(self.copies, self.copied)
        for p in (*self.model.parameters(), *self.network.parameters()):
            p.grad = None

    @torch.no_grad()
    def update_ema(self, step: int) -> None:
        """Move the averaged weights towards the weights."""
        if self.recipe.ema:  # a young average forgets sooner, or it would remember the weights that the run began with
            names = [n for n, t in self.weights.items() if t.is_floating_point()]
            averages, weights = ([of[n] for n in names] for of in (self.averaged_weights, self.weights))
            torch._foreach_lerp_(averages, weights, 1 - min(self.recipe.ema, (1 + step) / (10 + step)))

    @torch.inference_mode()
    def evaluate(self, name: str) -> dict[str, dict[str, Any]]:
        """Evaluate the averaged weights on the "val" or "test" images; return {name: metrics}, {} without images."""
        source, idx = self.looked_at[name]
        if not len(idx):
            return {}
        self.averaged.eval()
        logits = []
        for few in idx.split(32 if self.device == "cpu" else 1000):
            x = self.inputs[source][few]
            x = x if isinstance(x, SparseMaps) else x.float() if self.frozen else self.normalise(x)
            logits.append(self.averaged.forward_head(x) if self.frozen else self.averaged(x))
        return {name: vars(metrics(torch.cat(logits), self.labels[source][idx].cpu()))}

    def score(self, row: dict[str, Any]) -> tuple[float, float] | None:
        """Return what an epoch is compared with others by, None where it may not be chosen."""
        if (self.recipe.select == "last" or self.recipe.prune) and row["epoch"] < self.recipe.epochs:
            return None
        chosen = row.get(self.recipe.select)
        return (chosen["top1"], -chosen["loss"]) if chosen else (0.0, 0.0)

    def set_size(self, size: int) -> None:
        """Have the networks enlarge images to a size in pixels."""
        resize = int(size / self.recipe.crop_pct)
        same = resize == size == self.image_size
        if (not same and self.image_size != 32) or size < self.model.min_input_size:
            raise ArgumentError(
                f"sizes must be the images' own {self.image_size} pixels, or for images of 32 pixels at least "
                f"{self.model.min_input_size} with {self.recipe.model}, not {size}."
            )
        for network in (self.model, self.network, self.averaged):
            network.upsample = nn.Identity() if same else Upsample(resize, size)

    def finish(self, state: Progress) -> dict[str, Any]:
        """Load the best epoch's weights, fold batch norm into them, and evaluate what is kept."""
        for name, tensor in self.averaged_weights.items():
            tensor.copy_(state.best[name])
        size = self.recipe.size_at(state.best_epoch - 1)
        self.set_size(size)  # the weights are for images of it
        if self.recipe.batch_norm:
            fold_batch_norm(self.averaged.features)
            self.averaged_weights = self.averaged.state_dict()
        up = self.averaged.upsample
        return {
            "epoch": state.best_epoch,
            "size": size,
            "upsample": [up.resize, up.crop] if isinstance(up, Upsample) else None,
            **{"val": None, "test": None} | self.evaluate("val") | self.evaluate("test"),
            "training_seconds": round(state.seconds, 1),
            "feature_seconds": round(self.feature_seconds, 1),
            "params": sum(p.numel() for p in self.averaged.parameters()),
        }

    def state(self) -> dict[str, torch.Tensor]:
        """Return all tensors that a resumed run needs, by name."""
        tensors = {f"model.{n}": t for n, t in self.weights.items()}
        tensors |= {f"ema.{n}": t for n, t in self.averaged_weights.items() if self.recipe.ema}
        states = [(n, o.state[p]) for n, p in self.params.items() for o in self.optimizers if p in o.state]
        return tensors | {f"optimizer.{n}.{k}": v for n, state in states for k, v in state.items()}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned; of a new run, {}, nothing."""
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind in ("model", "ema"):
                (self.weights if kind == "model" else self.averaged_weights)[rest].copy_(tensor)
            elif kind == "optimizer":
                name, _, key = rest.rpartition(".")
                p = self.params[name]
                # Moments lie in memory as the weights do, so that a resumed run adds in the same order.
                value = torch.empty_like(p).copy_(tensor) if tensor.shape == p.shape else tensor.to(p.device)
                owner = next(o for o in self.optimizers if any(p is q for g in o.param_groups for q in g["params"]))
                owner.state[p][key] = value
        if self.half:
            torch._foreach_copy_(self.copies, self.copied)


def initial_model(recipe: Recipe, trunk: Folder) -> ZooModel:
    """Build the network that a recipe starts from: the ImageNet backbone, or an earlier run's, and a fresh head."""
    torch.manual_seed(recipe.seed)
    init: Any = "imagenet" if recipe.start == "imagenet" else "random"
    model: ZooModel = create_model(recipe.model, init=init, trunk=trunk, **recipe.model_args)  # type: ignore[assignment]
    if recipe.layers == "last" and recipe.model == "alexnet_cifar":
        model.load_state_dict(model.state_dict() | load_trunk("alexnet", trunk, linear=True), strict=True)
    if recipe.start != "imagenet":
        start_from(model, recipe.start)
    return model


def learning_rate(recipe: Recipe, highest: float, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0, of a run of `steps`."""
    if recipe.schedule == "constant":
        return highest
    rise = max(1, int(_WARM_UP * steps))
    if step < rise:
        return highest * (step + 1) / rise
    return highest * (0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))))


def _optimizers(recipe: Recipe, params: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Return AdamW (Adam where weight_decay is 0), and Muon for the backbone's convolutions where the recipe has it."""
    # In the parameters' order, which a set would not keep: Muon's momentum of a resumed run lies in it.
    muon = [n for n, p in params.items() if recipe.muon_lr and n.startswith("features.") and p.dim() == 4]
    rest = [p for n, p in params.items() if n not in muon]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, fused=True)]
    if muon:
        optimizers.append(Muon([params[n] for n in muon], lr=recipe.muon_lr, weight_decay=recipe.weight_decay))
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def _half_copy(model: Any) -> Any:
    """Return a bfloat16 copy of a network to compute with, one launch casts all weights into it; norms are shared."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            half.set_submodule(name, module)
    return half


def _prune(weight: torch.Tensor, mask: torch.Tensor, share: float, step: int, steps: int) -> None:
    """Keep zeros at zero and, every 20 steps of a run's first half, add the smallest weights (Zhu and Gupta 2017)."""
    weight.mul_(mask)
    whole = 0.5 * steps
    if step % 20 == 0 or step < whole <= step + 1:
        if count := int(share * (1 - (1 - min(1.0, (step + 1) / whole)) ** 3) * weight.numel()):
            size = weight.abs()
            weight.masked_fill_(size <= size.flatten().kthvalue(count).values, 0.0)


def _on_device(images: Any, device: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file mapped to memory cannot be written to, and is not
        return torch.from_numpy(images).to(device)


def _tensorboard(folder: Path, epoch: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=epoch + 1)
    except ImportError:
        return nullcontext()


def _scalars(row: dict[str, Any]) -> list[tuple[str, float]]:
    """Return an epoch's losses and accuracies, by name."""
    looked = [(n, row[n]) for n in ("val", "test") if n in row]
    measured = [pair for n, m in looked for pair in ((f"{n} loss", m["loss"]), (f"{n} top-1", m["top1"]))]
    return [("train loss", row["train_loss"]), *measured]


def _report(row: dict[str, Any], state: Progress, recipe: Recipe, events: Any, show: bool) -> None:
    """Print an epoch's line of the table, with the time left; write TensorBoard's events."""
    left = sum(r["seconds"] for r in state.log) / state.epoch * (recipe.epochs - state.epoch) / 60
    cells = [f"epoch {row['epoch']:>3}/{recipe.epochs}", f"{row['size']} px"]
    cells += [f"{name} {value:.2f} %" if "top-1" in name else f"{name} {value:.4f}" for name, value in _scalars(row)]
    cells += [f"{row['seconds']:.0f} s", f"{left:.0f} min left", "best" if state.best_epoch == row["epoch"] else ""]
    if show:
        tqdm.write("  ".join(cells).rstrip(), file=sys.stderr)
    for name, value in _scalars(row) if events else ():
        events.add_scalar(name, value, row["epoch"])
