"""Muon (Jordan et al. 2024) for convolutions: momentum whose update is made orthogonal, all filters in a few launches.

torch.optim.Muon takes matrices alone and goes through them one by one.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

_COEFFICIENTS, _STEPS = (3.4445, -4.775, 2.0315), 5  # of the quintic iteration, as the authors'
_LIKE_ADAMW = 0.2  # root mean square of an update, as AdamW's is (Liu et al. 2025), so that its rates carry over


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Args:
        params: weights (O, I, h, w), each taken as a matrix (O, I * h * w).
        lr: learning rate.
        weight_decay: as AdamW's.
        momentum: of the gradients' average.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step; `closure` is not used."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in params]
            grads: list[Any] = [p.grad for p in params]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            updates = orthogonal(list(torch._foreach_lerp(grads, momenta, group["momentum"])))
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"])


def orthogonal(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the nearest orthogonal matrix of each weight (O, ...), about, at a root mean square of 0.2.

    Matrices whose shorter sides are equal go through Newton-Schulz's iteration as one batch, filled up with zeros,
    which stay zeros. On a GPU in bfloat16, as the authors.
    """
    matrices = [w.flatten(1) for w in weights]
    matrices = [m.t() if m.shape[0] > m.shape[1] else m for m in matrices]
    a, b, c = _COEFFICIENTS
    result: list[torch.Tensor] = list(matrices)
    for short in sorted({len(m) for m in matrices}):
        members = [i for i, m in enumerate(matrices) if len(m) == short]
        long = [matrices[i].shape[1] for i in members]
        x = weights[0].new_zeros((len(members), short, max(long)))
        torch._foreach_copy_([y[:, :n] for y, n in zip(x, long, strict=True)], [matrices[i] for i in members])
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        x = x.bfloat16() if x.is_cuda else x
        for _ in range(_STEPS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        for i, y, n in zip(members, x.float(), long, strict=True):
            result[i] = y[:, :n]
    result = list(torch._foreach_mul(result, [_LIKE_ADAMW * m.shape[1] ** 0.5 for m in matrices]))
    tall = [len(w) > w[0].numel() for w in weights]
    return [(y.t() if t else y).reshape(w.shape) for y, t, w in zip(result, tall, weights, strict=True)]
