"""The paper's claims, each judged by a stated test on the recorded runs.

    python benchmarks/paper/claims.py [--check] [--seeds 3]

Writes results/paper/claims.md; with --check writes nothing and exits with 1 where it would change.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scipy import stats

from benchmarks import RESULTS
from benchmarks.paper.experiments import Experiment, experiments
from benchmarks.paper.records import PROTOCOLS, Outcome, outcomes, recorded

FILE = RESULTS / "paper" / "claims.md"
LEVEL = 0.05  # of the tests, one-sided
UNLIKE = 0.01  # p-value of Bartlett's test below which a figure's deviations between seeds are not pooled
ALIKE = 0.5  # points of top-1 within which settings count as alike: one and a half standard errors of 10,000 images

HOLDS, NOT, NOISE, OPEN = "holds", "does not hold", "within noise", "not measured"
Verdict = tuple[str, str]  # what was measured, and the verdict
Label = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper in our words, where it stands, and its judge for a protocol."""

    source: str
    sentence: str
    judge: Callable[["Evidence", str], Verdict]


class Evidence:
    """All that was recorded: the sweeps' outcomes and Table 2's measurements."""

    def __init__(self, seeds: int) -> None:
        known = recorded(RESULTS / "paper" / "runs.json")
        found = {name: outcomes(e, known, seeds) for name, e in experiments().items()}
        self.sweeps = {name: settings for name, (settings, _) in found.items()}
        self.sizes = {name: len(e.settings) for name, e in experiments().items()}
        self.epochs = {name: (epochs, experiments()[name].epochs) for name, (_, epochs) in found.items()}
        self.seeds = seeds
        self.bfloat16 = [e.title.partition(":")[0] for e in experiments().values() if in_bfloat16(e, known)]
        self.table2 = json.loads((RESULTS / "table2.json").read_text(encoding="utf-8"))

    def sweep(self, name: str) -> dict[Any, Outcome] | None:
        """Return a figure's outcomes, or None unless all its settings are recorded."""
        found = self.sweeps[name]
        return found if len(found) == self.sizes[name] else None

    def so_far(self, source: str) -> str:
        """Return "so far" and the epochs for a figure whose runs are shorter than planned; else nothing."""
        trained, planned = self.epochs.get(source.lower().replace("figure ", "fig").replace(" ", ""), (0, 0))
        return f"so far ({trained} of {planned} epochs): " if trained < planned else ""

    def spread(self, name: str, measure: str, protocol: str) -> tuple[float, int]:
        """Return the standard deviation between seeds, pooled over a figure's settings, and its degrees of freedom."""
        found = self.sweeps[name].values()
        pooled = statistics.fmean(o.deviation(measure, protocol) ** 2 for o in found) ** 0.5
        return pooled, len(found) * (self.seeds - 1)

    def table2_row(self, model: str, protocol: str) -> dict[str, Any] | None:
        """Return Table 2's recorded test figures of a model."""
        row: dict[str, Any] | None = self.table2["tags"].get(f"{model}.{protocol}_cifar10")
        return row


def pick(found: dict[Any, Outcome], **wanted: Any) -> Outcome:
    """Return the outcome of the setting with these values."""
    return next(o for label, o in found.items() if dict(label).items() >= wanted.items())


# The tests


def level(name: str, wanted: Label, paper: float) -> Callable[[Evidence, str], Verdict]:
    """Our mean reaches the paper's accuracy; within noise where it is short by less than two standard errors."""

    def judge(evidence: Evidence, protocol: str) -> Verdict:
        found = evidence.sweep(name)
        if found is None:
            return "", OPEN
        outcome = pick(found, **wanted)
        mean, deviation = outcome.mean("top1", protocol), outcome.deviation("top1", protocol)
        error = (paper * (100 - paper) / 10_000 + deviation**2 / evidence.seeds) ** 0.5
        text = f"{mean:.2f} ± {deviation:.2f} % (paper {paper:.1f} %)"
        return text, HOLDS if round(mean, 1) >= paper else NOISE if mean >= paper - 2 * error else NOT

    return judge


def table2_level(model: str, paper: float) -> Callable[[Evidence, str], Verdict]:
    """One run reaches the paper's accuracy; within noise where it is short by less than two standard errors."""

    def judge(evidence: Evidence, protocol: str) -> Verdict:
        row = evidence.table2_row(model, protocol)
        if row is None:
            return "", OPEN
        error = (2 * paper * (100 - paper) / 10_000) ** 0.5
        text = f"{row['top1']:.2f} % (paper {paper:.1f} %)"
        return text, HOLDS if round(row["top1"], 1) >= paper else NOISE if row["top1"] >= paper - 2 * error else NOT

    return judge


