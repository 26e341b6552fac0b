"""What changes the weights: AdamW, Muon for the backbone, the learning rate schedule and gradual pruning."""

import math

import torch
import torch.nn as nn

from sqzoo.train.muon import Muon
from sqzoo.train.recipes import Recipe


def make_optimizers(recipe: Recipe, params: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Create AdamW, which is Adam without weight decay, and Muon for the backbone's convolutions if it has a rate."""
    # Muon's state is one vector of all its weights in this order, which a resumed run must meet again.
    muon = {n: p for n, p in params.items() if recipe.muon_lr and n.startswith("features.") and p.dim() == 4}
    rest = [p for n, p in params.items() if n not in muon]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, fused=True)]
    if muon:
        optimizers.append(Muon(muon.values(), lr=recipe.muon_lr, weight_decay=recipe.weight_decay))
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def learning_rate(recipe: Recipe, highest: float, step: int, steps: int) -> float:
    """Return the learning rate of a step, from 0, out of `steps`: constant, or linear warm-up and a cosine to 0."""
    if recipe.schedule == "constant":
        return highest
    warm_up = max(1, int(0.1 * steps))
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * (0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))))


def prune(weight: torch.Tensor, mask: torch.Tensor, sparsity: float, step: int, steps: int) -> None:
    """Prune by magnitude, gradually over a run's first half (Zhu and Gupta 2017); what `mask` has False stays zero."""
    weight.mul_(mask)
    half = 0.5 * steps
    count = int(sparsity * (1 - (1 - min(1.0, (step + 1) / half)) ** 3) * weight.numel())
    if count and (step % 20 == 0 or step < half <= step + 1):
        magnitude = weight.abs()
        weight.masked_fill_(magnitude <= magnitude.flatten().kthvalue(count).values, 0.0)
