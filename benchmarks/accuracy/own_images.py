"""From a folder of 500 photos in 5 classes to a model with a report: seconds, memory and accuracy of the one command.

    python benchmarks/accuracy/own_images.py [--data FOLDER] [--pictures 500] [--quick]
    python benchmarks/accuracy/own_images.py --starts    # the default start

The folder is made of CIFAR-10's test images of five classes, enlarged to JPEG files of 1024x768: real pictures, of a
photo's size though not of its sharpness. `sqzoo train sq1 --data FOLDER` runs in a process of its own, then again with
`--all-layers`; the model that comes of each is measured on 1,000 other test images, which no choice has seen.
`--starts` compares the starts where nothing of CIFAR-10 helps: which of 17 photographs, in grey, is this a piece of? It
learns from pieces of their left halves and is asked about the right ones. Writes
results/accuracy/own_images.json and, from it, the table of docs/own_images.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import RESULTS
from benchmarks.record import write_record
from sqzoo import create_model
from sqzoo.data import Dataset, cifar10
from sqzoo.environment import environment
from sqzoo.predict import predict
from sqzoo.weights import CIFAR10_CLASSES
from tools.readme import OWN_IMAGES, write_into

RESULT = RESULTS / "accuracy" / "own_images.json"
CLASSES = (1, 4, 5, 7, 9)
SIZE = (1024, 768)
FRESH = 200  # pictures a class to measure on
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg"),
)


def make_photos(data: Dataset, first: int, count: int, folder: Path) -> list[Path]:
    """Write `count` images of each class, from its `first` on, as JPEG files FOLDER/class/N.jpg."""
    files = []
    for label in CLASSES:
        (folder / CIFAR10_CLASSES[label]).mkdir(parents=True)
        for i in np.flatnonzero(data.labels == label)[first : first + count]:
            files.append(folder / CIFAR10_CLASSES[label] / f"{i}.jpg")
            Image.fromarray(data.images[i]).resize(SIZE, Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def make_pieces(folder: Path) -> None:
    """Write pieces of the photographs, FOLDER/train/NAME/N.png of the left halves and FOLDER/val of the right ones."""
    packages = [find_spec(name) for name in ("skimage", "sklearn")]
    if not all(packages):
        raise SystemExit(
            "Comparing the starts takes photographs from two packages: pip install scikit-image scikit-learn"
        )
    skimage, sklearn = (Path(p.origin).parent / d for p, d in zip(packages, ("data", "datasets/images"), strict=True))
    rng = np.random.default_rng(0)
    for file in [skimage / name for name in PHOTOGRAPHS] + [sklearn / name for name in ("china.jpg", "flower.jpg")]:
        with Image.open(file) as opened:
            photograph = opened.convert("L").convert("RGB")
        width, height = photograph.size
        for part, low, high, count in (("train", 0, width // 2, 30), ("val", width // 2, width, 50)):
            (folder / part / file.stem).mkdir(parents=True)
            for number in range(count):
                side = max(40, int(rng.uniform(0.15, 0.3) * min(width, height)))
                x, y = rng.integers(low, high - side + 1), rng.integers(0, height - side + 1)
                piece = photograph.crop((x, y, x + side, y + side)).rotate(90 * int(rng.integers(4)))
                values = np.asarray(piece, float)  # brightness and contrast tell nothing
                values = (values - values.mean()) * rng.uniform(25, 50) / (values.std() + 5) + rng.uniform(108, 148)
                piece = Image.fromarray(values.clip(0, 255).astype(np.uint8))
                piece.resize((256, 256), Image.Resampling.BICUBIC).save(folder / part / file.stem / f"{number}.png")


def command(*words: str) -> tuple[float, float]:
    """Run `sqzoo …`; return its seconds and peak memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "sqzoo", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"sqzoo {' '.join(words)} failed.")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def measured(words: list[str], run: Path, fresh: list[Path]) -> dict[str, Any]:
    """Run the command and measure what came of it."""
    seconds, memory = command(*words, "--run", str(run))
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    found = {"seconds": round(seconds, 1), "peak_mb": round(memory), "chosen": result["chosen"]}
    found |= {"val": result["val"], "data_digest": result["data_digest"]}
    found["stages"] = {
        name: {k: stage[k] for k in ("recipe", "epoch", "val", "training_seconds", "feature_seconds")}
        for name, stage in result["stages"].items()
    }
    if fresh:
        answers = predict(create_model(f"local-dir:{run}"), fresh)
        right = sum(a[0].label == f.parent.name for a, f in zip(answers, fresh, strict=True))
        found["fresh"] = {"top1": 100 * right / len(fresh), "images": len(fresh)}
    return found


