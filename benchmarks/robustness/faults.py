"""Faults: what a hostile or failing world does to files, downloads, uploads, trainings and exports.

    nice -n 10 python benchmarks/robustness/faults.py [--files 100000] [--jobs 1000] [--wire 1000] [--seed 0]
    python benchmarks/robustness/faults.py --only PART ...     # a part alone; the record waits for the others
    python benchmarks/robustness/faults.py --trial ...         # neither record nor notes

- Mutated files, by what they are made of (`mutate.py`, `fuzz.py`): weights with and without a stated hash, coded
  weights, config.json, backbones in torch's zip format, CIFAR-10 as batches and parquet, images. Each is refused in
  one sentence, or read as what the model needs; the longest refusal and the memory are noted.
- Jobs that are killed, or whose disk is full (`jobs.py`): downloading, pushing, saving, exporting, compressing,
  training, training on own images. Nothing half-written is found, and the next run comes to the same bytes.
- A Hub on loopback that fails in every way it knows (`wire.py`), for eight processes on one cache: the right tensors or
  one clear sentence. And no network: with every file cached, a process that may open no socket loads everything.

What is done is noted each minute in faults.partial.json beside the record; the same command, or one with higher counts,
goes on from there at the same commit. All is on loopback and in temporary folders. Linux only (fork, RLIMIT_FSIZE).
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import torch

from benchmarks import RESULTS
from benchmarks.record import write_record
from benchmarks.robustness.fuzz import READERS, fuzz
from benchmarks.robustness.jobs import interrupted_jobs
from benchmarks.robustness.wire import failing_hub, no_network
from sqzoo.environment import environment
from sqzoo.files import read_json, write_text

RESULT = RESULTS / "robustness" / "faults.json"
PARTIAL = RESULT.with_name("faults.partial.json")
SHARES = {
    **{"weights_with_hash": 0.25, "weights_without_hash": 0.25, "coded": 0.25, "configurations": 0.05},
    **{"backbones": 0.05, "batches": 0.05, "parquet": 0.05, "images": 0.05},
}
SLOWEST = 50  # ms of CPU that a refusal may take
LARGEST = 300  # MB that a process may grow by
NOTED = 60  # seconds between two notes of what is done


def merge(total: dict[str, Any], step: dict[str, Any]) -> None:
    """Add one step's counts to a total; of times and memory, keep the largest."""
    for key, value in step.items():
        if isinstance(value, dict):
            merge(total.setdefault(key, {}), value)
        elif key in ("slowest_ms", "memory_mb", "processes"):
            total[key] = max(total.get(key, 0), value)
        else:
            total[key] = total.get(key, 0) + value


def run(name: str, count: int, seed: int, state: dict[str, Any], note: Any) -> None:
    """Run a part until it has made so many faults, from where its state says.

    Args:
        name: of the part.
        count: faults in all, those of earlier runs among them.
        seed: of the faults.
        state: `next`, the number of the step to begin with, `done`, the faults so far, and the `outcome`.
        note: called now and then, to keep the state.
    """
    steps = {"jobs": interrupted_jobs, "wire": failing_hub, "network": no_network}
    step: Iterator[tuple[int, dict[str, Any]]] = steps.get(name, partial(fuzz, name))(state["next"], seed)
    began = noted = time.perf_counter()
    with closing(step):  # type: ignore[type-var]
        while state["done"] < count:
            faults, outcome = next(step)
            state["next"] += 1
            state["done"] += faults
            now = time.perf_counter()
            merge(state["outcome"], outcome | {"seconds": now - began})
            began = now
            if now - noted > NOTED:
                note()
                noted = now
    note()


