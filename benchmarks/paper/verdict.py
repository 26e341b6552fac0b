"""Whether Table 2's figures are reached: one rule, whose words Table 2 and the claims use (PLAN.md)."""

import json
import math
import statistics
from dataclasses import dataclass
from typing import Any

from scipy import stats

from benchmarks import RESULTS
from benchmarks.paper import heads
from benchmarks.paper.records import PROTOCOLS

REPRODUCED, SHORT, UNDECIDED = "reproduced", "short by", "not decided"
# Paper, Table 2: test loss, top-1 %, parameters as printed.
PAPER = {
    "alexnet_cifar": ("AlexNet, last layer", 0.511, 82.7, "57M"),
    "squeezenet_cifar": ("SqueezeNet 1.1, last layer", 0.490, 83.1, "773K"),
    "sq1": ("Sq-1", 0.403, 86.7, "797K"),
    "fire_next": ("Fire-Next", 0.404, 86.5, "691K"),
}


@dataclass(frozen=True)
class Row:
    """A row of Table 2 as measured in a protocol, a value per seed."""

    top1: list[float]  # percent
    loss: list[float]  # nats
    loss_error: float | None = None  # standard error of the mean loss on the test images, where it is recorded

    def values(self, measure: str) -> list[float]:
        """Return "top1" or "loss" by seed."""
        found: list[float] = getattr(self, measure)
        return found

    def mean(self, measure: str) -> float:
        """Return the mean over the seeds."""
        return statistics.fmean(self.values(measure))

    def text(self) -> str:
        """Return loss and top-1 as a cell of a table, mean ± standard deviation of several seeds."""
        if len(self.top1) == 1:
            return f"{self.loss[0]:.3f} · **{self.top1[0]:.2f} %**"
        loss, top1 = (f"{self.mean(m):.{d}f} ± {statistics.stdev(self.values(m)):.{d}f}" for m, d in MEASURES.items())
        return f"{loss} · **{top1} %**"


MEASURES = {"loss": 3, "top1": 2}  # and the digits to print
Rows = dict[tuple[str, str], Row]


def rows(tags: dict[str, Any]) -> Rows:
    """Return the measured rows by model and protocol: all recorded seeds, else the shipped tag's or a record's one.

    tags: of table2.json.
    """
    found: Rows = {}
    for model in PAPER:
        for protocol in PROTOCOLS:
            shipped = tags.get(f"{model}.{protocol}_cifar10")
            error = shipped.get("loss_error") if shipped else None
            if (summary := heads.summary(model, protocol)) and model != "alexnet_cifar":  # whose runs are a stand-in's
                found[model, protocol] = Row(summary["top1"], summary["loss"], error)
            elif one := shipped or _unshipped(f"{model}.{protocol}_cifar10"):
                found[model, protocol] = Row([one["top1"]], [one["loss"]], error)
    return found


def _unshipped(tag: str) -> dict[str, Any] | None:
    """Return the test figures of a recorded run whose weights are not shipped: AlexNet's row, once it is measured."""
    file = RESULTS / "runs" / f"{tag}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))["test"]) if file.is_file() else None


def spread(measured: Rows, measure: str) -> tuple[float, int]:
    """Return the standard deviation between seeds, pooled over all rows, and its degrees of freedom."""
    several = [row.values(measure) for row in measured.values() if len(row.top1) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return 0.0, 0
    return (sum(statistics.variance(v) * (len(v) - 1) for v in several) / freedom) ** 0.5, freedom


def binomial(top1: float, images: int = 10_000) -> float:
    """Return the standard error of an accuracy in percent."""
    return math.sqrt(top1 * (100 - top1) / images)


def width(deviation: float, freedom: int, seeds: int, sample: float) -> float:
    """Return how far a single published figure may lie from our mean by chance, 95 times in 100.

    Args:
        deviation: between seeds, pooled; freedom: its degrees of freedom.
        seeds: that our mean is of.
        sample: standard error of a figure on the test images.
    """
    return float(stats.t.ppf(0.975, freedom)) * math.sqrt(deviation**2 * (1 + 1 / seeds) + sample**2)


def verdict(measured: Rows, model: str, protocol: str, measure: str = "top1") -> str:
    """Return the verdict on a row's top-1 or loss; "" where it is not measured.

    "reproduced" where the mean reaches the paper's figure at the paper's digits; "short by X" where it is worse by more
    than `width`; "not decided" otherwise, for a single seed, and for a loss without its standard error.
    """
    row = measured.get((model, protocol))
    if row is None:
        return ""
    _, loss, top1, _ = PAPER[model]
    paper, digits, sign = (top1, 1, 1) if measure == "top1" else (loss, 3, -1)
    deviation, freedom = spread(measured, measure)
    sample = binomial(paper) if measure == "top1" else row.loss_error
    if len(row.top1) == 1 or not freedom or sample is None:
        return UNDECIDED
    mean = row.mean(measure)
    if sign * round(mean, digits) >= sign * paper:
        return REPRODUCED
    short = sign * (paper - mean)
    return (
        f"{SHORT} {short:.{MEASURES[measure]}f}"
        if short > width(deviation, freedom, len(row.top1), sample)
        else UNDECIDED
    )
