"""The claims: their tests can come out each way, and the file is what the records say."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import claims, evidence, judges, judges_single
from benchmarks.paper.experiments import experiments
from benchmarks.paper.judges import HOLDS, NOT, OPEN, Judged
from benchmarks.paper.records import Outcome
from benchmarks.paper.verdict import UNDECIDED, Row, verdict, width
from tests.support import ROOT
from tests.support.fork import python

PROTOCOLS = ("paper", "held_out")


class Made(evidence.Evidence):
    """Evidence of one figure, made up: {label: top-1 by seed}, flat curves unless given."""

    def __init__(self, tops: dict[Any, list[float]], name: str = "fig6", curves: dict[Any, Any] | None = None) -> None:
        found = {}
        for value, top1 in tops.items():
            label = value if isinstance(value, tuple) else (("lr", value),)
            both, loss = (dict.fromkeys(PROTOCOLS, values) for values in (top1, [1.0] * 3))
            rows = (curves or {}).get(value) or [[v] * 6 for v in top1]
            found[label] = Outcome(both, loss, top1, rows, 1)
        self.sweeps, self.sizes, self.seeds = {name: found}, {name: len(tops)}, 3
        self.rows, self.params = {}, {"a": 723}


def around(mean: float) -> list[float]:
    return [mean - 0.2, mean, mean + 0.2]


def final(judge: judges.Judge, made: evidence.Evidence) -> str:
    """Return the verdict where the claim is the only one of its source."""
    verdicts = {claims.decide(["x"], [judge(made, protocol)])[0][1] for protocol in PROTOCOLS}
    assert len(verdicts) == 1
    return verdicts.pop()


@pytest.mark.parametrize(
    ("judge", "tops", "expected"),
    [
        (judges.level("fig6", {"lr": 1}, 86.7), {1: around(86.7)}, HOLDS),
        (judges.level("fig6", {"lr": 1}, 86.7), {1: around(86.3)}, UNDECIDED),
        (judges.level("fig6", {"lr": 1}, 86.7), {1: around(84.0), 2: around(86), 3: around(86)}, NOT),
        (judges.gain("fig6", {"lr": 1}, {"lr": 2}), {1: around(86), 2: around(85)}, HOLDS),
        (judges.gain("fig6", {"lr": 1}, {"lr": 2}), {1: around(86), 2: around(85.9)}, UNDECIDED),
        (judges.gain("fig6", {"lr": 1}, {"lr": 2}), {1: around(85), 2: around(86)}, NOT),
        (judges.best("fig6", {"lr": 1}), {1: around(87), 2: around(85), 3: around(84)}, HOLDS),
        (judges.best("fig6", {"lr": 1}), {1: around(86), 2: around(85.9), 3: around(84)}, UNDECIDED),
        (judges.best("fig6", {"lr": 1}), {1: around(86), 2: around(86.1), 3: around(84)}, UNDECIDED),
        (judges.best("fig6", {"lr": 1}), {1: around(85), 2: around(86), 3: around(84)}, NOT),
        (
            judges.best("fig6", {"lr": 1}),
            {1: around(85), 2: around(87), 3: [60.0, 75.0, 85.0]},
            NOT,
        ),  # by Welch and Holm
        (judges.alike("fig6", lambda label: True), {1: [86, 86.01, 86.02], 2: [86.1, 86.11, 86.12]}, HOLDS),
        (judges.alike("fig6", lambda label: True), {1: around(86), 2: around(86.4)}, UNDECIDED),
        (judges.alike("fig6", lambda label: True), {1: [84, 86, 88], 2: [85, 87, 89]}, UNDECIDED),
        (judges.alike("fig6", lambda label: True), {1: around(86), 2: around(85)}, NOT),
        (judges.falls("fig6", "lr", 1), {1: around(86), 2: around(85), 3: around(84)}, HOLDS),
        (judges.falls("fig6", "lr", 1), {1: around(84), 2: around(85), 3: around(86)}, NOT),
        (judges.falls("fig6", "lr", 1), {1: around(85), 2: around(86), 3: around(85)}, UNDECIDED),
    ],
)
def test_verdicts(judge: judges.Judge, tops: dict[Any, list[float]], expected: str) -> None:
    assert final(judge, Made(tops)) == expected


def test_of_twenty_five_settings_the_best_is_seldom_sure() -> None:
    """The best of many equal settings looks better than one of them by chance: Dunnett's test allows for it."""
    tops = {i: around(85.5 + 0.02 * i) for i in range(24)} | {99: around(86.0)}
    assert final(judges.best("fig6", {"lr": 0}), Made(tops)) == UNDECIDED
    assert final(judges.gain("fig6", {"lr": 99}, {"lr": 0}), Made(tops)) == HOLDS  # of these two alone it would be