def photos(arguments: argparse.Namespace, base: Path) -> dict[str, Any]:
    data = cifar10("test", arguments.data)
    each = arguments.pictures // len(CLASSES)
    make_photos(data, 0, each, base / "photos")
    fresh = make_photos(data, each, 20 if arguments.quick else FRESH, base / "fresh")
    short = ["--set", "sizes=[[64, 2]]"] if arguments.quick else []
    results = {}
    for name, option in (("head", []), ("all_layers", ["--all-layers"])):
        words = ["train", "sq1", "--data", str(base / "photos"), *option, *short]
        results[name] = measured(words, base / name, fresh)
        print(
            f"{name}: {results[name]['seconds']:.0f} s, {results[name]['peak_mb']} MB, validation "
            f"{results[name]['val']['top1']:.1f} %, {len(fresh)} others {results[name]['fresh']['top1']:.1f} %"
        )
    return {"pictures": each * len(CLASSES), "size": SIZE, "runs": results}


def starts(arguments: argparse.Namespace, base: Path) -> dict[str, Any]:
    make_pieces(base / "pieces")
    short = ["--set", "sizes=[[64, 2]]"] if arguments.quick else []
    results = {}
    for start in ("imagenet", "sq1.ft_cifar10"):
        words = ["train", "sq1", "--data", str(base / "pieces"), "--start", start, *short]
        results[start] = measured(words, base / start, [])
        val = results[start]["val"]
        print(f"{start}: {val['top1']:.1f} % of {val['images']} pieces, loss {val['loss']:.3f}")
    return {"runs": results}


def render(known: dict[str, Any]) -> str:
    """Return the table of docs/own_images.md."""
    if not known:
        return "Not measured yet: `python benchmarks/accuracy/own_images.py`."
    rows = []
    if "photos" in known:
        count, (width, height) = known["photos"]["pictures"], known["photos"]["size"]
        rows += [
            f"`sqzoo train sq1` on {count} JPEG files of {width}x{height} in five classes of CIFAR-10, "
            f"{known['photos']['environment']['cores']} cores:\n",
            "| trained | seconds | memory | validation images | images no choice has seen |\n|---|---|---|---|---|",
        ]
        for name, run in known["photos"]["runs"].items():
            val, fresh = run["val"], run["fresh"]
            rows.append(
                f"| {name.replace('_', ' ')} | {run['seconds']:.0f} | {run['peak_mb']} MB | {val['top1']:.1f} % of "
                f"{val['images']} | {fresh['top1']:.1f} % of {fresh['images']} |"
            )
    if "starts" in known:
        results = {start: run["val"] for start, run in known["starts"]["runs"].items()}
        rows.append(
            "\nPieces of 17 photographs, told apart: "
            + ", ".join(f"{val['top1']:.1f} % of {val['images']} from {start}" for start, val in results.items())
            + "."
        )
    return "\n".join(rows)


def main() -> None:
    """Make the pictures, run the commands, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--starts", action="store_true", help="compare the ImageNet trunk with the embedded weights")
    parser.add_argument("--quick", action="store_true", help="a trial at 64 pixels and two epochs; records nothing")
    arguments = parser.parse_args()
    part: Callable[[argparse.Namespace, Path], dict[str, Any]] = starts if arguments.starts else photos
    with tempfile.TemporaryDirectory() as base:
        found = part(arguments, Path(base)) | {"environment": environment()}
    if not arguments.quick:
        known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
        known |= {part.__name__: found}
        write_record(RESULT, known)
        write_into(OWN_IMAGES, "own_pictures", render(known))


if __name__ == "__main__":
    main()
