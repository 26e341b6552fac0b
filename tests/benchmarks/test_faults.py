"""The fault benchmark: what mutates files really changes them, and a part that was stopped goes on where it was."""

import json
import random
from typing import Any

import pytest
import torch
from safetensors.torch import save

from benchmarks import RESULTS
from benchmarks.robustness import faults, mutate
from benchmarks.robustness.fuzz import fuzz


def state_after(*counts: int) -> dict[str, Any]:
    """Return a part's state after runs to each of the counts, noted as JSON between them."""
    state: dict[str, Any] = {"next": 0, "done": 0, "outcome": {}}
    for count in counts:
        faults.run("weights_without_hash", count, 0, state, lambda: None)
        state = json.loads(json.dumps(state))
    return {k: v for k, v in state["outcome"].items() if k in ("refused", "read")} | {"next": state["next"]}


def test_a_stopped_part_goes_on_where_it_was() -> None:
    assert state_after(30, 60) == state_after(60)
    assert state_after(60)["next"] == 60 and state_after(60)["refused"] > 40


@pytest.mark.parametrize("reader", ["weights_with_hash", "coded", "batches", "parquet", "images"])
def test_a_reader_under_mutation(reader: str) -> None:
    steps = fuzz(reader, 0, 1)
    outcome: dict[str, Any] = {}
    for _ in range(25):
        faults.merge(outcome, next(steps)[1])
    steps.close()
    assert outcome.get("refused", 0) + outcome.get("read", 0) == 25 and outcome.get("refused", 0) > 5


def test_mutations_keep_the_structure() -> None:
    """Most changed headers are valid JSON, and the tensors behind them stay as they are."""
    data, rng = save({"a": torch.rand(8, 4), "b": torch.rand(3)}), random.Random(0)
    start = 8 + int.from_bytes(data[:8], "little")
    valid = 0
    for changed in (mutate.header_of(rng, data) for _ in range(100)):
        length = 8 + int.from_bytes(changed[:8], "little")
        assert changed[length:] == data[start:]
        try:
            valid += json.loads(changed[8:length]) != json.loads(data[8:start])
        except (ValueError, RecursionError):
            continue
    assert valid > 60
    assert sum(mutate.tensors_of(rng, data) != data for _ in range(40)) > 30  # a vector may be flattened or reversed


def test_recorded_faults_broke_no_promise() -> None:
    results = json.loads((RESULTS / "robustness" / "faults.json").read_text(encoding="utf-8"))
    assert faults.broken_promises(results) == []
    interrupted = sum(part.get("killed", 0) + part.get("full", 0) for part in jobs_of(results).values())
    assert sum(results[name]["faults"] for name in faults.SHARES) >= 4000
    assert interrupted + results["wire"]["faults"] >= 140
    assert {"push", "export", "compress", "own_images", "training"} <= jobs_of(results).keys()
    wrong = results | {"wire": results["wire"] | {"wrong": 1}}
    assert faults.broken_promises(wrong) == ["broken: wrong tensors were loaded"]


def jobs_of(results: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {name: part for name, part in results["jobs"].items() if isinstance(part, dict)}
