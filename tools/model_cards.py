"""Model cards, one per weights tag, made from the manifest and the recorded runs.

    python tools/model_cards.py [--check]

Writes MODEL_CARDS/TAG.md in the Hub's format and its plot, TAG.svg; with --check writes nothing and exits with 1 where
one would change. Per-class figures are those of the last `benchmarks/table2.py`.
"""

import argparse
import json
import re
import statistics
import sys
from typing import Any

from benchmarks import RESULTS, ROOT
from benchmarks.accuracy.data import sentence
from benchmarks.paper import heads
from benchmarks.paper.records import PROTOCOLS as PROTOCOL_NAMES
from benchmarks.paper.records import recorded
from sqzoo.report.plots import confusion_and_calibration
from sqzoo.weights import CIFAR10_CLASSES, Entry, read_manifest

CARDS = ROOT / "MODEL_CARDS"

WHAT = {
    "squeezenet_cifar": "SqueezeNet 1.1 with its last layer sized for CIFAR-10 (paper, Table 2, row 2)",
    "sq1": "Sq-1: SqueezeNet 1.1's backbone, a 1x1 convolution and two linear layers (paper, Tables 2 and 3)",
    "fire_next": "Fire-Next: SqueezeNet 1.1 with a SqueezeNext block for its last Fire module (paper, Table 2)",
    "alexnet_cifar": "AlexNet with its last layer sized for CIFAR-10 (paper, Table 2, row 1)",
}
VAL = "The epoch was chosen on validation images held out of training."
PROTOCOLS = {
    "test": "The paper's own protocol: the best epoch was chosen **on the test images**, which flatters the figure.",
    "val": VAL,
    "held_out": VAL,  # in entries of before
    "last": "The last epoch counts; no epoch was chosen.",
    "mean": "The runs whose weights are averaged were chosen on validation images.",
    "coded": "Bits were assigned by sensitivity on training images.",
}


# An assumption, stated in the card: a server core at work, and the world's mean for a kilowatt-hour.
WATTS, GRAMS = 15, 450


def card(entry: Entry, record: dict[str, Any], measured: dict[str, Any], unsure: dict[str, Any]) -> str:
    """Return the card of a tag: YAML metadata with a model-index, then what a reader wants to know.

    record: its training run, or its compression. measured: its row of table2.json. unsure: unsure.json.
    """
    made = _compression(record) if entry.stored == "coded" else _training(entry, record)
    parts = [_use(entry), _results(entry, record), _classes(entry, measured), _unsure(entry, unsure), made]
    parts.append(_limits(entry))
    return "\n".join([_metadata(entry), *(line for part in parts for line in part)])


def _metadata(entry: Entry) -> str:
    return f"""---
library_name: sqzoo
pipeline_tag: image-classification
license: bsd-3-clause
datasets:
- uoft-cs/cifar10
metrics:
- accuracy
model-index:
- name: {entry.tag}
  results:
  - task:
      type: image-classification
    dataset:
      name: CIFAR-10
      type: uoft-cs/cifar10
      split: test
    metrics:
    - type: accuracy
      value: {entry.metrics["test_top1"] / 100:.4f}
    - type: loss
      value: {entry.metrics["test_loss"]:.4f}
---
"""


def _use(entry: Entry) -> list[str]:
    head = entry.holds == "head"
    stored = "a head, joined as it loads with torchvision's ImageNet backbone" if head else "complete, in the package"
    if entry.stored == "coded":
        stored += ", its weights decoded as they load"
    trunk = "  # downloads the backbone once" if head else ""
    return [
        f"# {entry.tag}",
        "",
        f"{WHAT[entry.architecture]}. {entry.params:,} parameters; the file has {entry.size / 1e6:.2f} MB and is "
        f"{stored}.",
        "",
        "## Use",
        "",
        "```python",
        "import sqzoo",
        "from sqzoo.predict import predict",
        "",
        f'model = sqzoo.create_model("{entry.tag}", pretrained=True){trunk}',
        'print(predict(model, "examples/cat.jpg", top_k=3))',
        "```",
        "",
        f"Classes: {', '.join(CIFAR10_CLASSES)}.",
        "",
        _images(entry),
        "",
    ]


