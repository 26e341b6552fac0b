"""Score a folder of 100,000 pictures by examples/score_many.py: throughput against the network's own, and peak memory.

    python benchmarks/speed/score_many.py [--data FOLDER] [--images 100000] [--side 32]

The pictures are JPEG files in a temporary folder, made of CIFAR-10's test images at their own size (larger ones, by
`--side`, take longer to decode beside the same network), no two the same. The network's own throughput is that of as
many processes, of one thread each, which do nothing but run it, as `sqzoo.optimize` gives it, on a batch of ready
pixels, at the best batch size; it is measured before and after, and the better counts. The example's is that of the
whole command, imports and the list of files included. Memory is the peak of all its processes together (proportional
set size, which counts a shared page once), for all the pictures and for a tenth of them. Writes
results/speed/score_many.json, by side, and the sentence of docs/own_images.md, at 100,000 images.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import RESULTS, ROOT
from benchmarks.record import write_record
from sqzoo import create_model, get_weights, optimize
from sqzoo.data import Dataset, cifar10
from sqzoo.deploy.onnx_graph import image_size
from sqzoo.environment import environment
from tools.readme import OWN_IMAGES, write_into

RESULT = RESULTS / "speed" / "score_many.json"
EXAMPLE = ROOT / "examples" / "score_many.py"
WHOLE = 100_000
SECONDS = 10.0  # of the network alone, each time
BATCHES = (8, 16, 32)
LOOK = 2.0  # seconds between looks at the memory: the kernel walks every page for one, on the cores that are measured


def make_pictures(data: Dataset, count: int, side: int, folder: Path) -> None:
    """Write `count` JPEG files, a thousand a folder: the images shifted in turn, so that no two are the same."""
    for number in range(count):
        turn, index = divmod(number, len(data))
        pixels = np.roll(data.images[index], (turn % 7, turn // 7), (0, 1))
        where = folder / f"{number // 1000:04}"
        where.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(where / f"{number:07}.jpg")


def run_alone(model: str, batch: int, seconds: float) -> float:
    """Return the images a second of the optimised network on a ready batch, in this process, on one thread."""
    torch.set_num_threads(1)
    network = create_model(model, pretrained=True)
    side = image_size(network)
    images = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
    run = optimize(network, batch_size=batch, preprocessing=True)
    for _ in range(5):
        run(images)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        run(images)
        count += batch
    return count / (time.perf_counter() - began)


def network_alone(model: str, workers: int, seconds: float) -> float:
    """Return the images a second of `workers` processes, at the best batch size."""
    best = 0.0
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for batch in BATCHES:
            rates = pool.map(run_alone, [model] * workers, [batch] * workers, [seconds / len(BATCHES)] * workers)
            best = max(best, sum(rates))
    return best


def memory(group: int) -> int:
    """Return the proportional set size, in bytes, of the processes of a group."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == group:
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):  # it has ended
            continue
    return total


def example(pictures: Path, scores: Path, model: str, workers: int) -> dict[str, float]:
    """Run the example; return its seconds and its peak memory in MB."""
    words = [str(EXAMPLE), str(pictures), str(scores), "--model", model, "--workers", str(workers)]
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK)
    if process.returncode:
        raise SystemExit(f"{EXAMPLE.name} failed.")
    return {"seconds": time.perf_counter() - began, "peak_mb": peak / 1e6}


def render(known: dict[str, Any]) -> str:
    """Return the sentences of docs/own_images.md."""
    if not known:
        return "Not measured yet: `python benchmarks/speed/score_many.py`."
    return "\n".join(f"- {summary(result)}" for result in known.values())


