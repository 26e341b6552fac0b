"""The latency benchmark: its verdicts follow from the figures, and it runs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.speed import latency
from benchmarks.speed.contenders import Contender
from sqzoo.data import Dataset

TWO = [Contender("ResNet-20", 32, "eager"), Contender("ResNet-20", 32, "onnxruntime")]


def record(**milliseconds: float) -> dict[str, Any]:
    """Return a record in which each "network side, how" took so long."""
    rows = []
    for name, ms in milliseconds.items():
        network, side, how = re.fullmatch(r"(.*) (\d+), (.*)", name).groups()  # type: ignore[union-attr]
        times = {"ms": {"p50": ms, "p90": ms, "p99": ms}, "images_per_second": 1000 / ms, "batch": 1, "runs": 9}
        row = {"name": name, "network": network, "side": int(side), "how": how, "threads": {"1": times}}
        row |= {"backend": {"1": "onnxruntime"}, "bytes": 1e6, "peak_memory_bytes": 1e8}
        rows.append(row | {"multiply_adds": 100e6, "moved_bytes": 1e6})
    environment = {"cpu": "a CPU", "cores": 1}
    peaks = {"1": {"multiply_adds": 100e9, "bytes": 10e9}}
    found = {"thread_counts": ["1"], "rows": rows, "peaks": peaks, "environment": environment}
    int8 = {"sq1.ft_cifar10": {"float32_top1": 92.0, "int8_top1": 91.6}}
    return found | {"int8": int8, "verdicts": [], "published_top1": {"ResNet-20": 92.6}}


def test_the_recorded_verdicts_are_those_of_the_figures() -> None:
    results = json.loads((latency.RESULTS / "speed" / "latency.json").read_text(encoding="utf-8"))
    assert results["verdicts"] == latency.verdicts(results)
    assert {row["name"] for row in results["rows"]} >= {latency.BASE}


def test_verdicts_follow_from_the_figures() -> None:
    names = ("optimize", "onnxruntime", "openvino", "onnxruntime-int8")
    times = {f"sq1.ft_cifar10 128, {how}": ms for how, ms in zip(names, (2.0, 1.0, 3.0, 1.9), strict=True)}
    said = latency.verdicts(record(**{latency.BASE: 16.0}, **times))
    assert [re.search(r"x([\d.]+) \(target ([\d.]+)\): (.*)\.", line).groups() for line in said[:-1]] == [  # type: ignore[union-attr]
        ("8.00", "4", "reached"),
        ("8.00", "10", "not reached"),
        ("0.50", "0.95", "not reached"),
        ("1.05", "1.3", "not reached"),
    ]
    assert said[-1].endswith("(target: 0.3 points): not reached.")


def test_the_table_names_backend_and_roofline() -> None:
    text = latency.render(record(**{"sq1.ft_cifar10 128, optimize": 2.0}))
    assert "| **sq1.ft_cifar10 128, optimize** (onnxruntime) | 2.00 · 2.00 · 2.00 | 500 (batch 1) | 50 % |" in text


def test_it_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "RESULTS", tmp_path)
    names = ("sq1.ft_cifar10 128, optimize", "sq1.ft_cifar10 128, onnxruntime-int8", "ResNet-20 32, eager")
    folder = tmp_path / "speed"
    folder.mkdir()
    latency.draw(record(**dict.fromkeys(names, 2.0)))
    assert sorted(f.name for f in folder.iterdir()) == [
        "latency.png", "latency.svg", "latency_pareto.png", "latency_pareto.svg",
    ]  # fmt: skip
    for name in names:
        assert name in (folder / "latency.svg").read_text(encoding="utf-8")
    assert "ResNet-20, eager" in (folder / "latency_pareto.svg").read_text(encoding="utf-8")


def test_what_is_counted() -> None:
    found = latency.counted("ResNet-20", 32)
    assert found["multiply_adds"] == pytest.approx(41e6, rel=0.02)
    weights = 4 * sum(p.numel() for p in latency.network("ResNet-20", 32).parameters())
    assert weights < found["moved_bytes"] < 20 * weights


@pytest.mark.slow
def test_two_take_turns() -> None:
    data = Dataset(np.zeros((latency.CALIBRATION, 32, 32, 3), np.uint8), np.zeros(latency.CALIBRATION, np.int64))
    eager, runtime = latency.measure(TWO, data, 0.2, [1])
    assert (eager["how"], runtime["how"]) == ("eager", "onnxruntime")
    for row in (eager, runtime):
        found = row["threads"]["1"]
        assert 0 < found["ms"]["p50"] <= found["ms"]["p90"] <= found["ms"]["p99"]
        assert found["images_per_second"] >= 0.99 * 1000 / found["ms"]["p50"]
        assert row["peak_memory_bytes"] > 5e7
    assert runtime["bytes"] == pytest.approx(4 * 272e3, rel=0.15)
