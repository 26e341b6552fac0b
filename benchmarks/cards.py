"""Model cards, one a weights tag, made from the manifest and the recorded runs.

    python benchmarks/cards.py [--check]

Writes MODEL_CARDS/TAG.md in the Hub's format; with --check writes nothing and exits with 1 where a card would change.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sqzoo.weights import CIFAR10_CLASSES, Entry, read_manifest

ROOT = Path(__file__).resolve().parent.parent
CARDS = ROOT / "MODEL_CARDS"

WHAT = {
    "squeezenet_cifar": "SqueezeNet 1.1 with its last layer sized for CIFAR-10 (paper, Table 2, row 2)",
    "sq1": "Sq-1: SqueezeNet 1.1's trunk, a 1x1 convolution and two linear layers (paper, Tables 2 and 3)",
    "fire_next": "Fire-Next: SqueezeNet 1.1 with a SqueezeNext block for its last Fire module (paper, Table 2)",
}
PROTOCOLS = {
    "test": "The paper's own protocol: the best epoch was chosen **on the test images**, which flatters the figure.",
    "held_out": "The epoch was chosen on training images held out from training; the test images were looked at once.",
}


def card(entry: Entry, record: dict[str, Any]) -> str:
    """Return the card of a tag: YAML metadata with a model-index, then what a reader wants to know."""
    return "\n".join(
        [_metadata(entry), *_use(entry), *_results(entry, record), *_training(entry, record), *_limits(entry)]
    )


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
    stored = "a head file, joined as it loads with torchvision's ImageNet trunk" if head else "complete, in the package"
    trunk = "  # joins the trunk: see README" if head else ""
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
        f"Images: RGB, resized to {int(entry.input_size[1] / entry.crop_pct)} pixels ({entry.interpolation}), centre "
        f"crop {entry.input_size[1]}, mean {entry.mean}, standard deviation {entry.std}.",
        "",
    ]


def _results(entry: Entry, record: dict[str, Any]) -> list[str]:
    test, held = record["test"], record["held_out"]
    error = (test["top1"] * (100 - test["top1"]) / test["images"]) ** 0.5
    lines = [
        "## Results",
        "",
        "| images | top-1 | loss |",
        "|---|---|---|",
        f"| CIFAR-10 test, {test['images']:,} | {test['top1']:.2f} % ± {error:.2f} | {test['loss']:.4f} |",
    ]
    if held:
        lines.append(f"| held out of training, {held['images']:,} | {held['top1']:.2f} % | {held['loss']:.4f} |")
    lines += [
        "",
        "One view an image; ± is one standard error of the sample; one seed. "
        f"{PROTOCOLS[entry.metrics['selected_on']]}",
        f"Record: `{entry.metrics['source']}`; verify with `python benchmarks/table2.py --only {entry.tag}`.",
        "",
    ]
    return lines


def _training(entry: Entry, record: dict[str, Any]) -> list[str]:
    machine = record["environment"]
    minutes = (record["training_seconds"] + record["feature_seconds"]) / 60
    recipe = ", ".join(f"{k} {json.dumps(v)}" for k, v in entry.recipe.items())
    lines = [
        "## Training",
        "",
        f"`{machine['command']}`",
        "",
        f"Recipe: {recipe}. Epoch {entry.metrics['epoch']} was kept. {minutes:.0f} minutes with {machine['threads']} "
        f"thread(s) on {machine['cpu']} ({machine['cpu_capability']}), torch {machine['versions']['torch']}, commit "
        f"{machine['commit']}.",
    ]
    if "start_sha256" in record:
        lines.append(f"The file it started from has SHA-256 {record['start_sha256']}.")
    return [*lines, "", f"Data: digest of train {record['train_digest']}, of test {record['test_digest']}.", ""]


def _limits(entry: Entry) -> list[str]:
    return [
        "## Limits",
        "",
        "It knows ten classes, from 32x32 pictures, and names one of them whatever it is shown. CIFAR-10's test set",
        "has near-duplicates of training images; expect less on pictures of another origin. Not for decisions about",
        "people.",
        "",
        "## Provenance",
        "",
        f"{entry.provenance} SHA-256 of the file: `{entry.sha256}`.",
        "",
    ]


def main() -> int:
    """Write the cards, or with --check compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    CARDS.mkdir(exist_ok=True)
    cards = {
        CARDS / f"{tag}.md": card(entry, json.loads((ROOT / entry.metrics["source"]).read_text(encoding="utf-8")))
        for tag, entry in read_manifest().items()
    }
    differing = [f for f, text in cards.items() if not f.is_file() or f.read_text(encoding="utf-8") != text]
    differing += [f for f in CARDS.glob("*.md") if f not in cards]
    for file in differing:
        print(f"{file.relative_to(ROOT)} {'differs from its record' if check else 'written'}", file=sys.stderr)
        if not check:
            file.write_text(cards[file], encoding="utf-8") if file in cards else file.unlink()
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
