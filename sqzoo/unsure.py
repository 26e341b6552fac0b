"""Unsure is an answer: honest probabilities by a temperature, and a score that is low for none of the classes.

Both come from images that were held out of training: Guo et al. 2017, "On calibration of modern neural networks", and
Liu et al. 2020, "Energy-based out-of-distribution detection".
"""

import torch
import torch.nn.functional as F

from sqzoo.errors import ArgumentError

KEPT = 0.95  # of held-out images are above the threshold


def score(logits: torch.Tensor) -> torch.Tensor:
    """Return the negative energy (N,) of logits (N, classes): low where a picture is unlike those of training."""
    return logits.logsumexp(1)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the temperature by which logits (N, classes) of held-out images are divided for the least loss.

    Raises `ArgumentError` where there is nothing to fit: no images, or none of them wrong.
    """
    if not len(labels) or bool((logits.argmax(1) == labels).all()):
        raise ArgumentError(f"a temperature needs held-out images, some called wrongly, not {len(labels)} all right.")
    # The loss is convex in the inverse temperature: L-BFGS finds its one minimum.
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits.double() * inverse, labels)
        value.backward()
        return value

    optimizer.step(loss)
    return 1 / inverse.item()


def threshold(scores: torch.Tensor, kept: float = KEPT) -> float:
    """Return the score that the share `kept` of held-out images reaches."""
    return torch.quantile(scores.double(), 1 - kept).item()


def calibrate(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return {"temperature", "threshold"} for a model's `calibration` from its logits of held-out images."""
    return {"temperature": fit_temperature(logits, labels), "threshold": threshold(score(logits))}
