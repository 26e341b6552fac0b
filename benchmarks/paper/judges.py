"""The tests behind the claims: each takes the evidence and a protocol, and says what was measured and how sure it is.

A p-value is two-sided and of one claim; `claims.py` corrects those of a column together, and then the verdict stands.
"""

import functools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scipy import stats

from benchmarks.paper.evidence import Evidence, Outcome, flag, late, pairwise, pick
from benchmarks.paper.verdict import PAPER, REPRODUCED, UNDECIDED, binomial, spread, verdict

ALIKE = 0.5  # points of top-1 within which settings count as alike: one and a half standard errors of 10,000 images
SHARE = 2 / 3  # of the paper's gain: what "about" is taken to mean

HOLDS, NOT, OPEN = "holds", "does not hold", "not measured"
Label = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """What was measured, the verdict without a test, and the one if the test's p-value is small, corrected."""

    text: str
    verdict: str = UNDECIDED
    p: float | None = None
    significant: str = ""


Judge = Callable[[Evidence, str], Judged]
Sweep = dict[Any, Outcome]
MISSING = Judged("", OPEN)


# Table 2


def row_level(model: str) -> Judge:
    """The mean over seeds reaches the paper's accuracy: Table 2's own verdict, which PLAN.md defines."""

    def judge(evidence: Evidence, protocol: str) -> Judged:
        row = evidence.rows.get((model, protocol))
        if row is None:
            return MISSING
        said = verdict(evidence.rows, model, protocol)
        one = ", one seed" if len(row.top1) == 1 else ""
        text = f"{row.text().partition(' · ')[2].replace('*', '')} (paper {PAPER[model][2]:.1f} %){one}"
        return Judged(text, HOLDS if said == REPRODUCED else UNDECIDED if said == UNDECIDED else NOT)

    return judge


def row_gain(model: str, base: str, measure: str, paper: float) -> Judge:
    """The gain over another row is above two thirds of the paper's (t-test, deviation pooled over Table 2's rows)."""

    def judge(evidence: Evidence, protocol: str) -> Judged:
        ours, theirs = (evidence.rows.get((m, protocol)) for m in (model, base))
        if ours is None or theirs is None:
            return Judged("" if base != "alexnet_cifar" else "AlexNet's last layer is not measured", OPEN)
        gap = ours.mean(measure) - theirs.mean(measure)
        text = f"{gap:+.2f} (paper {paper:+.2f})"
        deviation, freedom = spread(evidence.rows, measure)
        if min(len(ours.top1), len(theirs.top1)) == 1 or not freedom:
            return Judged(f"{text}, one seed")
        beyond = (gap - SHARE * paper) * (1 if paper > 0 else -1)
        error = deviation * (1 / len(ours.top1) + 1 / len(theirs.top1)) ** 0.5
        return Judged(
            text, UNDECIDED, float(2 * stats.t.sf(abs(beyond) / error, freedom)), HOLDS if beyond > 0 else NOT
        )

    return judge


def count(measured: Callable[[dict[str, int]], float], paper: float, unit: str, note: str = "") -> Judge:
    """A count, exact: the paper's figure is ours, rounded or cut to its digits."""

    def judge(evidence: Evidence, protocol: str) -> Judged:
        value = measured(evidence.params)
        step = 10 if paper % 10 == 0 and "K" in unit and paper < 100 else 1  # "20K" is said to the tens
        same = paper in (step * round(value / step), step * int(value / step))
        return Judged(f"{value:,.1f}{unit} (paper {paper:g}{unit}{note})", HOLDS if same else NOT)

    return judge


# Sweeps


def on_sweep(name: str) -> Callable[[Callable[[Sweep, Evidence, str], Judged]], Judge]:
    """Give a judge the recorded sweep of a name; without one its claim stays open."""

    def decorate(judge: Callable[[Sweep, Evidence, str], Judged]) -> Judge:
        @functools.wraps(judge)
        def of_evidence(evidence: Evidence, protocol: str) -> Judged:
            found = evidence.sweep(name)
            return MISSING if found is None else judge(found, evidence, protocol)

        return of_evidence

    return decorate


def level(name: str, wanted: Label, paper: float) -> Judge:
    """The mean reaches the paper's accuracy; of a rising curve, what it may have missed counts (t-test)."""

    @on_sweep(name)
    def judge(found: Sweep, evidence: Evidence, protocol: str) -> Judged:
        outcome = pick(found, **wanted)
        mean = outcome.mean("top1", protocol)
        text = f"{mean:.2f} ± {outcome.deviation('top1', protocol):.2f} % (paper {paper:.1f} %)"
        text += flag([((), outcome)])
        if round(mean, 1) >= paper:
            return Judged(text, HOLDS)
        deviation, freedom = evidence.spread(name, "top1", protocol)
        error = math.hypot(deviation * (1 + 1 / evidence.seeds) ** 0.5, binomial(paper))
        short = paper - mean - late(outcome)
        return Judged(text, UNDECIDED, float(2 * stats.t.sf(short / error, freedom)) if short > 0 else 1.0, NOT)

    return judge


