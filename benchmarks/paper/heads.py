"""Table 2's heads: each row with several seeds, by the paper's protocol and by the held-out one.

    python benchmarks/paper/heads.py [--only sq1 fire_next] [--seeds 3] [--workers N] [--plan | --publish]

Trains what is not recorded yet, the cheap rows first, and records each run as it ends, in results/paper/heads/. May be
stopped at any time and started again. --publish then ships, of each row and protocol, the seed with the median top-1 of
the images that chose its epoch. PLAN.md says what is trained and why.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, ROOT, run_main
from benchmarks.paper.records import PROTOCOLS
from benchmarks.paper.runner import Run, carry_out, parser
from benchmarks.record import write_record
from sqzoo.errors import ArgumentError
from sqzoo.train import recipe
from tools.release_weights import publish

HEADS = RESULTS / "paper" / "heads"
ROWS = ("squeezenet_cifar", "sq1", "fire_next", "alexnet_cifar")  # cheap ones first
LINEAR = "alexnet_cifar.linear"  # AlexNet's stand-in: its three linear layers from scratch, whose weights ship nowhere


def tag(row: str, protocol: str) -> str:
    """Return the weights tag of a row in a protocol, "sq1.paper_cifar10" say."""
    return f"{LINEAR}_{protocol}_cifar10" if row == "alexnet_cifar" else f"{row}.{protocol}_cifar10"


def run(row: str, protocol: str, seed: int) -> Run:
    """Return the run of a row: the recipe of its tag's name, for AlexNet with its linear layers from scratch."""
    plan = recipe(f"{protocol}_cifar10", row, seed=seed)
    if row == "alexnet_cifar":
        plan = replace(plan, layers="head", lr=1e-4)
    return Run(f"{tag(row, protocol)}-{seed}", plan)


def runs(rows: list[str], seeds: int) -> list[Run]:
    """Return all runs, in the order in which they begin."""
    return [run(row, protocol, seed) for row in rows for seed in range(seeds) for protocol in PROTOCOLS]


def recorded(one: Run) -> dict[str, Any] | None:
    """Return a run's record, None unless there is one of this very recipe."""
    file = HEADS / f"{one.name}.json"
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return record if record.get("recipe") == one.recipe.to_json() else None


def keep(one: Run, result: dict[str, Any]) -> None:
    """Record a finished run: all of its result, with four digits behind the point in the log's rows."""
    log = [_short(row) for row in result["log"]]
    write_record(HEADS / f"{one.name}.json", {"tag": one.name.rpartition("-")[0]} | result | {"log": log})


def _short(row: Any) -> Any:
    if isinstance(row, dict):
        return {k: _short(v) for k, v in row.items() if k not in ("images", "time", "size")}
    return round(row, 4) if isinstance(row, float) else row


def summary(row: str, protocol: str) -> dict[str, Any] | None:
    """Return the test figures of a row by seed, and what they were made with; None where nothing is recorded.

    Returns:
        {"seeds": [0, ...], "top1": [percent, ...], "loss": [nats, ...], "epochs": 50, "params": ...}.
    """
    found: list[dict[str, Any]] = []
    while record := recorded(run(row, protocol, len(found))):
        found.append(record)
    if not found:
        return None
    return {
        "seeds": [r["recipe"]["seed"] for r in found],
        "top1": [r["test"]["top1"] for r in found],
        "loss": [r["test"]["loss"] for r in found],
        "epochs": max(len(r["log"]) for r in found),
        "params": found[0]["params"],
    }


def median(row: str, protocol: str, seeds: int) -> Run:
    """Return the run with the median top-1, of the images that chose its epoch; of an even number the lower of two.

    Raises:
        ArgumentError: a seed is not recorded.
    """
    own = [run(row, protocol, seed) for seed in range(seeds)]
    known = {one.name: recorded(one) for one in own}
    if missing := [name for name, record in known.items() if record is None]:
        raise ArgumentError(f"{', '.join(missing)}: not recorded; train first, by the same command without --publish.")
    images = "test" if protocol == "paper" else "val"
    return sorted(own, key=lambda one: known[one.name][images]["top1"])[(seeds - 1) // 2]  # type: ignore[index]


def main() -> int:
    """Train and record, or publish."""
    options = parser(__doc__ or "", "runs/heads", ROWS)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--publish", action="store_true", help="ship the heads of the seed with the median result")
    args = options.parse_args()
    if args.seeds < 1:
        raise ArgumentError(f"--seeds must be at least 1, not {args.seeds}.")
    if args.publish:
        for row in [r for r in args.only if r != "alexnet_cifar"]:  # whose 228 MB do not ship
            for protocol in PROTOCOLS:
                one = median(row, protocol, args.seeds)
                publish(Path(args.work) / one.name, tag(row, protocol), ROOT)
                print(f"{tag(row, protocol)}: seed {one.recipe.seed}")
        print("Now: tools/golden.py, benchmarks/table2.py, benchmarks/accuracy/calibrate.py, tools/model_cards.py,")
        print(
            "tools/screenshots.py --terminals, tools/sbom.py and benchmarks/paper/claims.py, as CONTRIBUTING.md says."
        )
        return 0
    plan = runs(args.only, args.seeds)
    if carry_out(plan, lambda: {one.name for one in plan if recorded(one)}, keep, args):
        for row in args.only:
            for protocol in PROTOCOLS:
                print(tag(row, protocol), summary(row, protocol))
    return 0


if __name__ == "__main__":
    run_main(main)