def costs(known: dict[str, Any]) -> str:
    """Return the table of docs/scale.md: measured images a second on CPU cores, and counted ones on a GPU."""
    if not known:
        return "Not measured yet: `python benchmarks/speed/score_many.py`."
    result = next(iter(known.values()))
    assumed = json.loads((RESULTS / "speed" / "gpu_estimate.json").read_text(encoding="utf-8"))
    rows = json.loads((RESULTS / "size" / "pareto.json").read_text(encoding="utf-8"))["ours"]
    macs = next(r["mega_multiply_adds"] for r in rows if r["side"] == r["trained_at"] and r["tag"].startswith("sq1."))
    launches = assumed["launches"]["ft"]["evaluate"] * assumed["assumed"]["microseconds_per_launch"][1] / 1e6
    gpu = 1000 / (1000 * 2 * macs * 1e6 / (assumed["assumed"]["tflops"] * 1e12) + launches)  # batches of 1,000
    cores, rate = result["workers"], result["images_per_second"]
    lines = ["| | images a second | a million images | a billion images |", "|---|---|---|---|"]
    measured = f"{cores} cores, files of {result['side']} pixels, measured"
    lines.append(f"| {measured} | {rate:.0f} | {_span(1e6 / rate)} | {1e9 / rate * cores / 3600:,.0f} core hours |")
    counted = "one H100-class GPU, images in its memory, counted"
    lines.append(f"| {counted} | {round(gpu, -4):,.0f} | {_span(1e6 / gpu)} | {1e9 / gpu / 3600:.1f} GPU hours |")
    return "\n".join(
        [
            *lines,
            "",
            f"`{result['model']}` at the size that it was trained at: {macs:.0f} million multiply-adds an image. The "
            f"GPU's row is an estimate that nobody has measured: {assumed['assumed']['tflops']:.0f} TFLOPS assumed, "
            f"and batches of 1,000 with {assumed['launches']['ft']['evaluate']} launches of "
            f"{assumed['assumed']['microseconds_per_launch'][1]} microseconds each; reading and decoding are left out.",
        ]
    )


def _span(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def summary(result: dict[str, Any]) -> str:
    """Return what was found, in a sentence."""
    network, share = max(result["network_images_per_second"].values()), 100 * result["share_of_the_network"]
    whole, tenth = (result["runs"][name]["peak_mb"] for name in ("all", "tenth"))
    files = f"{result['images']:,} JPEG files of {result['side']} pixels by {result['workers']} processes"
    speed = f"{result['images_per_second']:.0f} a second, {share:.0f} % of the network's own {network:.0f}"
    return f"{files}: {speed}; peak memory {whole:.0f} MB, {tenth:.0f} MB for a tenth of them."


def main() -> None:
    """Make the pictures, run both, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--images", type=int, default=WHOLE)
    parser.add_argument("--side", type=int, default=32, help="of the JPEG files, in pixels")
    parser.add_argument("--model", default="sq1")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    data, model, workers = cifar10("test", arguments.data), arguments.model, arguments.workers
    seconds = SECONDS if arguments.images >= WHOLE else 3.0
    with tempfile.TemporaryDirectory() as base:
        folders = {}
        for name, count in (("tenth", arguments.images // 10), ("all", arguments.images)):
            folders[name] = Path(base) / name
            folders[name].mkdir()
            make_pictures(data, count, arguments.side, folders[name])
        before = network_alone(model, workers, seconds)
        runs = {
            name: example(folder, Path(base) / f"{name}-scores", model, workers) for name, folder in folders.items()
        }
        after = network_alone(model, workers, seconds)
    network, rate = max(before, after), arguments.images / runs["all"]["seconds"]
    result: dict[str, Any] = {
        "model": model,
        "images": arguments.images,
        "side": arguments.side,
        "workers": workers,
        "network_images_per_second": {"before": before, "after": after},
        "images_per_second": rate,
        "share_of_the_network": rate / network,
        "runs": runs,
        "data_digest": data.digest,
        "weights_sha256": get_weights(model).sha256,
        "environment": environment(),
    }
    if arguments.images >= WHOLE:
        known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
        known |= {f"{arguments.side} pixels": result}
        write_record(RESULT, known)
        write_into(OWN_IMAGES, "score_many", render(known))
    print(summary(result))


if __name__ == "__main__":
    main()
