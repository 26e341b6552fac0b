"""What was recorded of the sweeps and of Table 2, and the statistics that the claims' judges share."""

import json
import math
import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import RESULTS
from benchmarks.paper.experiments import Experiment, experiments
from benchmarks.paper.records import Outcome, outcomes, recorded
from benchmarks.paper.verdict import Rows, rows

LEVEL = 0.05  # of all tests of a column together
PAPER_EPOCHS = 50  # what the paper says of Fire-Next
UNLIKE = 0.01  # p-value of Bartlett's test below which a figure's deviations between seeds are not pooled


class Evidence:
    """All that was recorded: the sweeps' outcomes, Table 2's rows, parameter counts."""

    def __init__(self, seeds: int) -> None:
        known = recorded(RESULTS / "paper" / "runs.json")
        found = {name: outcomes(e, known, seeds) for name, e in experiments().items()}
        self.sweeps = {name: settings for name, (settings, _) in found.items()}
        self.sizes = {name: len(e.settings) for name, e in experiments().items()}
        self.seeds = seeds
        self.bfloat16 = [e.title.partition(":")[0] for e in experiments().values() if in_bfloat16(e, known)]
        table2 = json.loads((RESULTS / "table2.json").read_text(encoding="utf-8"))
        self.params: dict[str, int] = table2["params"]
        self.rows: Rows = rows(table2["tags"])

    def sweep(self, name: str) -> dict[Any, Outcome] | None:
        """Return a figure's outcomes, or None unless all its settings are recorded."""
        found = self.sweeps[name]
        return found if len(found) == self.sizes[name] else None

    def spread(self, name: str, measure: str, protocol: str) -> tuple[float, int]:
        """Return the standard deviation between seeds, pooled over a figure's settings, and its degrees of freedom."""
        found = self.sweeps[name].values()
        pooled = statistics.fmean(o.deviation(measure, protocol) ** 2 for o in found) ** 0.5
        return pooled, len(found) * (self.seeds - 1)


def in_bfloat16(experiment: Experiment, known: dict[str, Any]) -> bool:
    """Return whether any of an experiment's runs was trained in bfloat16 (weights and evaluation are float32)."""
    names = {setting.name for setting in experiment.settings.values()}
    return any(
        run.rpartition(",seed=")[0] in names
        and "bfloat16" in (entry["recipe"].get("precision"), entry.get("precision"))
        for run, entry in known["runs"].items()
    )


def pick(found: dict[Any, Outcome], **wanted: Any) -> Outcome:
    """Return the outcome of the setting with these values."""
    return next(o for label, o in found.items() if dict(label).items() >= wanted.items())


def rise(outcome: Outcome) -> float:
    """Return the points of test top-1 gained in the second half of the epochs; 0 where the curve rises no more.

    It rises where a line through all seeds' last third of epochs does (regression, one-sided 5 %).
    """
    epochs = len(outcome.curves[0])
    last = range(epochs - math.ceil(epochs / 3), epochs)
    points = [(epoch, curve[epoch]) for epoch in last for curve in outcome.curves]
    if len(last) < 2 or len(points) < 3:
        return 0.0
    line = stats.linregress(*zip(*points, strict=True))
    if not (line.slope > 0 and line.pvalue / 2 < LEVEL):
        return 0.0
    return statistics.fmean(max(curve) - max(curve[: epochs // 2]) for curve in outcome.curves)


def late(outcome: Outcome) -> float:
    """Return the points that our own budget may have cost: twice the `rise`, 0 at the paper's 50 epochs."""
    return 2 * rise(outcome) if len(outcome.curves[0]) < PAPER_EPOCHS else 0.0


def flag(found: Iterable[tuple[Any, Outcome]]) -> str:
    """Return which of the settings have curves that are still rising, as a note behind a figure."""
    rising = [", ".join(str(v) for _, v in label) for label, outcome in found if rise(outcome)]
    if not rising:
        return ""
    return "; still rising" + (
        f": {'; '.join(rising)}" if rising[0] and len(rising) <= 3 else f": {len(rising)}" * (len(rising) > 1)
    )


def pairwise(
    evidence: Evidence, name: str, one: Outcome, others: list[Outcome], protocol: str, measure: str
) -> list[float]:
    """Return the two-sided p-value of each of the others' mean against one's.

    Of several: Dunnett's, which allows for their number. Where Bartlett's test finds deviations plainly unlike: Welch's
    t-test of two settings alone, with Holm's correction. Of one: the t-test with the deviation pooled over the figure.
    """
    ours, theirs = one.values(measure, protocol), [o.values(measure, protocol) for o in others]
    every = [o.values(measure, protocol) for o in evidence.sweeps[name].values()]
    if evidence.seeds > 1 and stats.bartlett(*every).pvalue < UNLIKE:
        return holm([float(stats.ttest_ind(ours, values, equal_var=False).pvalue) for values in theirs])
    if len(theirs) > 1:
        return [float(p) for p in stats.dunnett(*theirs, control=ours, random_state=0).pvalue]
    pooled, freedom = evidence.spread(name, measure, protocol)
    gap, error = (
        abs(one.mean(measure, protocol) - others[0].mean(measure, protocol)),
        pooled * (2 / evidence.seeds) ** 0.5,
    )
    return [float(2 * stats.t.sf(gap / error, freedom)) if error else float(gap == 0)]


def holm(values: list[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in the order given."""
    order, highest, result = sorted(range(len(values)), key=lambda i: values[i]), 0.0, [0.0] * len(values)
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        result[i] = highest
    return result


def factorial(evidence: Evidence, name: str, protocol: str) -> float | None:
    """Return the p-value of all interactions of a figure's factors: the additive model against the full one."""
    found = evidence.sweep(name)
    if found is None:
        return None
    levels = {k: sorted({dict(label)[k] for label in found}) for k, _ in next(iter(found))}
    columns, values = [], []
    for label, o in found.items():
        dummies = [float(dict(label)[k] == v) for k, known in levels.items() for v in known[1:]]
        columns += [[1.0, *dummies]] * len(o.top1[protocol])
        values += o.top1[protocol]
    design, y = np.array(columns), np.array(values)
    additive = float(((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2).sum())
    full = sum(statistics.variance(o.top1[protocol]) * (len(o.top1[protocol]) - 1) for o in found.values())
    between, within = len(found) - design.shape[1], len(y) - len(found)
    return float(stats.f.sf((additive - full) / between / (full / within), between, within))
