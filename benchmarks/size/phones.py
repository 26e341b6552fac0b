"""Files for phones, small boards and small downloads: bytes, accuracy and time of each format, from uint8 pixels.

    python benchmarks/size/phones.py [--only PATTERN] [--data FOLDER]

Each network is exported with the preprocessing inside, read back by its runtime, and given the 10,000 test images one
by one, on one thread: the accuracy is that of all, the time the median. Core ML runs on Apple's systems alone, so its
rows have bytes only. A row that an export's own comparison refuses says so. Rows that results/size/phones.json has are
not measured again; delete one to renew it. `python tools/readme.py` writes the table of docs/phones.md.
"""

import argparse
import fnmatch
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS, run_main
from benchmarks.record import write_record
from sqzoo import create_model, get_weights
from sqzoo.data import Dataset, cifar10
from sqzoo.deploy.int8 import calibration_images
from sqzoo.deploy.onnx_graph import run_onnx
from sqzoo.deploy.phones import run_phone
from sqzoo.environment import environment, package_version
from sqzoo.errors import ExportError
from sqzoo.export import CALIBRATED, FORMATS, export
from sqzoo.files import read_json

RESULT = RESULTS / "size" / "phones.json"
TAGS = ("sq1.ft_cifar10", "fire_next.ft_cifar10", "squeezenet_cifar.ft_cifar10")
SHOWN = [name for name in FORMATS if name.startswith(("onnx", "litert", "executorch", "ncnn", "coreml"))]
PACKAGES = ("onnxruntime", "executorch", "torchao", "litert-torch", "ai-edge-litert", "ncnn", "pnnx", "coremltools")


def measure(tag: str, format: str, train: Dataset, test: Dataset) -> dict[str, Any]:
    """Return a row: what the file is, and how it does."""
    model = create_model(tag, pretrained=True)
    images = calibration_images(model, train.images[:: len(train) // 320][:320]) if format in CALIBRATED else None
    row: dict[str, Any] = {"environment": environment()}
    row["packages"] = {name: package_version(name) for name in PACKAGES}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        try:
            file = export(model, Path(folder) / f"m{FORMATS[format]}", format, preprocessing=True, calibration=images)
        except ExportError as e:
            return row | {"refused": str(e)}
        row["export_seconds"] = round(time.perf_counter() - began, 1)
        row["bytes"] = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        if format.startswith("coreml"):
            return row
        run = run_onnx(file.read_bytes()) if file.suffix == ".onnx" else run_phone(file)
        times, right = [], 0
        pixels = torch.from_numpy(test.images)
        for i, label in enumerate(test.labels.tolist()):
            began = time.perf_counter()
            output = run(pixels[i : i + 1])
            times.append(time.perf_counter() - began)
            right += int(output.argmax()) == label
    top1 = 100 * right / len(test)
    row |= {"test_top1": top1, "points": round(top1 - get_weights(tag).metrics["test_top1"], 2)}
    return row | {"ms": round(1000 * statistics.median(times), 2)}


def render(record: dict[str, Any]) -> str:
    """Return the table of docs/phones.md."""
    rows, lines = record["rows"], []
    for tag in TAGS:
        lines += ["", f"`{tag}`, in PyTorch {get_weights(tag).metrics['test_top1']:.2f} %:", ""]
        lines += ["| format | MB | top-1, % | difference, points | ms per image |", "|---|---|---|---|---|"]
        for format in SHOWN:
            row = rows.get(f"{tag} {format}", {})
            if "refused" in row:
                lines.append(f"| `{format}` | refused by its own check | | | |")
            elif "test_top1" in row:
                cells = [f"{row['bytes'] / 1e6:.2f}", f"{row['test_top1']:.2f}", f"{row['points']:+.2f}"]
                lines.append(f"| `{format}` | {' | '.join(cells)} | {row['ms']:.1f} |")
            elif row:
                lines.append(f"| `{format}` | {row['bytes'] / 1e6:.2f} | not run here | | |")
    last = next(reversed(rows.values()))
    packages = ", ".join(f"{name} {number}" for name, number in last["packages"].items() if number)
    machine = f"{last['environment']['cpu']}, one thread, other programs running"
    return "\n".join([*lines[1:], "", f"Machine: {machine}. Packages: {packages}."])


def main() -> None:
    """Measure the rows that are missing, and record each at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="rows to measure, as 'TAG FORMAT'")
    parser.add_argument("--data", help="CIFAR-10's folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, test = cifar10("train", arguments.data), cifar10("test", arguments.data)
    rows = read_json(RESULT)["rows"] if RESULT.is_file() else {}
    for format in SHOWN:
        for tag in TAGS:
            name = f"{tag} {format}"
            if name in rows or not fnmatch.fnmatch(name, arguments.only):
                continue
            rows[name] = measure(tag, format, train, test)
            print(name, {k: v for k, v in rows[name].items() if k not in ("environment", "packages")}, flush=True)
            write_record(RESULT, {"rows": rows}, TAGS)


if __name__ == "__main__":
    run_main(main)
