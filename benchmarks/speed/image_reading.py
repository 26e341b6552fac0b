"""Pictures a second from files on disk against the network alone, and the memory of a long folder.

    python benchmarks/speed/image_reading.py [--model TAG] [--backend NAME] [--seconds 20] [--many 100000]

Files: CIFAR-10's size as PNG, web pictures of 500x375 and photographs of 4000x3000 as JPEG, made from examples/cat.jpg
with noise over it. In turns, for `--seconds` each in all: the network on one batch of prepared tensors again and again;
`classify` on the files; reading alone. The ratio of the first two is what counts. Then a folder of `--many` pictures
(hard links of a few) through `classify`: the process's memory after a tenth and at the end. Writes
results/speed/image_reading.json; with --seconds below 20 nothing is written.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import RESULTS, ROOT
from benchmarks.record import write_record
from sqzoo import create_model, get_weights, optimize
from sqzoo.environment import environment
from sqzoo.images.reader import ImageReader, read_ahead
from sqzoo.images.walk import image_files
from sqzoo.predict import classify

RESULT = RESULTS / "speed" / "image_reading.json"
KINDS = {
    "32x32 PNG": ((32, 32), "png", 256),
    "500x375 JPEG": ((500, 375), "jpg", 128),
    "4000x3000 JPEG": ((4000, 3000), "jpg", 8),
}
BATCH, TURNS, FULL = 16, 5, 20


def make(folder: Path, size: tuple[int, int], suffix: str, count: int) -> list[Path]:
    """Write `count` pictures of one kind."""
    rng = np.random.default_rng(0)
    cat = np.asarray(Image.open(ROOT / "examples" / "cat.jpg").resize(size, Image.Resampling.BICUBIC)).astype(int)
    files = []
    for i in range(count):
        noisy = cat + rng.integers(-8, 9, cat.shape[:2])[..., None]
        files.append(folder / f"{i:05}.{suffix}")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def rate(work: Callable[[], int], seconds: float) -> float:
    """Return pictures a second of `work`, which returns how many it did, over at least `seconds`."""
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or not done:
        done += work()
    return done / spent


def compare(model: torch.nn.Module, files: list[Path], seconds: float) -> dict[str, Any]:
    """Return the medians over the turns, pictures a second, and the median of the ratio."""
    read = ImageReader.of(model)
    batch = read.prepare(np.stack([read(f) for f in itertools.islice(itertools.cycle(files), BATCH)]))

    def network() -> int:
        with torch.inference_mode():
            model(batch)
        return BATCH

    def whole() -> int:
        return sum(answer.error is None for answer in classify(model, cycled(), batch_size=BATCH))

    def reading() -> int:
        return sum(1 for _ in read_ahead(cycled(), read, 3 * BATCH))

    def cycled() -> Iterable[Path]:  # long enough that starting the readers does not count
        return itertools.islice(itertools.cycle(files), max(len(files), 4 * BATCH))

    works = {"network": network, "from files": whole, "reading": reading}
    for work in works.values():
        work()
    turns = [{name: rate(work, seconds / TURNS) for name, work in works.items()} for _ in range(TURNS)]
    found = {name: round(statistics.median(turn[name] for turn in turns), 1) for name in works}
    return found | {"ratio": round(statistics.median(t["from files"] / t["network"] for t in turns), 3)}


def memory(model: torch.nn.Module, files: list[Path], folder: Path, many: int) -> dict[str, Any]:
    """Classify a folder of `many` hard links; return the process's MB after a tenth and at the end."""
    for i in range(many):
        os.link(files[i % len(files)], folder / f"{i:07}{files[0].suffix}")
    began, at = time.perf_counter(), {}
    for done, answer in enumerate(classify(model, image_files(folder), batch_size=BATCH), 1):
        assert answer.error is None
        if done in (many // 10, many):
            at[done] = round(resident(), 1)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tenth, end = at.values()
    return {
        "pictures": many,
        "seconds": round(seconds, 1),
        "mb_after_a_tenth": tenth,
        "mb_at_the_end": end,
        "mb_peak": round(peak, 1),
    }


def resident() -> float:
    """Return this process's resident memory in MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def folders() -> Iterator[Path]:
    """Yield fresh folders, removed at the end."""
    with tempfile.TemporaryDirectory() as root:
        for i in itertools.count():
            (Path(root) / str(i)).mkdir()
            yield Path(root) / str(i)


def main() -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sq1")
    parser.add_argument("--backend", help="a backend of sqzoo.optimize (default: PyTorch as it is)")
    parser.add_argument("--seconds", type=float, default=FULL)
    parser.add_argument("--many", type=int, default=100_000)
    arguments = parser.parse_args()
    model = create_model(arguments.model, pretrained=True).to(memory_format=torch.channels_last)
    if arguments.backend:
        model = optimize(model, arguments.backend, BATCH)
    fresh = folders()
    made = {name: make(next(fresh), *kind) for name, kind in KINDS.items()}
    rows = {name: compare(model, files, arguments.seconds) for name, files in made.items()}
    for name, row in rows.items():
        print(f"{name:15} " + ", ".join(f"{key} {value:,}" for key, value in row.items()), flush=True)
    long = memory(model, made["32x32 PNG"], next(fresh), arguments.many)
    print(", ".join(f"{key} {value:,}" for key, value in long.items()))
    if arguments.seconds >= FULL:
        known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
        backend = getattr(model, "backend", "none")
        known[f"{arguments.model}, backend {arguments.backend or 'none'}"] = {
            "backend": backend,
            "batch": BATCH,
            "pictures_a_second": rows,
            "folder": long,
            "weights_sha256": get_weights(arguments.model).sha256,
            "environment": environment(),
        }
        write_record(RESULT, known)
    return 0


if __name__ == "__main__":
    sys.exit(main())
