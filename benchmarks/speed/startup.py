"""What starting costs: `import sqzoo`, a pretrained model after it, and the commands that only read metadata.

    python benchmarks/speed/startup.py [--runs 10]

Each run is a fresh process with warm file caches; the medians are what counts. Imports are measured inside the process,
commands from outside, with the peak of their resident memory. Writes results/speed/startup.json. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks import RESULTS
from benchmarks.record import write_record
from sqzoo.environment import environment

RESULT = RESULTS / "speed" / "startup.json"
PROBE = """
import json, time
start = time.perf_counter()
import sqzoo
imported = time.perf_counter()
import torch, timm
third_party = time.perf_counter()
sqzoo.create_model("sq1", pretrained=True)
end = time.perf_counter()
print(json.dumps({"import sqzoo": imported - start, "import torch, timm": third_party - imported,
                  "create_model('sq1', pretrained=True)": end - third_party}))
"""
COMMANDS = (["--help"], ["list"], ["info", "sq1"], ["cache"])


def in_process() -> dict[str, float]:
    """Return the seconds of PROBE's steps."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def command(words: list[str]) -> tuple[float, float]:
    """Run `sqzoo` with these words; return its seconds and the peak of its resident memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "sqzoo", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"sqzoo {' '.join(words)} ended with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1000


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    load = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for run in range(runs + 1):
        measured = in_process()
        for words in COMMANDS:
            name = f"sqzoo {' '.join(words)}"
            measured[name], peak = command(words)
            memory[name] = max(memory.get(name, 0), round(peak, 1))
        if run:  # the first warms the file caches
            for name, value in measured.items():
                seconds.setdefault(name, []).append(round(value, 4))
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    record = {"environment": environment(), "load_average_before": load, "runs": runs, "median_seconds": medians}
    write_record(RESULT, record | {"peak_mb": memory, "seconds": seconds}, ["sq1"])
    for name, value in medians.items():
        print(f"{name:38} {value:7.3f} s" + (f"  {memory[name]:5.0f} MB" if name in memory else ""))


if __name__ == "__main__":
    main()
