"""The paper's claims, each judged by a stated test on the recorded runs.

    python benchmarks/paper/claims.py [--check] [--seeds 3]

Writes results/paper/claims.md; with --check writes nothing and exits with 1 where it would change.
"""

import argparse
import itertools
import sys
from dataclasses import dataclass

from benchmarks import RESULTS
from benchmarks.paper.evidence import LEVEL, UNLIKE, Evidence, holm
from benchmarks.paper.judges import (
    ALIKE,
    Judge,
    Judged,
    alike,
    best,
    count,
    falls,
    gain,
    level,
    row_gain,
    row_level,
)
from benchmarks.paper.judges_single import (
    MAX_MAX_AVG,
    independent,
    matter_most,
    pool2_costs_most,
    sooner,
    table3_gain,
)
from benchmarks.paper.records import PROTOCOLS

FILE = RESULTS / "paper" / "claims.md"


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper in our words, where it stands, and its judge."""

    source: str
    sentence: str
    judge: Judge


BEST5 = {"drop_rate": 0.1, "logit_drop_rate": 0.1}
POOL2_AVG = MAX_MAX_AVG | {"pool2": "avg"}
HUNDRED = "; beside a 100-way SqueezeNet, which the paper counted, it has {}"

CLAIMS = [
    Claim("Table 2", "SqueezeNet 1.1, last layer retrained, has 83.1 %", row_level("squeezenet_cifar")),
    Claim("Tables 2, 3", "Sq-1, Table 3's final setting, has 86.7 %", row_level("sq1")),
    Claim("Table 2", "Fire-Next has 86.5 %", row_level("fire_next")),
    Claim("Table 2", "Sq-1 gains about 3 points over SqueezeNet", row_gain("sq1", "squeezenet_cifar", "top1", 3.6)),
    Claim("Table 2", "Fire-Next gains about 3 points over it", row_gain("fire_next", "squeezenet_cifar", "top1", 3.4)),
    Claim("Table 2", "Sq-1 lowers its loss by about 0.1", row_gain("sq1", "squeezenet_cifar", "loss", -0.087)),
    Claim(
        "Table 2", "Fire-Next lowers its loss by about 0.1", row_gain("fire_next", "squeezenet_cifar", "loss", -0.086)
    ),
    Claim("Table 2", "Sq-1 gains about 3 points over AlexNet", row_gain("sq1", "alexnet_cifar", "top1", 4.0)),
    Claim(
        "Table 2", "Fire-Next gains about 3 points over AlexNet", row_gain("fire_next", "alexnet_cifar", "top1", 3.8)
    ),
    Claim("Table 2", "SqueezeNet has 773K parameters", count(lambda p: p["squeezenet_cifar"] / 1e3, 773, "K")),
    Claim("Table 2", "Sq-1 (mid 64) has 797K parameters", count(lambda p: p["sq1_mid64"] / 1e3, 797, "K")),
    Claim("Table 2", "Fire-Next has 691K parameters", count(lambda p: p["fire_next"] / 1e3, 691, "K")),
    Claim("Table 2", "AlexNet has 57M parameters", count(lambda p: p["alexnet_cifar"] / 1e6, 57, "M")),
    Claim("text", "Sq-1 has x71 fewer parameters than AlexNet", count(lambda p: p["alexnet_cifar"] / p["sq1"], 71, "")),
    Claim("text", "Fire-Next has x82 fewer than AlexNet", count(lambda p: p["alexnet_cifar"] / p["fire_next"], 82, "")),
    Claim(
        "text",
        "Sq-1 (mid 64) has 20K more parameters than SqueezeNet",
        count(lambda p: (p["sq1_mid64"] - p["squeezenet_cifar"]) / 1e3, 20, "K", HUNDRED.format("23.3K more")),
    ),
    Claim(
        "text",
        "Fire-Next has 80K fewer parameters than SqueezeNet",
        count(lambda p: (p["squeezenet_cifar"] - p["fire_next"]) / 1e3, 80, "K", HUNDRED.format("82.8K fewer")),
    ),
    Claim(
        "text",
        "that is about 10 %",
        count(lambda p: 100 - 100 * p["fire_next"] / p["squeezenet_cifar"], 10, " %", HUNDRED.format("10.7 % fewer")),
    ),
    Claim("Table 1", "Sq-1's base setting has 86.1 %", level("table1", {}, 86.1)),
    Claim("Table 3", "the final setting gains 0.6 points over the base", table3_gain),
    Claim("Figure 5", "dropout 0.1 / 0.1 is best", best("fig5", BEST5)),
    Claim("Figure 5", "dropout 0.1 / 0.1 has 86.3 %", level("fig5", BEST5, 86.3)),
    Claim(
        "Figure 5",
        "p2 from 0 to 0.1 gains 0.6 points (at p1 = 0.1)",
        gain("fig5", BEST5, BEST5 | {"logit_drop_rate": 0.0}, 0.6),
    ),
    Claim("Figure 5", "p1 hardly matters (averaged over p2)", alike("fig5", lambda label: True, "drop_rate")),
    Claim("Figure 6", "a learning rate of 0.0004 has 86.7 %", level("fig6", {"lr": 0.0004}, 86.7)),
    Claim("Figure 6", "a learning rate of 0.0008 has 86.6 %", level("fig6", {"lr": 0.0008}, 86.6)),
    Claim("Figure 6", "below 0.001 all rates are alike", alike("fig6", lambda label: label["lr"] < 0.001)),
    Claim("Figure 6", "from 0.002 on accuracy suffers: below 0.0008's", gain("fig6", {"lr": 0.0008}, {"lr": 0.002})),
    Claim("Figure 6", "and quickly: it falls from 0.001 to 0.01", falls("fig6", "lr", 0.001)),
    Claim("Figure 7", "max / max / average is the best pooling", best("fig7", MAX_MAX_AVG)),
    Claim("Figure 7", "max / max / average has 85.9 %", level("fig7", MAX_MAX_AVG, 85.9)),
    Claim("Figure 7", "Pooling_2 to average costs most", pool2_costs_most),
    Claim("Figure 7", "Pooling_2 to average has 80.2 %", level("fig7", POOL2_AVG, 80.2)),
    Claim("Figure 8", "0.001 is Fire-Next's best learning rate (text)", best("fig8", {"lr": 0.001})),
    Claim("Figure 8", "or 0.01 (its caption, in one place)", gain("fig8", {"lr": 0.01}, {"lr": 0.001})),
    Claim("Figure 8", "0.001 converges up to 5 times sooner, in about 8 epochs", sooner),
    Claim("Figure 8", "0.005 ends lower than 0.001", gain("fig8", {"lr": 0.001}, {"lr": 0.005})),
    Claim("Figure 8", "0.00002 ends lower than 0.001", gain("fig8", {"lr": 0.001}, {"lr": 0.00002})),
    Claim("Figure 9", "output sizes 100 to 256 all have about 86.5 %: alike", alike("fig9", lambda label: True)),
    Claim("Figure 9", "an output size of 128 has 86.5 %", level("fig9", {"width": 128}, 86.5)),
    Claim("Figure 9", "an output size of 128 has the lowest loss", best("fig9", {"width": 128}, "loss")),
    Claim("Figure 10", "a mid size of 32 is best", best("fig10", {"mid": 32})),
    Claim("Figure 10", "from 32 on accuracy falls as the mid layer grows", falls("fig10", "mid", 32)),
    Claim("text", "learning rate and pooling matter most", matter_most),
    Claim("text", "the factors are independent", independent),
]


def decide(sources: list[str], judged: list[Judged]) -> list[tuple[str, str]]:
    """Return each claim's text and verdict: its p-value counts as corrected for all of its source's together."""
    corrected: dict[int, float] = {}
    for source in set(sources):
        tested = [i for i, one in enumerate(judged) if one.p is not None and sources[i] == source]
        corrected |= zip(tested, holm([judged[i].p or 0.0 for i in tested]), strict=True)
    result = []
    for i, one in enumerate(judged):
        text = one.text if one.p is None else f"{one.text}, p = {one.p:.1g}"
        result.append((text, one.significant if corrected.get(i, 1.0) < LEVEL else one.verdict))
    return result


def render(evidence: Evidence) -> str:
    """Return claims.md."""
    sources = [claim.source for claim in CLAIMS]
    columns = [decide(sources, [claim.judge(evidence, protocol) for claim in CLAIMS]) for protocol in PROTOCOLS]
    verdicts = [verdict for _, verdict in columns[0]]
    tally = ", ".join(f"{verdicts.count(v)} {v}" for v in sorted(set(verdicts), key=lambda v: -verdicts.count(v)))
    half = f" Trained in bfloat16, the rest in float32: {', '.join(evidence.bfloat16)}." if evidence.bfloat16 else ""
    lines = [
        "# The paper's claims",
        "",
        "Made by `python benchmarks/paper/claims.py` from runs.json, heads/ and ../table2.json; do not edit.",
        "",
        f"{len(CLAIMS)} claims; by the paper's protocol {tally}. Paper's protocol: the best epoch on the test images. "
        "Held-out: the epoch chosen on 5,000 training images. Sweeps train on 45,000 images in both columns, "
        f"{evidence.seeds} seeds, mean ± standard deviation. Counts have no protocol.{half}",
        "",
        "| # | source | claim | paper's protocol | verdict | held-out protocol | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, (claim, *pairs) in enumerate(zip(CLAIMS, *columns, strict=True), 1):
        cells = itertools.chain.from_iterable((text or "-", f"**{verdict}**") for text, verdict in pairs)
        lines.append(f"| {number} | {claim.source} | {claim.sentence} | {' | '.join(cells)} |")
    lines += ["", "## The tests", ""]
    tests: dict[str, list[int]] = {}
    said: dict[str, str] = {}
    for number, claim in enumerate(CLAIMS, 1):
        name = claim.judge.__qualname__.partition(".")[0]
        tests.setdefault(name, []).append(number)
        said[name] = (getattr(sys.modules[claim.judge.__module__], name).__doc__ or "").strip()
    lines += [f"- {', '.join(map(str, numbers))}: {said[name]}" for name, numbers in tests.items()]
    lines += [
        "",
        f"p is two-sided and of the one claim; the verdict takes all of a source together (Holm, {LEVEL:.0%}), "
        "and where a test sees nothing it is *not decided*. *Still rising*: a line through the last third of the "
        "epochs rises (5 %); at fewer epochs than the paper's 50, a setting that is behind by no more than twice what "
        f"it gained in the second half is not judged worse. Means count as alike within {ALIKE} points. Deviations "
        "between seeds are pooled over a figure's settings, unless Bartlett's test finds them unlike "
        f"(p < {UNLIKE}): then tests are Welch's, of two settings alone. PLAN.md beside the code says more.",
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
