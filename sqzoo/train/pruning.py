"""Small weights of large layers set to zero for good as a network trains, more and more of them.

The rest learns to do without them, so `sqzoo compress` finds few weights to code. The share grows as in Zhu and Gupta
(2017).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from sqzoo.errors import ArgumentError

_LEAST = 1_000_000  # weights of a layer that is pruned: all but a hundredth of AlexNet's lie in two such
_EVERY = 20  # steps
_RISE = 0.5  # of a run's steps, over which the share grows


class Pruning:
    """Keeps a growing share, in [0, 1), of the weights of each large layer at zero; the zeros are all its state."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], share: float) -> None:
        self.share = share
        self.weights = [p for p in parameters if p.dim() > 1 and p.numel() >= _LEAST] if share else []
        if share and not self.weights:
            raise ArgumentError(
                f"prune={share} is for layers of {_LEAST:,} weights or more, and none such is trained; leave it out."
            )

    @property
    def complete(self) -> bool:
        """Whether each large layer has as many zeros as it is to have."""
        return all(_zeros(w) >= int(self.share * w.numel()) for w in self.weights)

    @contextmanager
    def kept(self, done: int, steps: int) -> Iterator[None]:
        """Around a step of the optimiser, with `done` of the run's `steps` behind it: zeros stay, more may come."""
        dead = [w == 0 for w in self.weights]
        yield
        whole = _RISE * steps  # steps until the share is whole
        due = done % _EVERY == 0 or done < whole <= done + 1
        share = self.share * (1 - (1 - min(1.0, (done + 1) / whole)) ** 3)
        with torch.no_grad():
            for weight, zero in zip(self.weights, dead, strict=True):
                weight.masked_fill_(zero, 0.0)
                if due and (count := int(share * weight.numel())) > _zeros(weight):
                    size = weight.abs()
                    weight.masked_fill_(size <= size.flatten().kthvalue(count).values, 0.0)


def _zeros(weight: torch.Tensor) -> int:
    return weight.numel() - int(weight.count_nonzero())