def gain(name: str, better: Label, worse: Label, paper: float | None = None) -> Judge:
    """The first setting beats the second (t-test)."""

    @on_sweep(name)
    def judge(found: Sweep, evidence: Evidence, protocol: str) -> Judged:
        first, second = pick(found, **better), pick(found, **worse)
        gap = first.mean("top1", protocol) - second.mean("top1", protocol)
        text = f"{gap:+.2f} points{'' if paper is None else f' (paper {paper:+.1f})'}"
        text += flag((label, o) for label, o in found.items() if o in (first, second))
        if abs(gap) <= late(second if gap > 0 else first):
            return Judged(text)
        (p,) = pairwise(evidence, name, first, [second], protocol, "top1")
        return Judged(text, UNDECIDED, p, HOLDS if gap > 0 else NOT)

    return judge


def best(name: str, wanted: Label, measure: str = "top1") -> Judge:
    """The setting is better than each of the others, or another is better than it (Dunnett's test)."""

    @on_sweep(name)
    def judge(found: Sweep, evidence: Evidence, protocol: str) -> Judged:
        sign, ours = (1 if measure == "top1" else -1), pick(found, **wanted)
        others = [(label, o) for label, o in found.items() if o is not ours]
        ahead = [sign * (o.mean(measure, protocol) - ours.mean(measure, protocol)) for _, o in others]
        p = pairwise(evidence, name, ours, [o for _, o in others], protocol, measure)
        top = max(range(len(others)), key=lambda i: ahead[i])
        if ahead[top] > 0:
            label, winner = others[top]
            text = f"best at {', '.join(str(v) for _, v in label)}: {winner.mean(measure, protocol):.3f}"
            text += f", ahead by {ahead[top]:.3f}" + (flag(found.items()) if sign == 1 else "")
            soon = sign == 1 and ahead[top] <= late(ours)
            return Judged(text) if soon else Judged(text, UNDECIDED, min(_where(p, ahead)), NOT)
        text = f"it is, {ours.mean(measure, protocol):.3f}, the next {-ahead[top]:.3f} behind"
        soon = sign == 1 and any(-a <= late(o) for a, (_, o) in zip(ahead, others, strict=True))
        text += flag(found.items()) if sign == 1 else ""
        return Judged(text) if soon else Judged(text, UNDECIDED, max(p), HOLDS)

    return judge


def _where(p: list[float], ahead: list[float]) -> list[float]:
    return [value for value, gap in zip(p, ahead, strict=True) if gap > 0]


def alike(name: str, keep: Callable[[Label], bool], by: str = "") -> Judge:
    """The means lie within half a point (equivalence of the outermost two), or further apart (F-test)."""

    @on_sweep(name)
    def judge(found: Sweep, evidence: Evidence, protocol: str) -> Judged:
        groups: dict[Any, list[float]] = {}
        for label, o in found.items():
            if keep(dict(label)):
                groups.setdefault(dict(label)[by] if by else label, []).extend(o.top1[protocol])
        means = {key: statistics.fmean(values) for key, values in groups.items()}
        apart = max(means.values()) - min(means.values())
        lowest = min(means, key=lambda key: means[key])
        text = f"{min(means.values()):.2f} to {max(means.values()):.2f} %"
        if not by:
            text += flag((label, o) for label, o in found.items() if label in groups)
        if apart > ALIKE:
            soon = not by and apart - late(found[lowest]) <= ALIKE
            return (
                Judged(text) if soon else Judged(text, UNDECIDED, float(stats.f_oneway(*groups.values()).pvalue), NOT)
            )
        pooled, freedom = evidence.spread(name, "top1", protocol)
        error = pooled * (2 / len(groups[lowest])) ** 0.5
        return Judged(text, UNDECIDED, float(2 * stats.t.sf((ALIKE - apart) / error, freedom)) if error else 0.0, HOLDS)

    return judge


def falls(name: str, variable: str, first: float) -> Judge:
    """From a value on, accuracy falls as the variable grows (Spearman's rank correlation over all runs)."""

    @on_sweep(name)
    def judge(found: Sweep, evidence: Evidence, protocol: str) -> Judged:
        own = [(label, o) for label, o in found.items() if dict(label)[variable] >= first]
        points = [(dict(label)[variable], value) for label, o in own for value in o.top1[protocol]]
        rho, p = stats.spearmanr(*zip(*points, strict=True))
        return Judged(f"rank correlation {rho:+.2f}{flag(own)}", UNDECIDED, float(p), HOLDS if rho < 0 else NOT)

    return judge