def test_a_source_is_corrected_together() -> None:
    one = Judged("x", UNDECIDED, 0.03, HOLDS)
    assert claims.decide(["a"], [one]) == [("x, p = 0.03", HOLDS)]
    assert [v for _, v in claims.decide(["a", "a"], [one, one])] == [UNDECIDED] * 2
    assert [v for _, v in claims.decide(["a", "b"], [one, one])] == [HOLDS] * 2
    assert claims.decide(["a"], [Judged("y", OPEN)]) == [("y", OPEN)]
    assert evidence.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def curves(last: float, step: float, epochs: int = 6) -> list[list[float]]:
    """Three seeds that gain `step` an epoch, up to `last`."""
    return [[last + shift - step * (epochs - 1 - i) for i in range(epochs)] for shift in (-0.01, 0.0, 0.01)]


def test_a_setting_that_still_rises_is_not_judged_worse_by_a_budget_of_our_own() -> None:
    tops = {1: around(86), 2: around(85)}
    judge = judges.gain("fig6", {"lr": 1}, {"lr": 2})
    assert final(judge, Made(tops, curves={2: curves(85, 0.3)})) == UNDECIDED
    assert judge(Made(tops, curves={2: curves(85, 0.3)}), "paper").text == "+1.00 points; still rising: 2"
    assert final(judge, Made(tops, curves={2: curves(85, 0.1)})) == HOLDS  # twice 0.3 is less than the gap
    assert final(judge, Made(tops, curves={2: curves(85, 0.3, 50)})) == HOLDS  # the paper's own budget
    behind = {1: around(84.5), 2: around(86), 3: around(86)}
    assert final(judges.level("fig6", {"lr": 1}, 86.7), Made(behind)) == NOT
    assert final(judges.level("fig6", {"lr": 1}, 86.7), Made(behind, curves={1: curves(84.5, 0.4)})) == UNDECIDED


def pools(both: float) -> Made:
    """Figure 7 with pools that cost 4 and 3 points, both together `both`; the last pool's cost is added to all."""
    tops = {}
    for pool2, pool3, last in [(a, b, c) for a in ("max", "avg") for b in ("max", "avg") for c in ("avg", "max")]:
        cost = both if pool2 == pool3 == "avg" else 4.0 * (pool2 == "avg") + 3.0 * (pool3 == "avg")
        label = (("pool2", pool2), ("pool3", pool3), ("global_pool", last))
        tops[label] = around(86 - cost - 2.0 * (last == "max"))
    made = Made(tops, "fig7")
    grid = {(("drop_rate", a), ("logit_drop_rate", b)): around(85 + a + b) for a in (0, 1) for b in (0, 1)}
    other = Made(grid, "fig5")
    made.sweeps |= other.sweeps
    made.sizes |= other.sizes
    return made


def test_independence_is_refuted_by_an_interaction_alone() -> None:
    assert final(judges_single.independent, pools(5.0)) == NOT
    assert final(judges_single.independent, pools(7.0)) == UNDECIDED
    assert final(judges_single.pool2_costs_most, pools(7.0)) == HOLDS
    assert (
        "both pools to average: -5.00, each alone -4.00 and -3.00"
        in judges_single.independent(pools(5.0), "paper").text
    )


