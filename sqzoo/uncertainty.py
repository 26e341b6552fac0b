"""Unsure is an answer: honest probabilities by a temperature, and a score that is low for none of the classes.

Both are fitted on images that were held out of training. Temperature: Guo et al. 2017, "On calibration of modern neural
networks". Score: the generalised entropy of Liu et al. 2023, "GEN: pushing the limits of softmax-based
out-of-distribution detection", which needs the probabilities alone, so that any runtime of a model will do.
"""

import torch
import torch.nn.functional as F

from sqzoo.errors import ArgumentError

TPR = 0.95  # of held-out images are above the threshold
_POWER = 0.1  # the paper's: small probabilities of the other classes count nearly as much as large ones


def ood_score(probabilities: torch.Tensor) -> torch.Tensor:
    """Return (N,) scores of probabilities (N, classes): 0 where one class is certain, the lower the more even they are.

    A picture that is none of the classes leaves a trace in the probabilities of several, whichever the largest is.
    """
    p = probabilities.double()
    return -(p * (1 - p)).clamp(min=0).pow(_POWER).sum(1)


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


def ood_threshold(scores: torch.Tensor, tpr: float = TPR) -> float:
    """Return the score that the share `tpr` of held-out images reaches."""
    return torch.quantile(scores.double(), 1 - tpr).item()


def calibrate(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return {"temperature", "threshold"} for a model's `calibration` from its logits of held-out images."""
    temperature = fit_temperature(logits, labels)
    scores = ood_score((logits.double() / temperature).softmax(1))
    return {"temperature": temperature, "threshold": ood_threshold(scores)}
