"""Judges of one claim each, which need a test of their own; the others are in judges.py."""

import math
import statistics

from scipy import stats

from benchmarks.paper.evidence import Evidence, factorial, flag, late, pairwise, pick
from benchmarks.paper.judges import HOLDS, MISSING, NOT, Judged
from benchmarks.paper.verdict import UNDECIDED

MAX_MAX_AVG = {"pool2": "max", "pool3": "max", "global_pool": "avg"}
FACTORS = {"learning rate": "fig6", "pooling": "fig7", "dropout": "fig5", "mid size": "fig10"}


def pool2_costs_most(evidence: Evidence, protocol: str) -> Judged:
    """Of the three single changes from max/max/average, Pooling_2's costs most, the next is less (t-test)."""
    found = evidence.sweep("fig7")
    if found is None:
        return MISSING
    base = pick(found, **MAX_MAX_AVG).mean("top1", protocol)
    changes = {"pool2": "avg", "pool3": "avg", "global_pool": "max"}
    changed = {k: pick(found, **(MAX_MAX_AVG | {k: v})) for k, v in changes.items()}
    costs = {k: base - o.mean("top1", protocol) for k, o in changed.items()}
    first, second, _ = sorted(costs, key=lambda k: -costs[k])
    text = ", ".join(f"{k} to {changes[k]}: {c:+.2f}" for k, c in costs.items())
    text = f"cost in points: {text}{flag(found.items())}"
    if costs[first] - costs[second] <= late(changed[first]):
        return Judged(text)
    (p,) = pairwise(evidence, "fig7", changed[first], [changed[second]], protocol, "top1")
    return Judged(text, UNDECIDED, p, HOLDS if first == "pool2" else NOT)


def sooner(evidence: Evidence, protocol: str) -> Judged:
    """Epochs until the mean test accuracy is within 1 point of a rate's own best: 0.001's against the slowest."""
    found = evidence.sweep("fig8")
    if found is None:
        return MISSING
    epochs = {}
    for label, o in found.items():
        means = [statistics.fmean(column) for column in zip(*o.curves, strict=True)]
        epochs[dict(label)["lr"]] = next(i for i, m in enumerate(means, 1) if m >= max(means) - 1)
    trained = len(next(iter(found.values())).curves[0])
    text = f"{', '.join(f'{lr:g}: {e}' for lr, e in epochs.items())} (of {trained} epochs){flag(found.items())}"
    slowest = max(e for lr, e in epochs.items() if lr < 0.001)
    return Judged(text, HOLDS if epochs[0.001] <= 8 and slowest >= 4 * epochs[0.001] else NOT)


def table3_gain(evidence: Evidence, protocol: str) -> Judged:
    """Table 3's setting beats Table 1's at as many epochs (Welch's t-test)."""
    final, rates = evidence.sweep("table3"), evidence.sweep("fig6")
    if final is None or rates is None:
        return MISSING
    ours, base = next(iter(final.values())), pick(rates, lr=0.001)
    if len(ours.curves[0]) != len(base.curves[0]):
        return MISSING
    gap = ours.mean("top1", protocol) - base.mean("top1", protocol)
    text = f"{gap:+.2f} points (paper +0.6){flag([((), ours)])}"
    if abs(gap) <= late(base if gap > 0 else ours):
        return Judged(text)
    p = float(stats.ttest_ind(ours.top1[protocol], base.top1[protocol], equal_var=False).pvalue)
    return Judged(text, UNDECIDED, p, HOLDS if gap > 0 else NOT)


def matter_most(evidence: Evidence, protocol: str) -> Judged:
    """Over the values swept, learning rate and pooling each move accuracy more than dropout and mid size (t-test)."""
    ranges, errors, freedom = {}, {}, []
    for factor, name in FACTORS.items():
        if (found := evidence.sweep(name)) is None:
            return MISSING
        means = [o.mean("top1", protocol) for o in found.values()]
        deviation, degrees = evidence.spread(name, "top1", protocol)
        ranges[factor], errors[factor] = max(means) - min(means), deviation * (2 / evidence.seeds) ** 0.5
        freedom.append(degrees)
    more = min(("learning rate", "pooling"), key=lambda f: ranges[f])
    less = max(("dropout", "mid size"), key=lambda f: ranges[f])
    gap, error = ranges[more] - ranges[less], math.hypot(errors[more], errors[less])
    text = ", ".join(f"{factor} {value:.1f}" for factor, value in ranges.items())
    p = float(2 * stats.t.sf(abs(gap) / error, min(freedom)))
    return Judged(f"range in points: {text}", UNDECIDED, p, HOLDS if gap > 0 else NOT)


def independent(evidence: Evidence, protocol: str) -> Judged:
    """No interaction between the factors of figures 5 and 7 (F-test of the additive model, smaller p twice)."""
    p = {name: factorial(evidence, name, protocol) for name in ("fig5", "fig7")}
    found = evidence.sweep("fig7")
    if found is None or p["fig5"] is None or p["fig7"] is None:
        return MISSING
    base = pick(found, **MAX_MAX_AVG).mean("top1", protocol)
    changes = ({"pool2": "avg"}, {"pool3": "avg"}, {"pool2": "avg", "pool3": "avg"})
    one, other, both = (pick(found, **(MAX_MAX_AVG | c)).mean("top1", protocol) - base for c in changes)
    text = (
        f"both pools to average: {both:+.2f}, each alone {one:+.2f} and {other:+.2f}; interaction p = {p['fig7']:.0e}"
    )
    text += f", of the dropouts {p['fig5']:.2f}{flag(found.items())}"
    return Judged(text, UNDECIDED, min(1.0, 2 * min(p["fig5"], p["fig7"])), NOT)