def table2_gain(model: str, measure: str, paper: float) -> Callable[[Evidence, str], Verdict]:
    """The gain over SqueezeNet has the paper's sign and two thirds of its size."""

    def judge(evidence: Evidence, protocol: str) -> Verdict:
        rows = [evidence.table2_row(m, protocol) for m in (model, "squeezenet_cifar")]
        if rows[0] is None or rows[1] is None:
            return "", OPEN
        gain = rows[0][measure] - rows[1][measure]
        share = gain / paper
        return f"{gain:+.2f} (paper {paper:+.2f})", HOLDS if share >= 2 / 3 else NOISE if share > 0.2 else NOT

    return judge


def difference(
    evidence: Evidence, name: str, better: Outcome, worse: Outcome, protocol: str, measure: str = "top1"
) -> tuple[float, float]:
    """Return the difference of two means and the p-value of its being above zero.

    t-test with the deviation pooled over the figure; Welch's where one setting's deviation is plainly unlike another's.
    """
    gap = better.mean(measure, protocol) - worse.mean(measure, protocol)
    all_values = [o.values(measure, protocol) for o in evidence.sweeps[name].values()]
    if evidence.seeds > 1 and stats.bartlett(*all_values).pvalue < UNLIKE:
        ours, theirs = better.values(measure, protocol), worse.values(measure, protocol)
        return gap, float(stats.ttest_ind(ours, theirs, equal_var=False, alternative="greater").pvalue)
    spread, freedom = evidence.spread(name, measure, protocol)
    error = spread * (2 / evidence.seeds) ** 0.5
    return gap, float(stats.t.sf(gap / error, freedom)) if error else float(gap <= 0)


def gain(name: str, better: Label, worse: Label, paper: float | None = None) -> Callable[[Evidence, str], Verdict]:
    """The first setting beats the second (one-sided t-test, 5 %)."""

    def judge(evidence: Evidence, protocol: str) -> Verdict:
        found = evidence.sweep(name)
        if found is None:
            return "", OPEN
        gap, p = difference(evidence, name, pick(found, **better), pick(found, **worse), protocol)
        text = f"{gap:+.2f} points{'' if paper is None else f' (paper {paper:+.1f})'}, p = {p:.2g}"
        return text, HOLDS if p < LEVEL else NOT if p > 1 - LEVEL else NOISE

    return judge


def best(name: str, wanted: Label, measure: str = "top1") -> Callable[[Evidence, str], Verdict]:
    """The setting has the best mean; within noise where it is not worse than the best (one-sided t-test, 5 %)."""

    def judge(evidence: Evidence, protocol: str) -> Verdict:
        found = evidence.sweep(name)
        if found is None:
            return "", OPEN
        sign = 1 if measure == "top1" else -1
        label, top = max(found.items(), key=lambda item: sign * item[1].mean(measure, protocol))
        ours = pick(found, **wanted)
        there = f"best at {', '.join(str(v) for _, v in label)}: {top.mean(measure, protocol):.3f}"
        if ours is top:
            return there, HOLDS
        first, second = (top, ours) if sign == 1 else (ours, top)
        gap, p = difference(evidence, name, first, second, protocol, measure)
        return f"{there}, ahead by {gap:.3f}, p = {p:.2g}", NOT if p < LEVEL else NOISE

    return judge


def alike(name: str, keep: Callable[[Label], bool]) -> Callable[[Evidence, str], Verdict]:
    """The means lie within half a point; within noise where an F-test (5 %) sees no difference."""

    def judge(evidence: Evidence, protocol: str) -> Verdict:
        found = evidence.sweep(name)
        if found is None:
            return "", OPEN
        groups = [o.top1[protocol] for label, o in found.items() if keep(dict(label))]
        means = [statistics.fmean(g) for g in groups]
        width, p = max(means) - min(means), float(stats.f_oneway(*groups).pvalue)
        text = f"{min(means):.2f} to {max(means):.2f} %, F-test p = {p:.2g}"
        return text, HOLDS if width <= ALIKE else NOISE if p > LEVEL else NOT

    return judge


