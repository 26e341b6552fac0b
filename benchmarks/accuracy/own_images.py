"""A folder of one's own images: `sqzoo train` beside what its users would otherwise write, on the same split.

    python benchmarks/accuracy/own_images.py [--photos FOLDER] [--sets NAME ...] [--methods NAME ...] [--seeds 3]

FOLDER holds the sets, each with train/CLASS and val/CLASS (default: $SQZOO_PHOTOS); what a set may be used for is told
beside it, and no image enters a record. Each method runs in a process of its own and is scored on the set's `val`:

- head: `sqzoo train MODEL --data SET`; its penalty is chosen on `train` alone.
- all_layers: the same with `--all-layers`; `val` also chose its epoch, and whether it or the head is kept.
- logistic: scikit-learn's logistic regression, as it comes, on standardised pooled features of the same backbone.
- tutorial: PyTorch's transfer learning tutorial on the same backbone, with Adam, 8 epochs; `val` also chose its epoch.

Adds to results/accuracy/own_images.json, one run after the other, so that a stopped command goes on; what is recorded
is not run again. Writes the table of docs/own_images.md from it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

from benchmarks import RESULTS, run_main
from benchmarks.record import write_record
from sqzoo.environment import environment
from sqzoo.weights import load_trunk
from tools.readme import OWN_IMAGES, write_into

RESULT = RESULTS / "accuracy" / "own_images.json"
MODEL = "squeezenet_cifar"  # whose backbone the plain alternatives use whole
METHODS = ("head", "logistic", "all_layers", "tutorial")
NORMALISE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CENTRE = transforms.Compose(
    [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALISE]  # the tutorial's
)
RANDOM = transforms.Compose(
    [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALISE]
)


def squeezenet(classes: int) -> nn.Module:
    """Return torchvision's SqueezeNet 1.1 with ImageNet's backbone and a new last layer."""
    model = models.squeezenet1_1(num_classes=classes)
    model.load_state_dict(model.state_dict() | load_trunk("squeezenet1_1"))
    return model


def logistic(folder: Path, seed: int) -> float:
    """Return the validation accuracy of scikit-learn's logistic regression on pooled features, in percent."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    backbone, parts = squeezenet(2).features.eval(), []
    for part in ("train", "val"):
        with torch.inference_mode():
            batches = [(backbone(x).mean((2, 3)), y) for x, y in _loader(folder / part, CENTRE)]
        parts.append([torch.cat(column).numpy() for column in zip(*batches, strict=True)])
    (x, y), (val_x, val_y) = parts
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, random_state=seed)).fit(x, y)
    return 100 * float((model.predict(val_x) == val_y).mean())


def tutorial(folder: Path, seed: int) -> float:
    """Return the best validation accuracy of the tutorial's fine-tuning, in percent."""
    torch.manual_seed(seed)
    train, val = _loader(folder / "train", RANDOM, shuffle=True), _loader(folder / "val", CENTRE)
    model, loss = squeezenet(len(train.dataset.classes)), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)  # 1e-3, the default, ruins the backbone
    schedule, best = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1), 0.0
    for _ in range(8):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.inference_mode():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        best = max(best, 100 * right.double().mean().item())
    return best


def _loader(folder: Path, transform: Any, shuffle: bool = False) -> Any:
    return DataLoader(datasets.ImageFolder(str(folder), transform), 32, shuffle=shuffle)