def rows(**top1: list[float]) -> Made:
    made = Made({1: around(86)})
    made.rows = {
        (m, p): Row(v, [0.4 + 0.001 * i for i in range(len(v))], 0.008) for m, v in top1.items() for p in PROTOCOLS
    }
    return made


@pytest.mark.parametrize(
    ("top1", "said", "claimed"),
    [
        (around(86.7), "reproduced", HOLDS),
        (around(86.65), "reproduced", HOLDS),  # at the paper's one digit
        (around(86.4), UNDECIDED, UNDECIDED),
        (around(85.0), "short by 1.70", NOT),
        ([86.9], UNDECIDED, UNDECIDED),  # one seed
    ],
)
def test_a_fact_has_one_verdict(top1: list[float], said: str, claimed: str) -> None:
    made = rows(sq1=top1, fire_next=around(86.5), squeezenet_cifar=around(83))
    assert verdict(made.rows, "sq1", "paper") == said
    assert final(judges.row_level("sq1"), made) == claimed
    assert verdict(made.rows, "alexnet_cifar", "paper") == ""
    assert final(judges.row_level("alexnet_cifar"), made) == OPEN


def test_the_interval_is_that_of_the_plan() -> None:
    assert width(0.2, 12, 3, 0.3) == pytest.approx(2.1788 * (0.2**2 * 4 / 3 + 0.3**2) ** 0.5, rel=1e-4)


def test_gains_over_another_row() -> None:
    judge = judges.row_gain("sq1", "squeezenet_cifar", "top1", 3.6)
    base = around(83)
    assert final(judge, rows(sq1=around(86.5), squeezenet_cifar=base)) == HOLDS
    assert final(judge, rows(sq1=around(85.5), squeezenet_cifar=base)) == UNDECIDED
    assert final(judge, rows(sq1=around(84.0), squeezenet_cifar=base)) == NOT
    assert final(judge, rows(sq1=[86.5], squeezenet_cifar=base)) == UNDECIDED
    over = judges.row_gain("sq1", "alexnet_cifar", "top1", 4.0)(rows(sq1=around(86.5)), "paper")
    assert over == Judged("AlexNet's last layer is not measured", OPEN)


@pytest.mark.parametrize(
    ("value", "paper", "unit", "expected"),
    [
        (727.6, 727, "K", HOLDS),
        (727.6, 728, "K", HOLDS),
        (727.6, 773, "K", NOT),
        (23.3, 20, "K", HOLDS),
        (36.6, 80, "K", NOT),
    ],
)
def test_counts(value: float, paper: float, unit: str, expected: str) -> None:
    assert final(judges.count(lambda params: value, paper, unit), Made({1: around(86)})) == expected


def test_what_is_not_recorded_is_not_judged() -> None:
    made = Made({1: around(86)})
    made.sizes["fig6"] = 2
    assert judges.level("fig6", {"lr": 1}, 86.7)(made, "paper") == Judged("", OPEN)


def test_claims_are_those_of_the_records() -> None:
    done = subprocess.run([python(), "benchmarks/paper/claims.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = (ROOT / "benchmarks" / "results" / "paper" / "claims.md").read_text(encoding="utf-8")
    said = r"\*\*(?:holds|does not hold|not decided|not measured)\*\*"
    found = re.findall(rf"^\| \d+ \| .*{said} \| .* \| {said} \|$", text, re.MULTILINE)
    assert len(found) == len(claims.CLAIMS) and len({c.sentence for c in claims.CLAIMS}) == len(claims.CLAIMS)


def test_claims_say_where_bfloat16_was_used() -> None:
    wide = experiments()["fig9"].settings[(("width", 192),)].run(2)
    for precision in ("float32", "bfloat16"):
        for known in ({"recipe": {"precision": precision}}, {"recipe": {}, "precision": precision}):
            found = [name for name, e in experiments().items() if evidence.in_bfloat16(e, {"runs": {wide: known}})]
            assert found == (["fig9"] if precision == "bfloat16" else [])


def test_the_plan_is_where_the_table_says() -> None:
    assert (Path(claims.__file__).parent / "PLAN.md").is_file()