def hardly_matters(evidence: Evidence, protocol: str) -> Verdict:
    """Averaged over p2, the means of p1 lie within half a point."""
    found = evidence.sweep("fig5")
    if found is None:
        return "", OPEN
    rates = sorted({dict(label)["drop_rate"] for label in found})
    means = [
        statistics.fmean(o.mean("top1", protocol) for label, o in found.items() if dict(label)["drop_rate"] == rate)
        for rate in rates
    ]
    text = "; ".join(f"p1 = {r}: {m:.2f} %" for r, m in zip(rates, means, strict=True))
    return text, HOLDS if max(means) - min(means) <= ALIKE else NOT


def falls(name: str, variable: str, first: float) -> Callable[[Evidence, str], Verdict]:
    """From a value on, accuracy falls with the variable (Spearman's rank correlation over all runs, 5 %)."""

    def judge(evidence: Evidence, protocol: str) -> Verdict:
        found = evidence.sweep(name)
        if found is None:
            return "", OPEN
        points = [
            (dict(label)[variable], value)
            for label, o in found.items()
            if dict(label)[variable] >= first
            for value in o.top1[protocol]
        ]
        rho, p = stats.spearmanr(*zip(*points, strict=True), alternative="less")
        text = f"rank correlation {rho:+.2f}, p = {p:.2g}"
        return text, HOLDS if p < LEVEL else NOT if p > 1 - LEVEL else NOISE

    return judge


def sooner(evidence: Evidence, protocol: str) -> Verdict:
    """Epochs until the mean test accuracy is within 1 point of a rate's own best: 0.001's against the slowest."""
    found = evidence.sweep("fig8")
    if found is None:
        return "", OPEN
    epochs = {}
    for label, o in found.items():
        means = [statistics.fmean(column) for column in zip(*o.curves, strict=True)]
        epochs[dict(label)["lr"]] = next(i for i, m in enumerate(means, 1) if m >= max(means) - 1)
    text = ", ".join(f"{lr:g}: {e}" for lr, e in epochs.items())
    trained = len(next(iter(found.values())).curves[0])
    slowest = max(e for lr, e in epochs.items() if lr < 0.001)
    text += f" (of {trained} epochs)"
    if trained < 50:
        return f"{text}; the slow rates were still gaining", OPEN
    return text, HOLDS if epochs[0.001] <= 8 and slowest >= 4 * epochs[0.001] else NOT


def count(measured: Callable[[dict[str, int]], float], paper: float, unit: str) -> Callable[[Evidence, str], Verdict]:
    """A count, exact: the paper's figure is ours, rounded or cut to its digits."""

    def judge(evidence: Evidence, protocol: str) -> Verdict:
        value = measured(evidence.table2["params"])
        return f"{value:,.1f}{unit} (paper {paper:g}{unit})", HOLDS if paper in (round(value), int(value)) else NOT

    return judge


BEST5 = {"drop_rate": 0.1, "logit_drop_rate": 0.1}
MAX_MAX_AVG = {"pool2": "max", "pool3": "max", "global_pool": "avg"}
POOL2_AVG = MAX_MAX_AVG | {"pool2": "avg"}


def pool2_costs_most(evidence: Evidence, protocol: str) -> Verdict:
    """Of the three single changes from max/max/average, Pooling_2's costs most."""
    found = evidence.sweep("fig7")
    if found is None:
        return "", OPEN
    base = pick(found, **MAX_MAX_AVG).mean("top1", protocol)
    changes = {"pool2": "avg", "pool3": "avg", "global_pool": "max"}
    costs = {k: base - pick(found, **(MAX_MAX_AVG | {k: v})).mean("top1", protocol) for k, v in changes.items()}
    spread, _ = evidence.spread("fig7", "top1", protocol)
    first, second = sorted(costs.values(), reverse=True)[:2]
    text = ", ".join(f"{k} to {changes[k]}: {c:+.2f}" for k, c in costs.items())
    worst = max(costs, key=costs.__getitem__)
    close = first - second < 2 * spread * (2 / evidence.seeds) ** 0.5
    return f"cost in points: {text}", NOISE if close else HOLDS if worst == "pool2" else NOT


