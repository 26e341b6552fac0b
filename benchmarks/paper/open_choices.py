"""What the paper leaves open about Table 2's rows, decided on held-out images.

    python benchmarks/paper/open_choices.py [--only sq1] [--workers N] [--plan | --render]

Trains each reading of each row on 10,000 images, 12 epochs, two seeds, and looks at the 5,000 held-out ones alone. May
be stopped and started again; each run is recorded as it ends, in results/paper/open_choices.json. Then the table and
the decision, by PLAN.md's rule, are printed and written into docs/paper.md; --render does that alone.
"""

import json
import os
import statistics
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.nn as nn
from filelock import FileLock
from safetensors.torch import save_file
from scipy import stats

from benchmarks import RESULTS, run_main
from benchmarks.paper.runner import Run, carry_out, parser
from benchmarks.record import write_record
from sqzoo.train import Recipe
from sqzoo.train.learner import initial_model
from tools.readme import PAPER, write_into

RECORD = RESULTS / "paper" / "open_choices.json"
TRAINED, EPOCHS, SEEDS, LEVEL = 10_000, 12, 2, 0.05
SHARED = ("normalisation", "batch size", "initial weights")  # choices that are one for all rows
PUBLISHED = {"squeezenet_cifar": 83.1, "sq1": 86.7, "fire_next": 86.5}  # Table 2, top-1 in percent
CLASSIFIER = {"drop_rate": 0.5, "logit_relu": True}  # SqueezeNet's own, around its last convolution


@dataclass(frozen=True)
class Reading:
    """A reading of the paper: the choice in which it differs from the row's base, its value, the recipe's fields."""

    choice: str
    value: str
    fields: dict[str, Any] = field(default_factory=dict, hash=False)
    model_args: dict[str, Any] = field(default_factory=dict, hash=False)


BASE = Reading("base", "as planned")
_ALL = (
    BASE,
    Reading("normalisation", "CIFAR-10's", {"normalisation": "cifar10"}),
    Reading("batch size", "32", {"batch_size": 32}),
    Reading("batch size", "128", {"batch_size": 128}),
    Reading("initial weights", "torchvision's for SqueezeNet"),
)
READINGS: dict[str, tuple[Reading, ...]] = {
    "squeezenet_cifar": (
        *_ALL,
        Reading("learning rate", "0.0004", {"lr": 0.0004}),
        Reading("classifier", "without dropout", model_args={"drop_rate": 0.0}),
        Reading("classifier", "without ReLU", model_args={"logit_relu": False}),
        Reading("classifier", "without both", model_args={"drop_rate": 0.0, "logit_relu": False}),
    ),
    "sq1": (
        *_ALL,
        Reading("before the 1x1 convolution", "Dropout(0.5)", model_args={"conv_drop_rate": 0.5}),
        Reading("between the linear layers", "ReLU", model_args={"mid_relu": True}),
    ),
    "fire_next": (
        *_ALL,
        Reading("classifier", "with Dropout(0.5)", model_args={"drop_rate": 0.5}),
        Reading("classifier", "with ReLU", model_args={"logit_relu": True}),
        Reading("classifier", "with both", model_args=CLASSIFIER),
    ),
}


BASE_FIELDS: dict[str, Any] = {"sizes": ((224, EPOCHS),), "batch_size": 64, "hold_out": 5000, "select": "val"}
LEARNING_RATE = {"squeezenet_cifar": 0.001, "sq1": 0.0004, "fire_next": 0.001}


def run(row: str, reading: Reading, seed: int, starts: Path) -> Run:
    """Return the run of a reading; one with other initial weights starts from a file in the folder `starts`."""
    fields = BASE_FIELDS | {"lr": LEARNING_RATE[row], "model_args": reading.model_args} | reading.fields
    plan = Recipe(row, seed=seed, **fields)
    if reading.choice == "initial weights":
        plan = replace(plan, start=str(starts / f"{row}-{seed}.safetensors"))
    words = [row, reading.choice, reading.value, str(seed)]
    return Run(
        "-".join(w.replace(" ", "_").replace("'", "").replace("(", "").replace(")", "") for w in words), plan, False
    )


def write_start(file: Path, plan: Recipe, trunk: str | None) -> None:
    """Write the weights that a recipe starts from, its head's convolutions initialised like SqueezeNet's."""
    if file.is_file():
        return
    model = initial_model(replace(plan, start="imagenet"), trunk)
    convolutions = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and not n.startswith("features.")]
    for conv in convolutions:
        if conv is model.get_classifier():
            nn.init.normal_(conv.weight, 0.0, 0.01)
        else:
            nn.init.kaiming_uniform_(conv.weight)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), file, {"format": "pt"})


def known() -> dict[str, Any]:
    """Return the recorded runs, by name."""
    return dict(json.loads(RECORD.read_text(encoding="utf-8"))["runs"]) if RECORD.is_file() else {}


def keep(one: Run, result: dict[str, Any]) -> None:
    """Add a finished run to the record; several processes may do so at once."""
    row = {k: result[k] for k in ("recipe", "epoch", "val", "training_seconds", "weights_sha256", "environment")}
    row["val_top1"] = [round(r["val"]["top1"], 2) for r in result["log"]]
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(RECORD.with_name(f".{RECORD.name}.lock")):
        write_record(RECORD, {"train_digest": result["train_digest"], "runs": known() | {one.name: row}})


def scores(row: str, record: dict[str, Any]) -> dict[Reading, list[float]]:
    """Return the best top-1 on the held-out images by seed, of each reading of a row; {} unless all are recorded."""
    names = {r: [run(row, r, seed, Path()).name for seed in range(SEEDS)] for r in READINGS[row]}
    if not all(name in record for own in names.values() for name in own):
        return {}
    return {r: [record[name]["val"]["top1"] for name in own] for r, own in names.items()}


