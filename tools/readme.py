"""Generated tables in README.md and docs/, each between a pair of markers.

    python tools/readme.py

Writes all of them anew from the manifest and the recorded results; measures nothing. Each benchmark writes its own.
"""

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, ROOT
from sqzoo.weights import Entry, read_manifest

README = ROOT / "README.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
OWN_IMAGES = ROOT / "docs" / "own_images.md"
PAPER = ROOT / "docs" / "paper.md"
PHONES = ROOT / "docs" / "phones.md"
SECURITY = ROOT / "docs" / "security.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
SCALE = ROOT / "docs" / "scale.md"
SEEING = ROOT / "docs" / "seeing.md"
TRAINING = ROOT / "docs" / "training.md"
ZOO = ROOT / "docs" / "zoo.md"


def shown(page: Path, name: str) -> str:
    """Return what stands between a page's markers `<!-- name -->` and `<!-- /name -->`."""
    text = page.read_text(encoding="utf-8")
    return text.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]


def write_into(page: Path, name: str, text: str) -> None:
    """Replace what stands between a page's markers."""
    before, marker, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    if not marker:
        raise SystemExit(f"{page.relative_to(ROOT)} has no marker <!-- {name} -->.")
    after = rest[rest.index(f"<!-- /{name} -->") :]
    page.write_text(before + marker + text + "\n" + after, encoding="utf-8")


def by_accuracy() -> list[Entry]:
    """Return the manifest's tags, the most accurate first."""
    return sorted(read_manifest().values(), key=lambda e: -e.metrics["test_top1"])


def file_size(entry: Entry) -> str:
    """Return the size of a tag's file in MB, and that it holds the head alone where it does."""
    return f"{entry.size / 1e6:.2f} MB{' (head)' if entry.holds == 'head' else ''}"