def independent(evidence: Evidence, protocol: str) -> Verdict:
    """The joint search finds nothing better than one factor at a time by more than its noise (see search.json)."""
    file = RESULTS / "tried" / "search.json"
    if not file.is_file():
        return "", OPEN
    searched = json.loads(file.read_text(encoding="utf-8"))
    found, spent = searched["comparison"], searched["epochs_spent"]
    ours, theirs = found["joint"], found["one_factor"]
    gap = ours["mean"] - theirs["mean"]
    means = (f"{name} {c['mean']:.2f} ± {c['sd']:.2f} %" for name, c in (("joint", ours), ("one at a time", theirs)))
    text = f"{', '.join(means)}, p = {found['p']:.2g}"
    short = spent["joint"] < spent["one_factor_a_seed"]
    early = f"so far ({spent['joint']} of {spent['one_factor_a_seed']} epochs searched): " if short else ""
    return text, early + (NOT if found["p"] < LEVEL and gap > 0 else HOLDS)


CLAIMS = [
    Claim("Table 2", "SqueezeNet 1.1, last layer retrained, has 83.1 %", table2_level("squeezenet_cifar", 83.1)),
    Claim("Table 2", "Sq-1 has 86.7 %", table2_level("sq1", 86.7)),
    Claim("Table 2", "Fire-Next has 86.5 %", table2_level("fire_next", 86.5)),
    Claim("Table 2", "Sq-1 gains about 3 points over SqueezeNet", table2_gain("sq1", "top1", 3.6)),
    Claim("Table 2", "Fire-Next gains about 3 points over SqueezeNet", table2_gain("fire_next", "top1", 3.4)),
    Claim("Table 2", "Sq-1 lowers SqueezeNet's loss by about 0.1", table2_gain("sq1", "loss", -0.087)),
    Claim("Table 2", "Fire-Next lowers SqueezeNet's loss by about 0.1", table2_gain("fire_next", "loss", -0.086)),
    Claim("Table 2", "SqueezeNet has 773K parameters", count(lambda p: p["squeezenet_cifar"] / 1e3, 773, "K")),
    Claim("Table 2", "Sq-1 (mid 64) has 797K parameters", count(lambda p: p["sq1_mid64"] / 1e3, 797, "K")),
    Claim("Table 2", "Fire-Next has 691K parameters", count(lambda p: p["fire_next"] / 1e3, 691, "K")),
    Claim("Table 2", "AlexNet has 57M parameters", count(lambda p: p["alexnet_cifar"] / 1e6, 57, "M")),
    Claim("text", "Sq-1 has x71 fewer parameters than AlexNet", count(lambda p: p["alexnet_cifar"] / p["sq1"], 71, "")),
    Claim(
        "text",
        "Fire-Next has x82 fewer parameters than AlexNet",
        count(lambda p: p["alexnet_cifar"] / p["fire_next"], 82, ""),
    ),
    Claim("Table 1", "Sq-1's base setting has 86.1 %", level("table1", {}, 86.1)),
    Claim("Table 3", "Sq-1's final setting has 86.7 %", level("table3", {}, 86.7)),
    Claim("Figure 5", "dropout 0.1 / 0.1 is best", best("fig5", BEST5)),
    Claim("Figure 5", "dropout 0.1 / 0.1 has 86.3 %", level("fig5", BEST5, 86.3)),
    Claim(
        "Figure 5",
        "p2 from 0 to 0.1 gains 0.6 points (at p1 = 0.1)",
        gain("fig5", BEST5, BEST5 | {"logit_drop_rate": 0.0}, 0.6),
    ),
    Claim("Figure 5", "p1 hardly matters", hardly_matters),
    Claim("Figure 6", "a learning rate of 0.0004 has 86.7 %", level("fig6", {"lr": 0.0004}, 86.7)),
    Claim("Figure 6", "a learning rate of 0.0008 has 86.6 %", level("fig6", {"lr": 0.0008}, 86.6)),
    Claim("Figure 6", "below 0.001 all rates are alike", alike("fig6", lambda label: label["lr"] < 0.001)),
    Claim(
        "Figure 6",
        "from 0.002 on accuracy suffers: it is below 0.0008's",
        gain("fig6", {"lr": 0.0008}, {"lr": 0.002}),
    ),
    Claim("Figure 6", "and quickly: it falls from 0.001 to 0.01", falls("fig6", "lr", 0.001)),
    Claim("Figure 7", "max / max / average is the best pooling", best("fig7", MAX_MAX_AVG)),
    Claim("Figure 7", "max / max / average has 85.9 %", level("fig7", MAX_MAX_AVG, 85.9)),
    Claim("Figure 7", "Pooling_2 to average costs most", pool2_costs_most),
    Claim("Figure 7", "Pooling_2 to average has 80.2 %", level("fig7", POOL2_AVG, 80.2)),
    Claim("Figure 8", "0.001 is Fire-Next's best learning rate", best("fig8", {"lr": 0.001})),
    Claim("Figure 8", "0.001 converges up to 5 times sooner, in about 8 epochs", sooner),
    Claim("Figure 8", "0.005 ends lower than 0.001", gain("fig8", {"lr": 0.001}, {"lr": 0.005})),
    Claim("Figure 8", "0.00002 ends lower than 0.001", gain("fig8", {"lr": 0.001}, {"lr": 0.00002})),
    Claim("Figure 9", "output sizes 100 to 256 all have about 86.5 %: alike", alike("fig9", lambda label: True)),
    Claim("Figure 9", "an output size of 128 has 86.5 %", level("fig9", {"width": 128}, 86.5)),
    Claim("Figure 9", "an output size of 128 has the lowest loss", best("fig9", {"width": 128}, "loss")),
    Claim("Figure 10", "a mid size of 32 is best", best("fig10", {"mid": 32})),
    Claim("Figure 10", "from 32 on accuracy falls as the mid layer grows", falls("fig10", "mid", 32)),
    Claim("text", "the factors are independent: one at a time finds the best setting", independent),
]


