"""Muon (Jordan et al. 2024) for convolutions: momentum SGD with orthogonalised updates, in few kernel launches.

torch.optim.Muon takes matrices only, one by one: some 700 launches per step for SqueezeNet.
"""

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch

_COEFFICIENTS, _STEPS = (3.4445, -4.775, 2.0315), 5  # of the quintic Newton-Schulz iteration, as the authors'
_LIKE_ADAMW = 0.2  # root mean square of an update, as AdamW's is (Liu et al. 2025), so that its rates carry over


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, of weights (O, ...) as matrices (O, elements)."""

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.packings = [Packing(group["params"]) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step with the gradients of all parameters; `closure` is not used."""
        for group, packing in zip(self.param_groups, self.packings, strict=True):
            params, state = group["params"], self.state[group["params"][0]]
            grads = torch.cat([_flat(p.grad, p) for p in params])
            momentum = state["momentum"] if state else state.setdefault("momentum", torch.zeros_like(grads))
            momentum.lerp_(grads, 1 - group["momentum"])
            updates = packing.orthogonal(grads.lerp(momentum, group["momentum"]))
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"])


class Packing:
    """Indices that pack weights (O, ...), dense in any memory format, into padded batches of matrices, and back.

    On a GPU one batch, because launches cost the time; on a CPU one per length of the shorter side, because products
    with zeros do.
    """

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self.weights, device = weights, weights[0].device
        offsets = [0, *accumulate(w.numel() for w in weights)]
        spans = zip(weights, offsets[:-1], offsets[1:], strict=True)
        places = [torch.arange(a, b).as_strided(w.shape, w.stride()) for w, a, b in spans]
        wide = [m.t() if m.shape[0] > m.shape[1] else m for m in (p.flatten(1) for p in places)]
        shorts = {len(m) for m in wide} if device.type == "cpu" else {0}
        self.batches, back, begin = [], torch.empty(offsets[-1], dtype=torch.int64), 0
        for short in sorted(shorts):
            members = [m for m in wide if len(m) == short or not short]
            shape = (len(members), max(map(len, members)), max(m.shape[1] for m in members))
            index = torch.full(shape, offsets[-1])  # padding reads the zero after the last element
            inverse = torch.arange(begin, begin + index.numel()).view(shape)
            for row, place, matrix in zip(index, inverse, members, strict=True):
                row[: len(matrix), : matrix.shape[1]] = matrix
                back[matrix] = place[: len(matrix), : matrix.shape[1]]
            scale = torch.tensor([_LIKE_ADAMW * m.shape[1] ** 0.5 for m in members]).view(-1, 1, 1)
            self.batches.append((index.to(device), scale.to(device)))
            begin += index.numel()
        self.back, self.sizes = back.to(device), [w.numel() for w in weights]

    def orthogonal(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Return each update's nearest orthogonal matrix, about, at a root mean square of 0.2; in bfloat16 on a GPU.

        Args:
            flat: (elements,) of all updates, each in the order of its weight's memory.
        """
        a, b, c = _COEFFICIENTS
        padded, results = torch.cat([flat, flat.new_zeros(1)]), []
        for index, scale in self.batches:
            x = padded[index]
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            x = x.bfloat16() if x.is_cuda else x
            for _ in range(_STEPS):
                gram = x @ x.mT
                x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
            results.append((x * scale).flatten())
        updates = torch.cat(results)[self.back].split(self.sizes)
        pairs = zip(updates, self.weights, strict=True)
        return [u.as_strided(w.shape, w.stride(), u.storage_offset()) for u, w in pairs]


def _flat(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return a gradient's elements in the order of its weight's memory."""
    dense = gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)
    return dense.as_strided((dense.numel(),), (1,), dense.storage_offset())