def zoo() -> str:
    """Return the table of weights tags."""
    lines = ["| tag | top-1, % | parameters | file | network sees |", "|---|---|---|---|---|"]
    for e in by_accuracy():
        cells = [f"`{e.tag}`", f"{e.metrics['test_top1']:.2f}", f"{e.params:,}", file_size(e), f"{e.resolution} px"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tags() -> str:
    """Return the same table with links to the model cards, for docs/zoo.md."""
    return re.sub(r"^\| `(.*?)`", r"| [`\1`](../MODEL_CARDS/\1.md)", zoo(), flags=re.MULTILINE)


def plain_batches(record: dict[str, Any]) -> str:
    """Return the table of results/accuracy/plain_batches.json."""
    lines = ["| tag | recorded | plain batches, own mean and std | CIFAR-10's mean and std |", "|---|---|---|---|"]
    for tag, row in record["tags"].items():
        recorded = read_manifest()[tag].metrics["test_top1"]
        lines.append(f"| `{tag}` | {recorded:.2f} % | {row['own']:.2f} % | {row['cifar10']:.2f} % |")
    return "\n".join(lines)


def optimize(record: dict[str, Any]) -> str:
    """Return the table of results/speed/optimize.json."""
    lines = ["| network, how | fastest run, ms | times torchvision's eager SqueezeNet 1.1 |", "|---|---|---|"]
    base, *names = record["milliseconds"]
    for name in (base, *names):
        ms = record["milliseconds"][name]
        lines.append(f"| {name} | {ms:.2f} | {record['milliseconds'][base] / ms:.1f} |")
    chosen = "; ".join(f"{name}: {how['optimize']}" for name, how in record["chosen"].items())
    load = " to ".join(f"{value:.1f}" for value in record["load_average"])
    machine = f"Machine: {_machine(record['environment'])}, load average {load} from other programs"
    return "\n".join([*lines, "", f"`optimize` chose {chosen}. {machine}."])


def reading(record: dict[str, Any]) -> str:
    """Return the table of results/speed/image_reading.json."""
    lines = ["| network | images | network alone, images/s | from files | ratio |", "|---|---|---|---|---|"]
    for name, run in record.items():
        for kind, row in run["pictures_a_second"].items():
            lines.append(f"| {name} | {kind} | {row['network']:.0f} | {row['from files']:.0f} | {row['ratio']:.2f} |")
    return "\n".join([*lines, "", f"Machine: {_machine(next(iter(record.values()))['environment'])}."])


def codecs(record: dict[str, Any]) -> str:
    """Return the table of results/size/codecs.json."""
    lines = ["| tag | codec | bytes | decoding, ms |", "|---|---|---|---|"]
    for tag, row in record["tags"].items():
        for name, codec in row["codecs"].items():
            lines.append(f"| `{tag}` | {name} | {codec['bytes']:,} | {codec.get('decode_ms', '-')} |")
    loads = ", ".join(f"`{tag}` {row['load_ms']:.0f} ms" for tag, row in record["tags"].items())
    sizes = {e.tag: e.size for e in by_accuracy()}
    former = [f"`{tag}`" for tag, row in record["tags"].items() if row["file_bytes"] != sizes.get(tag)]
    note = f" Measured with earlier weights: {', '.join(former)}." if former else ""
    machine = _machine(record["environment"])
    return "\n".join([*lines, "", f"Loading a tag, checks included: {loads}. Machine: {machine}.{note}"])


def training_speed(record: dict[str, Any]) -> str:
    """Return the sentence on results/speed/training_speed.json."""
    hours = {name: s / 3600 for name, s in record["seconds_for_50_epochs_of_50000"].items()}
    return (
        f"Fifty epochs of Sq-1's head on 50,000 images take {hours['cached'] * 60:.0f} minutes, features included; the "
        f"textbook loop, which runs the backbone in each epoch, takes {hours['textbook']:.1f} hours: "
        f"{record['ratio']:.0f} times as long. Machine: {_machine(record['environment'])}; measured on "
        f"{record['images']:,} images, multiplied up."
    )


def training_memory(record: dict[str, Any]) -> str:
    """Return the sentence on results/speed/training_memory.json."""
    memory, disk = (record[where]["peak_anonymous_gib"] for where in ("memory", "disk"))
    return (
        f"Training `{record['model']}`'s head on all of CIFAR-10 takes {memory:.1f} GiB of memory, {disk:.1f} GiB with "
        "`--cache FOLDER`."
    )


def recipe_search(record: dict[str, Any]) -> str:
    """Return the table of results/accuracy/recipe_search.json, and what its rule decides."""
    lines = ["| run | held out, % | against the base, points | decision |", "|---|---|---|---|"]
    for name, run in record["runs"].items():
        gap, error = run["points_over_base"], run["standard_error"]
        taken = gap > (-2 if run["simpler"] else 2) * error
        if name.startswith("no cutout"):  # which a short run cannot judge: see the benchmark's plan
            short, long = (record["runs"][f"no cutout{epochs}"]["points_over_base"] for epochs in ("", ", 24 epochs"))
            taken = long >= short / 2
        told = ("", "") if name.startswith("base") else (f"{gap:+.2f} ± {error:.2f}", "taken" if taken else "not taken")
        top1 = f"{run['val']['top1']:.2f}"
        lines.append(f"| {' | '.join((name, top1, *told))} |")
    return "\n".join(lines)


def gpu_estimate(record: dict[str, Any]) -> str:
    """Return the sentence on results/speed/gpu_estimate.json."""
    ft, head = (record["launches"][name]["step in all"] for name in ("ft", "head"))
    low, high = (f"{s / 60:.0f}" for s in record["ft_seconds"])
    least, most = (f"{s / 60:.0f}" for s in record["sweep_seconds"])
    least_us, most_us = record["assumed"]["microseconds_per_launch"]
    tera = record["assumed"]["tflops"]
    return (
        f"Estimated for one H100-class GPU, not measured: `ft_cifar10` for `sq1` takes {low} to {high} minutes, the "
        f"paper's sweeps with three seeds {least} to {most}. Counted: {ft} launches per step, with cutout and EMA "
        f"besides, and {head} for a head. Assumed: {least_us} to {most_us} microseconds per launch, {tera:.0f} TFLOPS."
    )


def _machine(environment: dict[str, Any]) -> str:
    return f"{environment['cpu']}, {environment['cores']} cores, torch {environment['versions']['torch']}"


def render(module: str, function: str = "render") -> Callable[[], str]:
    """Return a function that renders results/FOLDER/MODULE.json by a function of the benchmark of that name."""

    def rendered() -> str:
        file = RESULTS / f"{module}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        result: str = getattr(importlib.import_module(f"benchmarks.{module.replace('/', '.')}"), function)(known)
        return result

    return rendered


def record(name: str, function: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """Return a function that renders results/NAME.json by `function`."""
    return lambda: function(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


BLOCKS: dict[tuple[Path, str], Callable[[], str]] = {
    (README, "zoo"): zoo,
    (README, "table2"): render("table2", "paper_rows"),
    (ZOO, "tags"): tags,
    (ZOO, "plain_batches"): record("accuracy/plain_batches", plain_batches),
    (README, "data"): render("accuracy/data", "sentence"),
    (BENCHMARKS, "data"): render("accuracy/data", "details"),
    (PAPER, "table2"): render("table2", "paper_rows"),
    (PAPER, "open_choices"): render("paper/open_choices"),
    (BENCHMARKS, "table2"): render("table2"),
    (BENCHMARKS, "pareto"): render("size/pareto"),
    (BENCHMARKS, "latency"): render("speed/latency"),
    (BENCHMARKS, "optimize"): record("speed/optimize", optimize),
    (BENCHMARKS, "reading"): record("speed/image_reading", reading),
    (BENCHMARKS, "codecs"): record("size/codecs", codecs),
    (TRAINING, "training_speed"): record("speed/training_speed", training_speed),
    (TRAINING, "training_memory"): record("speed/training_memory", training_memory),
    (TRAINING, "recipe_search"): record("accuracy/recipe_search", recipe_search),
    (TRAINING, "gpu_estimate"): record("speed/gpu_estimate", gpu_estimate),
    (OWN_IMAGES, "own_pictures"): render("accuracy/own_images"),
    (OWN_IMAGES, "score_many"): render("speed/score_many"),
    (SEEING, "people"): render("accuracy/people"),
    (ARCHITECTURE, "mutation"): render("robustness/mutation"),
    (PHONES, "phones"): render("size/phones"),
    (SCALE, "costs"): render("speed/score_many", "costs"),
    (SECURITY, "faults"): render("robustness/faults"),
}


if __name__ == "__main__":
    for (page, name), text in BLOCKS.items():
        write_into(page, name, text())