def spread(found: dict[Reading, list[float]]) -> float:
    """Return the standard deviation between seeds, pooled over a row's readings."""
    return statistics.fmean(statistics.variance(values) for values in found.values()) ** 0.5


def decide(record: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return, for each recorded row, the value of each choice in which it leaves the base, by PLAN.md's rule."""
    rows = {row: found for row in READINGS if (found := scores(row, record))}
    result: dict[str, dict[str, str]] = {row: {} for row in rows}
    for row, found in rows.items():
        error = spread(found) * (2 / SEEDS) ** 0.5
        gains = {r: statistics.fmean(v) - statistics.fmean(found[BASE]) for r, v in found.items()}
        for choice in {r.choice for r in found} - {BASE.choice, *SHARED}:
            top = max((r for r in found if r.choice == choice), key=lambda r: gains[r])
            if gains[top] > 2 * error:
                result[row][choice] = top.value
    if len(rows) == len(READINGS):
        errors = [spread(found) * (2 / SEEDS) ** 0.5 for found in rows.values()]
        error = sum(e**2 for e in errors) ** 0.5 / len(errors)
        gains = {
            r: statistics.fmean(statistics.fmean(f[r]) - statistics.fmean(f[BASE]) for f in rows.values())
            for r in _ALL[1:]
        }
        for choice in SHARED:
            top = max((r for r in gains if r.choice == choice), key=lambda r: gains[r])
            if gains[top] > 2 * error:
                for decided in result.values():
                    decided[choice] = top.value
    return result


def fields(row: str, decided: dict[str, str]) -> dict[str, Any]:
    """Return the fields that a recipe of Table 2 gets by a decision, "model_args" among them."""
    chosen = [r for r in READINGS[row] if decided.get(r.choice) == r.value]
    result: dict[str, Any] = {"batch_size": BASE_FIELDS["batch_size"], "lr": LEARNING_RATE[row], "model_args": {}}
    for reading in chosen:
        result |= reading.fields
        result["model_args"] = result["model_args"] | reading.model_args
    return result


def render(record: dict[str, Any]) -> str:
    """Return the table of all readings and the decision as Markdown; `record` is what results/ holds, or {}."""
    runs = record.get("runs", {})
    decided = decide(runs)
    if not decided:
        return "Not measured yet: `python benchmarks/paper/open_choices.py`."
    lines = [
        f"Best top-1 on the 5,000 held-out images within {EPOCHS} epochs on {TRAINED:,} images, mean ± standard "
        f"deviation of {SEEDS} seeds; *decided* by Dunnett's test against the base at 5 %.",
        "",
        "| row | choice | reading | held out, % | against the base | decided |",
        "|---|---|---|---|---|---|",
    ]
    closest = {}
    for row in decided:
        found = scores(row, runs)
        base = found[BASE]
        others = [r for r in found if r is not BASE]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two seeds with the very same accuracy
            p = stats.dunnett(*(found[r] for r in others), control=base, random_state=0).pvalue
        sure = {r: bool(value < LEVEL) for r, value in zip(others, p, strict=True)}
        for reading, values in found.items():
            mean = statistics.fmean(values)
            gap = "" if reading is BASE else f"{mean - statistics.fmean(base):+.2f}"
            cells = [f"`{row}`", reading.choice, reading.value, f"{mean:.2f} ± {statistics.stdev(values):.2f}", gap]
            lines.append(f"| {' | '.join(cells)} | {'' if reading is BASE else 'yes' if sure[reading] else 'no'} |")
        top = min(found, key=lambda r: abs(statistics.fmean(found[r]) - PUBLISHED[row]))
        closest[row] = (
            f"`{row}`: {top.choice} {top.value}, {statistics.fmean(found[top]):.2f} % (paper {PUBLISHED[row]} %)"
        )
    same = len({text.partition(": ")[2].partition(",")[0] for text in closest.values()}) == 1
    lines += [
        "",
        f"Closest to the paper: {'; '.join(closest.values())}. {'The same' if same else 'Not the same'} for all.",
    ]
    for row, changes in decided.items():
        said = ", ".join(f"{choice}: {value}" for choice, value in changes.items()) or "the base stays"
        lines.append(f"- Decided for `{row}`: {said}.")
    if missing := [row for row in READINGS if row not in decided]:
        lines.append(f"- Not recorded yet: {', '.join(missing)}; what is one choice for all rows waits for them.")
    return "\n".join(lines)


def main() -> int:
    """Train, decide, show."""
    options = parser(__doc__ or "", "runs/open_choices", READINGS)
    options.add_argument("--render", action="store_true", help="train nothing, write the table from the record")
    args = options.parse_args()
    starts = Path(os.path.relpath(args.work)) / "start"  # part of the recipe, which is recorded
    runs = [run(row, reading, seed, starts) for row in args.only for reading in READINGS[row] for seed in range(SEEDS)]
    if not args.render:
        starts.mkdir(parents=True, exist_ok=True)
        with FileLock(starts / ".lock"):
            for one in runs if not args.plan else []:
                if one.recipe.start != "imagenet":
                    write_start(Path(one.recipe.start), one.recipe, args.trunk)
        if not carry_out(runs, lambda: set(known()), keep, args, TRAINED):
            return 0
    text = render(json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {})
    write_into(PAPER, "open_choices", text)
    print(text)
    for row, decided in decide(known()).items():
        print(f"{row}: {fields(row, decided)}")
    return 0


if __name__ == "__main__":
    run_main(main)
