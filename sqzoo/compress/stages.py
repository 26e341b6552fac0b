"""Run a network layer by layer over calibration images, and collect what each layer is given."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from sqzoo.data import Dataset, Normalise
from sqzoo.errors import ArgumentError
from sqzoo.models.base import ZooModel

Layer = nn.Conv2d | nn.Linear
Forward = Callable[[torch.Tensor], torch.Tensor]
_BATCH = 16  # images
_TRUNK_IMAGES = 512  # for the trunk's layers: each has many positions; the head's wide layers have one, and need all
_POSITIONS = 49  # of a map that a convolution is measured at
_DAMPING = 0.01  # of the mean variance, as in GPTQ


@dataclass(frozen=True)
class Moments:
    """A layer's inputs over the calibration images: their mean (d,), and what spreads a weight's error (d, d).

    `spread` is upper triangular, with `spread.T @ spread` the inverse of the inputs' covariance.
    """

    mean: torch.Tensor
    spread: torch.Tensor


def compressed_layers(model: nn.Module) -> dict[str, Layer]:
    """Return a network's convolutions and linear layers by name; raise `ArgumentError` for a grouped convolution."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Layer)}
    if grouped := [n for n, m in layers.items() if getattr(m, "groups", 1) > 1]:
        raise ArgumentError(f"{grouped[0]} is a grouped convolution, which is not compressed; take separable=False.")
    return layers


class Stages:
    """The trunk's layers, then the head, each with the calibration images as the stages before it leave them."""

    def __init__(self, model: ZooModel, data: Dataset) -> None:
        self.model, self.data = model, data
        self.layers = compressed_layers(model)
        self.forwards: list[Forward] = [*model.features, model.forward_head]

    def __iter__(self) -> Iterator[tuple[int, list[str], list[torch.Tensor]]]:
        """Yield (number, names of its layers, input batches) of each stage; the next one sees its changed weights."""
        inputs, head = batches(self.model, self.data[:_TRUNK_IMAGES]), len(self.model.features)
        for i, forward in enumerate(self.forwards):
            if i == head:
                inputs = [self.model.features(x) for x in batches(self.model, self.data)]
            prefix = f"features.{i}."
            names = [n for n in self.layers if (f"{n}.".startswith(prefix) if i < head else n[:9] != "features.")]
            yield i, names, inputs
            advance(forward, inputs)

    def rest(self, start: int, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of what stage `start` is given."""
        for forward in self.forwards[start:]:
            x = forward(x)
        return x

    def moments(self, number: int, names: list[str], inputs: list[torch.Tensor]) -> Iterator[tuple[str, Moments]]:
        """Yield (name, moments) of some of a stage's layers; all are measured before the first one is yielded."""
        sums = {name: _Sums(self.layers[name]) for name in names}
        hooks = [self.layers[name].register_forward_pre_hook(sums[name].add) for name in names]
        for x in inputs if names else []:
            self.forwards[number](x)
        for hook in hooks:
            hook.remove()
        for name in names:
            yield name, sums.pop(name).moments()


def advance(forward: Forward, inputs: list[torch.Tensor]) -> None:
    """Replace each batch by what a stage makes of it, one by one, because they are large."""
    for i, x in enumerate(inputs):
        inputs[i] = forward(x)


def batches(model: ZooModel, data: Dataset) -> list[torch.Tensor]:
    """Return images as the trunk's first layer takes them."""
    normalise = Normalise.of(model)
    return [model.upsample(normalise(data.images[i : i + _BATCH])) for i in range(0, len(data), _BATCH)]


class _Sums:
    """Sums over a layer's inputs, a column for each of a unit's weights."""

    def __init__(self, layer: Layer) -> None:
        width = layer.weight[0].numel()
        self.squares, self.sum, self.count = torch.zeros(width, width), torch.zeros(width), 0

    def add(self, layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        (x,) = inputs
        if isinstance(layer, nn.Conv2d):
            columns = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)  # type: ignore[arg-type]
            x = columns[:, :, :: math.ceil(columns.shape[2] / _POSITIONS)].transpose(1, 2).flatten(0, 1)
        self.squares.addmm_(x.T, x)
        self.sum += x.sum(0)
        self.count += len(x)

    def moments(self) -> Moments:
        mean = self.sum / self.count
        covariance = self.squares.div_(self.count).addr_(mean, mean, alpha=-1)
        # With few images for many inputs, correlations are in part chance.
        variances = covariance.diagonal().clamp(min=0)
        covariance *= self.count / (self.count + 0.2 * len(mean))
        covariance.diagonal().copy_(variances + _DAMPING * variances.mean() + 1e-6 * mean.square().mean() + 1e-12)
        if len(mean) <= 4096:  # larger ones would take gigabytes
            covariance = covariance.double()
        # In reversed order, Cholesky's lower factor becomes an upper one, whose inverse is the one needed.
        upper = torch.linalg.cholesky(covariance.flip(0, 1)).flip(0, 1)
        identity = torch.eye(len(mean), dtype=upper.dtype)
        return Moments(mean, torch.linalg.solve_triangular(upper, identity, upper=True).float())
