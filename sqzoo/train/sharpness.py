"""Sharpness-aware minimisation: the gradient is taken where near by the loss is highest, not where the weights are.

So a minimum is found that is flat, and holds for other images too, for a second pass through the network each step.
In the form whose neighbourhood grows with each weight's size (Kwon, Kim, Park, Choi 2021).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

_LEAST = 0.01  # of a weight's size, that a weight of zero may move as well


@contextmanager
def uphill(parameters: Iterable[torch.Tensor], others: Iterable[torch.Tensor], radius: float) -> Iterator[None]:
    """Within, `parameters` are where the loss rises most, at `radius`, and without gradients; afterwards as before.

    others: tensors that a pass through the network changes, to be put back too.
    """
    moved = [(p, p.grad) for p in parameters if p.grad is not None]
    kept = [(t, t.detach().clone()) for t in (*(p for p, _ in moved), *others)]
    with torch.no_grad():
        sizes = [p.abs() + _LEAST if p.dim() > 1 else torch.ones_like(p) for p, _ in moved]
        steepness = torch.stack([(size * slope).norm() for size, (_, slope) in zip(sizes, moved, strict=True)]).norm()
        for size, (parameter, slope) in zip(sizes, moved, strict=True):
            parameter.add_(size.square() * slope * (radius / (steepness + 1e-12)))
            parameter.grad = None
    yield
    with torch.no_grad():
        for tensor, before in kept:
            tensor.copy_(before)
