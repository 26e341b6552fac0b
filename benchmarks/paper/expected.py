"""How long a list of runs takes on this machine: a step of each kind is timed, the steps are counted."""

import time
from collections.abc import Callable

import numpy as np
import torch

from sqzoo import create_model
from sqzoo.models.sparse import SparseMaps
from sqzoo.train import Recipe

TRAIN, TEST = 50_000, 10_000
DENSITY = {"squeezenet_cifar": 0.104, "sq1": 0.104, "fire_next": 0.276, "alexnet_cifar": 0.311}  # of features, measured
SHAPE = {"alexnet_cifar": (256, 6, 6)}  # of an image's features; SqueezeNet's are (512, 13, 13)


def report(
    plan: list[tuple[Recipe, int]], workers: int, threads: int, cached: bool, device: str, trained: int | None = None
) -> str:
    """Return the plan as text: runs and epochs by model, and the hours that they take in so many processes here.

    Args:
        plan: the runs' recipes, each with the number of images that are evaluated after an epoch.
        threads: of each process.
        cached: whether the backbone's features lie on disk.
        device: times are for "cpu" alone.
        trained: number of training images; None is all that are not held out.
    """
    lines, seconds, before = [], 0.0, torch.get_num_threads()
    torch.set_num_threads(threads)
    for model in dict.fromkeys(recipe.model for recipe, _ in plan):
        own = [(recipe, looked_at) for recipe, looked_at in plan if recipe.model == model]
        line = f"{model}: {len(own)} runs, {sum(r.epochs for r, _ in own)} epochs"
        if device == "cpu":
            step, evaluation = _cost(own[0][0])
            took = sum(r.epochs * ((trained or TRAIN - r.hold_out) * step + images * evaluation) for r, images in own)
            line += f", {TRAIN * step:.0f} s for {TRAIN:,} images: {took / workers / 3600:.1f} hours"
            seconds += took / workers
        lines.append(line)
    if device == "cpu":
        backbones = {} if cached else {_backbone(r): r for r, _ in plan}
        seconds += sum(((trained or TRAIN) + TEST) * _backbone_seconds(r) for r in backbones.values())
        lines.append(
            f"In all {seconds / 3600:.1f} hours in {workers} process(es) of {threads} thread(s), the features of "
            f"{len(backbones)} backbones among them, if these cores do nothing else."
        )
    torch.set_num_threads(before)
    return "\n".join(lines)


def _backbone(recipe: Recipe) -> tuple[str, ...]:
    """Return what recipes have in common that share features."""
    family = recipe.model if recipe.model in ("fire_next", "alexnet_cifar") else "squeezenet"
    return family, recipe.normalisation, *(recipe.model_args.get(p, "max") for p in ("pool2", "pool3"))


def _backbone_seconds(recipe: Recipe) -> float:
    """Return the seconds of an image's features."""
    backbone = create_model(recipe.model).features.to(memory_format=torch.channels_last)  # type: ignore[union-attr]
    images = torch.rand(8, 3, 224, 224).to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode():
            backbone(images)

    return _seconds(run) / len(images)


def _cost(recipe: Recipe) -> tuple[float, float]:
    """Return the seconds of a training step and of an evaluation, by image."""
    model = create_model(recipe.model, **recipe.model_args).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.requires_grad_(recipe.layers != "last").get_classifier().requires_grad_(True)
    params = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("features.")]
    optimizer = torch.optim.AdamW(params, fused=True)
    shape, count = SHAPE.get(recipe.model, (512, 13, 13)), recipe.batch_size
    rng, length = np.random.default_rng(0), count * int(np.prod(shape))
    where = np.sort(rng.choice(length, int(length * DENSITY[recipe.model]), replace=False))
    values, labels = torch.rand(len(where)), torch.randint(0, 10, (count,))

    def step() -> None:  # a batch's indices are part of it
        logits = model.train().forward_head(SparseMaps((count, *shape), where, values))
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()

    def evaluation() -> None:
        with torch.inference_mode():
            model.eval().forward_head(SparseMaps((count, *shape), where, values))

    return _seconds(step) / count, _seconds(evaluation) / count


def _seconds(run: Callable[[], object], times: int = 5) -> float:
    """Return the least time of several runs, on cores that do nothing else: processor time, over all threads."""
    run()
    took = []
    for _ in range(times):
        began = time.process_time()
        run()
        took.append(time.process_time() - began)
    return min(took) / torch.get_num_threads()
