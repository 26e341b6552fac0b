"""Temperature scaling, and an out-of-distribution score: low for images that belong to none of the classes.

Both are fitted on validation images. Temperature: Guo et al. 2017, "On calibration of modern neural networks". Score:
the generalised entropy of Liu et al. 2023, "GEN: pushing the limits of softmax-based out-of-distribution detection",
which needs only the probabilities, so that it works in every runtime.
"""

import torch
import torch.nn.functional as F

from sqzoo.errors import ArgumentError

TPR = 0.95  # true positive rate: fraction of validation images above the threshold
_POWER = 0.1  # the paper's gamma: small probabilities count nearly as much as large ones


def ood_score(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the negative generalised entropy: 0 where one class is certain, lower the more even the probabilities.

    Args:
        probabilities: (N, classes), in 0...1.

    Returns:
        Scores (N,), float64.
    """
    p = probabilities.double()
    return -(p * (1 - p)).clamp(min=0).pow(_POWER).sum(1)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the temperature that minimises the cross-entropy of `logits / temperature`.

    Args:
        logits: (N, classes) of validation images.
        labels: (N,).

    Raises:
        ArgumentError: nothing can be fitted: there are no images, or no errors among them.
    """
    if not len(labels) or bool((logits.argmax(1) == labels).all()):
        raise ArgumentError(
            f"a temperature needs validation images, some of them misclassified, not {len(labels)} all right."
        )
    # The loss is convex in the inverse temperature, so L-BFGS finds its one minimum.
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
    """Return the score that the fraction `tpr` of validation images reaches."""
    return torch.quantile(scores.double(), 1 - tpr).item()


def calibrate(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Fit {"temperature", "threshold"} on validation logits (N, classes) and labels (N,); see `fit_temperature`."""
    temperature = fit_temperature(logits, labels)
    scores = ood_score((logits.double() / temperature).softmax(1))
    return {"temperature": temperature, "threshold": ood_threshold(scores)}