def in_bfloat16(experiment: Experiment, known: dict[str, Any]) -> bool:
    """Return whether any of an experiment's runs was trained in bfloat16 (weights and evaluation are float32)."""
    names = {setting.name for setting in experiment.settings.values()}
    return any(
        run.rpartition(",seed=")[0] in names and about["recipe"].get("precision") == "bfloat16"
        for run, about in known["runs"].items()
    )


def _verdict(evidence: Evidence, claim: Claim, protocol: str) -> Verdict:
    text, verdict = claim.judge(evidence, protocol)
    return text, verdict if verdict == OPEN else evidence.so_far(claim.source) + verdict


def render(evidence: Evidence) -> str:
    """Return claims.md."""
    judged = [(claim, [_verdict(evidence, claim, protocol) for protocol in PROTOCOLS]) for claim in CLAIMS]
    tally = [sum(verdict[1] != OPEN for verdict in verdicts) for verdicts in zip(*(v for _, v in judged), strict=True)]
    early = sum(v[0][1].startswith("so far") for _, v in judged)
    lines = [
        "# The paper's claims",
        "",
        "Made by `python benchmarks/paper/claims.py` from runs.json, ../table2.json and search.json; do not edit.",
        "",
        f"{len(judged)} claims, {max(tally)} judged, {early} of these so far only. Paper's protocol: the best epoch on "
        "the test images. "
        "Held-out: the epoch chosen on 5,000 training images. Sweeps train on 45,000 images in both columns, "
        f"{evidence.seeds} seeds, mean ± standard deviation; Table 2's rows are single runs. Counts have no protocol."
        + (f" Trained in bfloat16, the rest in float32: {', '.join(evidence.bfloat16)}." if evidence.bfloat16 else ""),
        "",
        "| # | source | claim | paper's protocol | verdict | held-out protocol | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, (claim, verdicts) in enumerate(judged, 1):
        cells = itertools.chain.from_iterable((text or "-", f"**{verdict}**") for text, verdict in verdicts)
        lines.append(f"| {number} | {claim.source} | {claim.sentence} | {' | '.join(cells)} |")
    lines += ["", "## The tests", ""]
    tests = {claim.judge.__qualname__.partition(".")[0]: claim.judge for claim in CLAIMS}
    for name in tests:
        numbers = [str(i) for i, c in enumerate(CLAIMS, 1) if c.judge.__qualname__.partition(".")[0] == name]
        lines.append(f"- {', '.join(numbers)}: {globals()[name].__doc__.strip()}")
    lines += [
        "",
        '"So far": the runs are shorter than planned, so a verdict may change when they are lengthened '
        "(`python benchmarks/paper/figures.py`).",
        "",
        f"Means count as alike within {ALIKE} points. Deviations between seeds are pooled over a figure's settings, "
        f"unless Bartlett's test finds them unlike (p < {UNLIKE}): then a t-test is Welch's, of two settings alone. A "
        "test on one figure does not allow for the many that are made: of twenty, one misleads.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the verdicts, or compare them with those written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    text = render(Evidence(arguments.seeds))
    if arguments.check:
        same = FILE.is_file() and FILE.read_text(encoding="utf-8") == text
        print("claims.md is up to date." if same else "claims.md would change; run python benchmarks/paper/claims.py.")
        return 0 if same else 1
    FILE.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
