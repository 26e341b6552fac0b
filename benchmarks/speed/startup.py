"""Seconds that `import sqzoo` adds to `import torch, timm`, and that a pretrained model takes after it.

    python benchmarks/speed/startup.py [--runs 10]

Each run is a fresh process with warm file caches; the medians are what counts. Writes results/speed/startup.json.
"""

import argparse
import json
import statistics
import subprocess
import sys

from benchmarks import RESULTS
from benchmarks.record import write_record
from sqzoo.environment import environment

RESULT = RESULTS / "speed" / "startup.json"
PROBE = """
import json, time
import torch, timm
began = time.perf_counter()
import sqzoo
imported = time.perf_counter()
sqzoo.create_model("sq1", pretrained=True)
print(json.dumps({"import": imported - began, "create_pretrained": time.perf_counter() - imported}))
"""


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    found = []
    for _ in range(runs + 1):
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    seconds = {key: sorted(run[key] for run in found[1:]) for key in found[0]}  # the first run warms the caches
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    record = {"environment": environment(), "median_seconds": medians, "seconds": seconds}
    write_record(RESULT, record, ["sq1"])
    print(", ".join(f"{key}: {value:.3f} s" for key, value in medians.items()))


if __name__ == "__main__":
    main()