def _images(entry: Entry) -> str:
    size, upsample, temperature = entry.input_size[1], entry.model_args["upsample"], entry.model_args.get("temperature")
    crop = f" and takes the central {upsample[1]}x{upsample[1]}" if isinstance(upsample, list) else ""
    side = upsample[0] if isinstance(upsample, list) else upsample
    lines = [
        f"Images: RGB at {size}x{size}, mean {entry.mean}, std {entry.std}; the network enlarges them to {side}x{side} "
        f"itself{crop}. A larger image is first reduced to {size}x{size} with antialiasing, so a sharp photo is seen "
        "as CIFAR-10 was made: its shapes and colours, not its fine detail."
    ]
    if temperature:
        lines.append(f"The softmax temperature, {temperature:.2f}, is part of the network (`model_args`), too.")
    return " ".join(lines)


def _results(entry: Entry, record: dict[str, Any]) -> list[str]:
    test, held = record["test"], record.get("val") or record.get("held_out")
    error = (test["top1"] * (100 - test["top1"]) / test["images"]) ** 0.5
    protocol = "coded" if entry.stored == "coded" else "mean" if "mean_of" in record else entry.metrics["selected_on"]
    lines = [
        "## Results",
        "",
        "| images | top-1 | loss |",
        "|---|---|---|",
        f"| CIFAR-10 test, {test['images']:,} | {test['top1']:.2f} % ± {error:.2f} | {test['loss']:.4f} |",
    ]
    if test["exact_images"] < test["images"]:
        lines.append(
            f"| of these with the published pixels, {test['exact_images']:,} | {test['top1_exact_pixels']:.2f} % | |"
        )
    if held:
        lines.append(f"| held out of training, {held['images']:,} | {held['top1']:.2f} % | {held['loss']:.4f} |")
    if entry.stored == "coded":
        parent, apart = record["recipe"]["parent"], record["parent"]["held_out"]
        lines.append(f"| its parent `{parent}`, test | {record['parent']['test_top1']:.2f} % | |")
        lines.append(f"| its parent, held out | {apart['top1']:.2f} % | {apart['loss']:.4f} |")
    lines += [
        "",
        f"One view an image; ± is one standard error of the sample. {_seeds(entry)} {PROTOCOLS[protocol]} "
        f"{_looks(entry)}",
        f"Record: `{entry.metrics['source']}`; verify with `python benchmarks/table2.py --only {entry.tag}`.",
        "",
    ]
    return lines


def _seeds(entry: Entry) -> str:
    """Return how many seeds stand behind a tag: those of Table 2's heads, where they are recorded."""
    seed = entry.recipe.get("seed", 0)
    protocol = entry.tag.partition(".")[2].removesuffix("_cifar10")
    found = heads.summary(entry.architecture, protocol) if protocol in PROTOCOL_NAMES else None
    if not found or len(found["top1"]) < 2:
        return "One seed."
    top1 = found["top1"]
    return (
        f"Seed {seed}, the median of {len(top1)}, whose test top-1 is {statistics.fmean(top1):.2f} ± "
        f"{statistics.stdev(top1):.2f} % (standard deviation)."
    )


def _looks(entry: Entry) -> str:
    """Return how many recorded runs were evaluated on the test images: those of heads, or of all layers."""

    def kind(recipe: dict[str, Any]) -> tuple[bool, bool]:
        all_layers = recipe.get("trunk") == "trained" or recipe.get("layers") == "all"
        return recipe["model"].startswith("alexnet"), all_layers

    files = [f for folder in ("runs", "tried", "paper/heads") for f in (RESULTS / folder).glob("*.*.json")]
    records = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    looked = [r["recipe"] for r in records.values() if r.get("test")]
    looked += [run["recipe"] for run in recorded(RESULTS / "paper" / "runs.json")["runs"].values()]  # after each epoch
    own = (entry.architecture.startswith("alexnet"), entry.holds == "complete")
    count = sum(kind(recipe) == own for recipe in looked)
    return (
        f"The test images are not unseen: {count} recorded runs of this kind were evaluated on them, some before "
        "recipes were changed, so the figure flatters."
    )