def main() -> int:
    """Run all, print, record; return 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in {"files": 100_000, "jobs": 1000, "wire": 1000, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--only", metavar="PART")
    parser.add_argument("--trial", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("sqzoo").setLevel(logging.ERROR)  # or each file without a stated hash has its line
    counts = {name: round(share * arguments.files) for name, share in SHARES.items()}
    counts |= {"network": 1, "wire": arguments.wire, "jobs": arguments.jobs}
    assert [reader.__name__ for reader in READERS] == list(SHARES)
    facts = environment()
    key = {"commit": facts["commit"], "seed": arguments.seed}
    kept = read_json(PARTIAL) if PARTIAL.is_file() and not arguments.trial else {}
    states: dict[str, Any] = kept["parts"] if kept.get("key") == key else {}

    def note() -> None:
        print({name: state["done"] for name, state in states.items()}, flush=True)
        if not arguments.trial:
            write_text(PARTIAL, json.dumps({"key": key, "parts": states}))

    for name in [arguments.only] if arguments.only else counts:
        state = states.setdefault(name, {"next": 0, "done": 0, "outcome": {}})
        run(name, counts[name], arguments.seed, state, note)
        print(name, state["done"], json.dumps(state["outcome"]), flush=True)
    results = {name: {"faults": states[name]["done"], **states[name]["outcome"]} for name in counts if name in states}
    broken = broken_promises(results)
    print(*broken, sep="\n")
    if not arguments.trial and all(states.get(name, {"done": 0})["done"] >= count for name, count in counts.items()):
        write_record(RESULT, {"environment": facts, "seed": arguments.seed, **results})
        # The notes stay: with higher counts the same run goes on.
    return 1 if broken else 0


def broken_promises(results: dict[str, Any]) -> list[str]:
    """Return a line for each promise of the documentation that the results do not keep."""
    fuzzed = {name: results[name] for name in SHARES if name in results}
    jobs = [found for found in results.get("jobs", {}).values() if isinstance(found, dict)]
    wire, network = results.get("wire", {}), results.get("network", {})
    promises = {
        "a mutated file was taken for a right one": sum(part.get("wrong", 0) for part in fuzzed.values()),
        "a mutated file crashed its reader": sum(part.get("crashed", 0) for part in fuzzed.values()),
        "a refusal was no clear sentence": sum(part.get("unclear", 0) for part in fuzzed.values()),
        f"a refusal took {SLOWEST} ms": any(part["slowest_ms"] >= SLOWEST for part in fuzzed.values()),
        f"a process grew by {LARGEST} MB": any(part["memory_mb"] >= LARGEST for part in fuzzed.values()),
        "a job crashed": sum(found.get("crashed", 0) for found in jobs),
        "a job left something half-written": sum(found.get("half_written", 0) for found in jobs),
        "a run after an interrupted one was wrong": sum(found.get("next_run_wrong", 0) for found in jobs),
        "wrong tensors were loaded": wire.get("wrong", 0),
        "a download was half-written": wire.get("half_written", 0),
        "a fault of the network ended in no clear sentence": wire.get("unclear", 0) + wire.get("crashed", 0),
        "the model did not load after the faults": wire.get("fails_after", 0),
        "a cached model used the network": network.get("sockets_opened", 0) + network.get("requests", 0),
    }
    return [f"broken: {text}" for text, wrong in promises.items() if wrong]


def render(results: dict[str, Any]) -> str:
    """Return the table of docs/security.md."""
    rows = []
    for name in SHARES:
        part = results[name]
        wrong = sum(part.get(key, 0) for key in ("wrong", "crashed", "unclear"))
        rows.append((f"mutated {name.replace('_', ' ')}", part["faults"], part.get("read", 0), wrong))
    for name, part in results["jobs"].items():
        if isinstance(part, dict):
            wrong = sum(part.get(key, 0) for key in ("crashed", "half_written", "next_run_wrong"))
            stopped = part.get("killed", 0) + part.get("full", 0)
            rows.append(
                (f"{name.replace('_', ' ')}: killed or disk full", stopped, part.get("next_run_right", 0), wrong)
            )
    wire = results["wire"]
    wrong = sum(wire[key] for key in ("wrong", "unclear", "crashed", "half_written"))
    rows.append(("failing Hub, eight processes", wire["faults"], wire["right"], wrong))
    slowest = max(results[name]["slowest_ms"] for name in SHARES)
    memory = max(results[name]["memory_mb"] for name in SHARES)
    lines = ["| what | faults | right | wrong |", "|---|---|---|---|"]
    lines += [f"| {what} | {faults:,} | {right:,} | {wrong} |" for what, faults, right, wrong in rows]
    return "\n".join(
        [
            *lines,
            "",
            f"The slowest refusal took {slowest:.0f} ms of CPU, and no process grew by more than {memory:.0f} MB.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