def measured(folder: Path, method: str, seed: int) -> dict[str, Any]:
    """Run a method in a process of its own; return its accuracy (percent), seconds, CPU seconds and peak memory."""
    with tempfile.TemporaryDirectory() as base:
        run, out = Path(base) / "run", Path(base) / "out"
        words = [sys.executable, "-m", "benchmarks.accuracy.own_images", "--one", method, str(folder), str(seed)]
        if method in ("head", "all_layers"):
            words = [sys.executable, "-m", "sqzoo", "train", MODEL, "--data", str(folder), "--run", str(run)]
            words += ["--seed", str(seed), *(["--all-layers"] if method == "all_layers" else [])]
        began = time.perf_counter()
        with out.open("w") as stream:
            process = subprocess.Popen(words, stdout=stream)
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{method} failed on {folder.name}.")
        row = {"seconds": round(time.perf_counter() - began, 1), "peak_mb": round(usage.ru_maxrss / 1024)}
        row["cpu_seconds"] = round(usage.ru_utime + usage.ru_stime, 1)
        if words[2] == "sqzoo":
            result = json.loads((run / "result.json").read_text(encoding="utf-8"))
            scores = {name: stage["val"]["top1"] for name, stage in result["stages"].items()}
            checked = result["stages"]["head"]["cross_validation"]
            return row | {"top1": result["val"]["top1"], "kept": result["chosen"], "stages": scores} | checked
        return row | {"top1": json.loads(out.read_text(encoding="utf-8"))}


def render(known: dict[str, Any]) -> str:
    """Return the table of docs/own_images.md."""
    if not known.get("sets"):
        return "Not measured yet: `python benchmarks/accuracy/own_images.py`."
    titles = {
        "head": "`sqzoo train`, the head",
        "all_layers": "`sqzoo train --all-layers`",
        "logistic": "scikit-learn's logistic regression",
        "tutorial": "PyTorch's tutorial, Adam",
    }
    lines = ["| set | method | accuracy, % | seeds | CPU seconds | peak memory |", "|---|---|---|---|---|---|"]
    for name, entry in known["sets"].items():
        for method in titles:
            rows = [row for key, row in entry["runs"].items() if key.startswith(f"{method} ")]
            if rows:
                top1, seconds, memory = (np.mean([row[k] for row in rows]) for k in ("top1", "cpu_seconds", "peak_mb"))
                error = (top1 * (100 - top1) / entry["val"]) ** 0.5
                lines.append(
                    f"| {name}, {entry['train']} / {entry['val']} | {titles[method]} | {top1:.1f} ± {error:.1f} | "
                    f"{len(rows)} | {seconds:.0f} | {memory:,.0f} MB |"
                )
    facts = known["environment"]
    lines.append(
        f"\nTraining / validation images; ± one standard error of so many validation images. {facts['cpu']}; seconds "
        "are those of all cores together."
    )
    return "\n".join(lines)


def main() -> None:
    """Run what is not recorded, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=os.environ.get("SQZOO_PHOTOS"), help="folder of the sets")
    parser.add_argument("--sets", nargs="+", help="names of folders in it (default: all)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "SET", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        method, folder, seed = arguments.one
        print((logistic if method == "logistic" else tutorial)(Path(folder), int(seed)))
        return
    if not arguments.photos:
        parser.error("name the folder of the sets in --photos or $SQZOO_PHOTOS.")
    record = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"sets": {}}
    facts = environment()
    for folder in sorted(d for d in Path(arguments.photos).iterdir() if (d / "val").is_dir()):
        if arguments.sets and folder.name not in arguments.sets:
            continue
        count = {part: sum(1 for f in (folder / part).rglob("*") if f.is_file()) for part in ("train", "val")}
        entry = record["sets"].setdefault(folder.name, count | {"runs": {}})
        for method, seed in ((m, s) for m in arguments.methods for s in range(arguments.seeds)):
            if f"{method} {seed}" in entry["runs"]:
                continue
            row = measured(folder, method, seed) | {"load": os.getloadavg()[0]}
            print(f"{folder.name}, {method}, seed {seed}: {row['top1']:.1f} %, {row['cpu_seconds']:.0f} CPU seconds")
            entry["runs"][f"{method} {seed}"] = row | {"commit": facts["commit"]}
            record["environment"] = facts
            write_record(RESULT, record)
            write_into(OWN_IMAGES, "own_pictures", render(record))


if __name__ == "__main__":
    run_main(main)