def _classes(entry: Entry, measured: dict[str, Any]) -> list[str]:
    counts = measured["confusion"]
    lines = ["### By class", "", "| class | top-1 | most often mistaken for |", "|---|---|---|"]
    for index, (name, row) in enumerate(zip(CIFAR10_CLASSES, counts, strict=True)):
        wrong = max((i for i in range(len(row)) if i != index), key=lambda i: row[i])
        lines.append(f"| {name} | {100 * row[index] / sum(row):.1f} % | {CIFAR10_CLASSES[wrong]}, {row[wrong]} times |")
    return [
        *lines,
        "",
        f"![Confusion matrix and calibration]({entry.tag}.svg)",
        "",
        f"Expected calibration error: {measured['calibration']['error']:.1f} points (15 bins of confidence).",
        "",
    ]


def _unsure(entry: Entry, found: dict[str, Any]) -> list[str]:
    row = found["tags"].get(entry.tag)
    if not row:
        return []
    error, called = row["calibration_error"], row["unsure_of_test"]["generalised entropy"]
    lines = [
        "### Calibration and doubt",
        "",
        f"Temperature scaling: {row['temperature']:.2f}, fitted on {row['held_out_images']:,} validation images; it "
        f"takes the expected calibration error on the test images from {error['before']:.1f} to {error['after']:.1f} "
        "points. `sqzoo predict` says *none of the ten, perhaps* where the out-of-distribution score of "
        f"`sqzoo.uncertainty` is below what {found['kept']:.0%} of the validation images reach. That happens for "
        f"{called:.1f} % of the test images, for {row['unsure_of_wrong_answers']:.0f} % of those that it classifies "
        "wrongly, and for these images, none of which show a class:",
        "",
        "| images | number | flagged | AUROC | AUROC by energy | by feature distance |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in row["outside"].items():
        auroc = r["auroc"]
        cells = [f"{name}: {found['outside'][name]['what']}", f"{r['images']}"]
        cells.append(f"{r['unsure']['generalised entropy']:.0f} %")
        cells += [f"{auroc[kind]:.1f}" for kind in ("generalised entropy", "energy", "feature distance")]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "AUROC: against the test images, in percent; 50 is chance. The score was chosen among others on these images. "
        f"Record: `benchmarks/results/accuracy/uncertainty.json`, by "
        f"`python benchmarks/accuracy/calibrate.py --only {entry.tag}`.",
        "",
    ]


def _training(entry: Entry, record: dict[str, Any]) -> list[str]:
    recipe = ", ".join(f"{k} {json.dumps(v)}" for k, v in entry.recipe.items())
    lines = ["## Training", "", f"`{record['environment']['command']}`", ""]
    runs = record.get("mean_of", [])
    if runs:
        lines += [
            f"The weights are the mean of those of {len(runs)} runs:",
            "",
            *[f"- `{run['environment']['command']}`: {_took(run)}; SHA-256 {run['sha256']}." for run in runs],
            "",
            f"Recipe of the last: {recipe}.",
        ]
    else:
        lines.append(f"Recipe: {recipe}. Epoch {entry.metrics['epoch']} was kept. {_took(record)}.")
    lines += ["", _energy(runs or [record], bool(runs or record.get("start_sha256")))]
    if record.get("start_sha256") and not runs:
        lines.append(f"The file it started from has SHA-256 {record['start_sha256']}.")
    return [*lines, "", _data(record), ""]


def _data(record: dict[str, Any]) -> str:
    told = sentence(json.loads((RESULTS / "accuracy" / "data.json").read_text(encoding="utf-8")))
    return f"Data: digest of train {record['train_digest']}, of test {record['test_digest']}. {told}"


def _energy(runs: list[dict[str, Any]], later: bool) -> str:
    """Return the energy that runs took; `later`: whether they started from other runs' weights."""
    if any(run.get("device", "cpu") != "cpu" for run in runs):
        return f"Energy: not estimated; {sum(map(_minutes, runs)) / 60:.1f} hours on {runs[0]['environment']['gpu']}."
    hours = sum(_minutes(run) / 60 * run["environment"]["threads"] for run in runs)
    which = " of these runs, without those that they started from" if later else ""
    return (
        f"Energy{which}: about {hours * WATTS / 1000:.3f} kWh and {hours * WATTS * GRAMS / 1000:.0f} g of CO2, "
        f"estimated from {hours:.1f} core-hours at {WATTS} W a core and {GRAMS} g a kWh; not metered."
    )


