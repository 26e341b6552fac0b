"""Peak memory of training a head on all of CIFAR-10, with the feature cache in memory and on disk.

    python benchmarks/speed/training_memory.py [--model fire_next] [--data FOLDER] [--trunk FOLDER] [--cache FOLDER]

Runs `sqzoo train` for one epoch each way in a process of its own and samples what that process itself holds (RssAnon:
pages of a mapped cache file belong to the system's page cache) five times a second. Fire-Next's cache is the largest.
Writes results/speed/training_memory.json. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import RESULTS
from benchmarks.record import write_record
from sqzoo.environment import environment

RESULT = RESULTS / "speed" / "training_memory.json"


def peak_anonymous_gib(command: list[str]) -> tuple[float, float]:
    """Run a command; return the peak of its anonymous memory in GiB and its seconds."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        lines = status.read_text(encoding="ascii").splitlines()
        kib = next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)
        peak = max(peak, kib)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}")
    return peak / 2**20, time.perf_counter() - began


def main() -> None:
    """Measure both ways, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fire_next")
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--trunk", help="folder with the ImageNet trunk (default: $SQZOO_TRUNKS, else torchvision's)")
    parser.add_argument(
        "--cache", help="folder of an earlier cache, to save the time of making it (default: a new one)"
    )
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "sqzoo", "train", arguments.model, "--set", "sizes=[[224, 1]]"]
    for name in ("data", "trunk"):
        if getattr(arguments, name):
            command += [f"--{name}", getattr(arguments, name)]
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for where, extra in (("disk", ["--cache", arguments.cache or f"{folder}/cache"]), ("memory", [])):
            peak, seconds = peak_anonymous_gib([*command, "--run", f"{folder}/{where}", *extra])
            result[where] = {"peak_anonymous_gib": round(peak, 2), "seconds": round(seconds, 1)}
            print(f"{arguments.model}, cache {'on' if where == 'disk' else 'in'} {where}: {peak:.2f} GiB")
    record = {"environment": environment(), "model": arguments.model, "seed": 0, **result}
    write_record(RESULT, record)


if __name__ == "__main__":
    main()