def _minutes(run: dict[str, Any]) -> float:
    """Return the minutes of a run, at the pace of its median epoch of each size: some were paused for hours."""
    epochs: dict[int, list[float]] = {}
    for row in run.get("log", ()):
        if "size" in row:  # earlier runs were not paused
            epochs.setdefault(row["size"], []).append(row["seconds"])
    training = sum(len(rows) * statistics.median(rows) for rows in epochs.values()) or run["training_seconds"]
    return (training + run.get("feature_seconds", 0)) / 60  # a mean's runs have none of the latter


def _took(run: dict[str, Any]) -> str:
    machine = run["environment"]
    return (
        f"{_minutes(run):.0f} minutes with {machine['threads']} thread(s) on {machine['cpu']} "
        f"({machine['cpu_capability']}), torch {machine['versions']['torch']}, commit {machine['commit']}"
    )


def _compression(record: dict[str, Any]) -> list[str]:
    machine, recipe = record["environment"], record["recipe"]
    parent = json.loads((RESULTS / "runs" / f"{recipe['parent']}.json").read_text(encoding="utf-8"))
    lines = [
        "## Compression",
        "",
        f"`{machine['command']}`",
        "",
        f"From `{recipe['parent']}` (SHA-256 of its tensors {recipe['parent_sha256']}), "
        f"{record['parent_bytes'] / 1e6:.2f} MB, to {record['bytes']:,} bytes, "
        f"{record['parent_bytes'] / record['bytes']:.1f} times fewer, without training: k-means values a layer, each "
        "layer's number of bits by its measured sensitivity on training images held out, Huffman codes. "
        f"{record['seconds'] / 60:.0f} minutes with {machine['threads']} thread(s) on {machine['cpu']}, torch "
        f"{machine['versions']['torch']}, commit {machine['commit']}. How the parent was trained: "
        f"`benchmarks/results/runs/{recipe['parent']}.json`. "
        + _energy([record | {"training_seconds": record["seconds"]}, parent], bool(parent.get("start_sha256"))),
        "",
        "| layer | weights | values | bits a weight | zeros |",
        "|---|---|---|---|---|",
    ]
    for name, row in record["layers"].items():
        cells = [f"`{name}`", f"{row['weights']:,}", f"{row['values']}", f"{row['bits']:.2f}", f"{row['zeros']:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _limits(entry: Entry) -> list[str]:
    return [
        "## Limits",
        "",
        "It knows ten classes, from 32x32 images, and names one of them whatever it is shown. CIFAR-10's test set",
        "has near-duplicates of training images and has been looked at for years: a test set collected anew in the "
        "same way",
        "(CIFAR-10.1; Recht et al. 2019) cost other networks 3 to 15 points. Expect less on images of another",
        "origin. Not for decisions about people.",
        "",
        "## Provenance",
        "",
        f"{entry.provenance} SHA-256 of the file: `{entry.sha256}`.",
        "",
    ]


def _same(before: str, after: str) -> bool:
    """Whether a file says the same: a plot by its texts, since its paths depend on matplotlib's version."""
    before, after = (re.findall(r">([^<]*)</text>", t) if t.startswith("<svg") else t for t in (before, after))
    return before == after


def main() -> int:
    """Write the cards, or with --check compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    CARDS.mkdir(exist_ok=True)
    measured = json.loads((ROOT / "benchmarks" / "results" / "table2.json").read_text(encoding="utf-8"))["tags"]
    file = ROOT / "benchmarks" / "results" / "accuracy" / "uncertainty.json"
    unsure = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"tags": {}}
    cards = {}
    for tag, entry in read_manifest().items():
        if tag not in measured:
            print(f"{tag} is not in table2.json; run python benchmarks/table2.py first.", file=sys.stderr)
            return 1
        record = json.loads((ROOT / entry.metrics["source"]).read_text(encoding="utf-8"))
        record["test"] = measured[tag]  # of the file as it ships
        cards[CARDS / f"{tag}.md"] = card(entry, record, measured[tag], unsure)
        row = measured[tag]
        cards[CARDS / f"{tag}.svg"] = confusion_and_calibration(row["confusion"], row["calibration"], CIFAR10_CLASSES)
    differing = [f for f, text in cards.items() if not f.is_file() or not _same(f.read_text(encoding="utf-8"), text)]
    differing += [f for f in CARDS.iterdir() if f not in cards]
    for file in differing:
        print(f"{file.relative_to(ROOT)} {'differs from its record' if check else 'written'}", file=sys.stderr)
        if not check:
            file.write_text(cards[file], encoding="utf-8") if file in cards else file.unlink()
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
