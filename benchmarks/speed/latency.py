"""Time of an image on this CPU: our networks by `sqzoo.optimize`, ONNX Runtime and OpenVINO, and their peers.

    python benchmarks/speed/latency.py [--seconds 10] [--only PATTERN] [--data FOLDER] [--accuracy] [--draw]

Each network runs in a process of its own, and all take turns, so that what else the machine does hits all alike: batch
1 for 1,000 runs or `--seconds`, by one thread and by all, then larger batches. Beside that: peak memory, file size,
int8's accuracy on the 10,000 test images, and the roofline: multiply-adds and bytes against this machine's measured
matrix product and copy. Writes results/speed/latency.json, latency.png, latency_pareto.png (and .svg) and the table of
docs/benchmarks.md; with --only nothing is written. `--accuracy` measures int8's accuracy anew and keeps the times: for
new weights of the same networks. `--draw` makes the last three from the record.
"""

import argparse
import fnmatch
import json
import os
import statistics
import sys
import tempfile
import time
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import RESULTS, run_main
from benchmarks.record import write_record
from benchmarks.size.pareto import chosen, shipped
from benchmarks.speed.contenders import PEERS, Contender, Process, input_size, network
from sqzoo import get_weights
from sqzoo.data import Dataset, cifar10
from sqzoo.deploy.backends import BACKENDS, ExportModel
from sqzoo.deploy.int8 import CALIBRATION
from sqzoo.environment import environment, package_version
from sqzoo.evaluation import metrics
from sqzoo.weights import read_manifest
from tools.readme import BENCHMARKS, write_into

OURS = ("sq1", "squeezenet_cifar", "fire_next")
BASE = "torchvision squeezenet1_1 224, eager"
RUNS, TURN = 1000, 50  # runs a network, and those of a turn
BATCHES = (8, 32)
ALLOWED = "optimize, int8 allowed"
CHECKS = 2000  # training images that `optimize` checks int8's accuracy on


def contenders() -> list[Contender]:
    """Return all that is timed: ours at the size of their weights and at the knee of pareto.json, then the peers.

    Sq-1 stands for ours where one is enough.
    """
    found = []
    for name in OURS:
        tag, *others = shipped(name)
        side = get_weights(tag).resolution
        hows = ["eager", "optimize", "onnxruntime-int8"]
        smaller = [(tag, other) for other in knees(tag) if other != side]
        if name == "sq1":
            hows += ["onnxruntime", "openvino", "openvino-int8", ALLOWED]
            smaller += [(other, get_weights(other).resolution) for other in others]
        found += [Contender(tag, side, how) for how in hows]
        found += [Contender(*each, how) for each in smaller for how in ("optimize", "onnxruntime", "openvino")]
    found += [Contender("sq1", 224, how) for how in ("optimize", "onnxruntime", "openvino")]
    found += [Contender("alexnet_cifar", 224, how) for how in ("eager", "optimize")]
    for name, (side, _) in PEERS.items():
        rest = ("onnxruntime", "openvino") if name.startswith("torchvision") else ("onnxruntime",)
        found += [Contender(name, side, how) for how in ("eager", *rest)]
    return found


def knees(tag: str) -> list[int]:
    """Return the side that pareto.py chose for a tag as the smallest that is nearly the best, if it has run."""
    file = RESULTS / "size" / "pareto.json"
    if not file.is_file():
        return []
    picked = chosen(json.loads(file.read_text(encoding="utf-8"))["ours"])
    return [picked[tag]["knee"]["side"]] if tag in picked else []


def measure(all_: list[Contender], calibration: Dataset, seconds: float, threads: list[int]) -> list[dict[str, Any]]:
    """Return a row for each contender."""
    processes, rows = [], []
    # Two at a time, but `optimize` measures as it starts, so alone.
    alone = [[c] for c in all_ if c.how.startswith("optimize")]
    others = [c for c in all_ if not c.how.startswith("optimize")]
    for group in [*(others[i : i + 2] for i in range(0, len(others), 2)), *alone]:
        started = [Process(contender, threads, calibration) for contender in group]
        for process in started:
            c = process.contender
            about = {"name": c.name, "network": c.network, "side": c.side, "how": c.how} | process.about()
            print(f"ready: {about}", file=sys.stderr)
            rows.append(about | counted(c.network, c.side) | {"threads": {}})
        processes += started
    for count in threads:
        times = _in_turns(processes, count, 1, RUNS, seconds)
        rates = {1: [1 / statistics.median(t) for t in times]}
        for batch in BATCHES:
            found = _in_turns(processes, count, batch, RUNS // 5, seconds / 20)
            rates[batch] = [batch / statistics.median(t) for t in found]
        for i, row in enumerate(rows):
            p50, p90, p99 = (1000 * float(q) for q in np.quantile(times[i], (0.5, 0.9, 0.99)))
            best = max(rates, key=lambda batch: rates[batch][i])
            row["threads"][str(count)] = {
                "ms": {"p50": p50, "p90": p90, "p99": p99},
                "runs": len(times[i]),
                "images_per_second": rates[best][i],
                "batch": best,
            }
            print(row["name"], row["threads"][str(count)], file=sys.stderr)
    for row, process in zip(rows, processes, strict=True):
        row["peak_memory_bytes"] = process.close()
    return rows


def _in_turns(processes: list[Process], threads: int, batch: int, runs: int, seconds: float) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in processes]
    for process in processes:
        process.time(threads, batch, TURN, seconds / 20)  # the warm-up
    left = set(range(len(processes)))
    while left:
        for i in sorted(left):
            share = max(0.0, min(seconds / 5, seconds - sum(times[i])))
            times[i] += processes[i].time(threads, batch, min(TURN, runs - len(times[i])), share)
            if len(times[i]) >= runs or sum(times[i]) >= seconds:
                left.remove(i)
    return times


@cache
def counted(name: str, side: int) -> dict[str, int]:
    """Return an image's multiply-adds, and the bytes that its layers read and write: weights, inputs and outputs."""
    model, moved = network(name, side), 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal moved
        tensors = [*inputs, output, *layer.parameters(recurse=False)]
        moved += sum(t.numel() * t.element_size() for t in tensors)

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.MaxPool2d | nn.AvgPool2d):
            layer.register_forward_hook(count)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *input_size(name, side)))
    return {"multiply_adds": counter.get_total_flops() // 2, "moved_bytes": moved}


def peaks(threads: int) -> dict[str, float]:
    """Return the best of a large float32 matrix product (multiply-adds a second) and of a large copy (bytes a second).

    A copy's bytes are those read and those written.
    """
    torch.set_num_threads(threads)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    x, y = torch.randn(1 << 26), torch.empty(1 << 26)
    product, copied = [], []
    with torch.inference_mode():
        for _ in range(8):
            began = time.perf_counter()
            torch.mm(a, b)
            product.append(time.perf_counter() - began)
            began = time.perf_counter()
            y.copy_(x)
            copied.append(time.perf_counter() - began)
    return {"multiply_adds": 2048**3 / min(product), "bytes": 2 * 4 * (1 << 26) / min(copied)}


def int8_accuracy(train: Dataset, test: Dataset) -> dict[str, dict[str, float]]:
    """Return top-1 of float32 and int8, both by ONNX Runtime on the same images, for our default tags."""
    found = {}
    for name in OURS:
        tag, side = get_weights(name).tag, get_weights(name).resolution
        model = ExportModel(network(tag, side), calibration=train.images[:CALIBRATION])
        row = {}
        for key in ("onnxruntime", "onnxruntime-int8"):
            run = BACKENDS[key](model, model.shape(8))
            with torch.inference_mode():
                logits = [run(model.prepared(test.images[i : i + 8])) for i in range(0, len(test), 8)]
            row[key] = metrics(torch.cat(logits), torch.from_numpy(test.labels)).top1
        found[tag] = {"float32_top1": row["onnxruntime"], "int8_top1": row["onnxruntime-int8"], "images": len(test)}
        print(tag, found[tag], file=sys.stderr)
    return found


def verdicts(results: dict[str, Any]) -> list[str]:
    """Return a sentence on each target that the record can judge."""
    rows = {row["name"]: row for row in results["rows"]}
    said = []

    def ms(name: str, count: str) -> float:
        return float(rows[name]["threads"][count]["ms"]["p50"])

    def judge(text: str, ratio: float, target: float) -> None:
        said.append(f"{text}: x{ratio:.2f} (target {target:g}): {'reached' if ratio >= target else 'not reached'}.")

    for count in results["thread_counts"]:
        for row in results["rows"]:
            name, prefix = row["name"], f"{row['network']} {row['side']}, "
            if row["how"] == "optimize" and row["network"].startswith("sq1"):
                near = f"{name}, {count} thread{'s' if count != '1' else ''}"
                judge(
                    f"{near}, against torchvision's eager SqueezeNet 1.1 at 224", ms(BASE, count) / ms(name, count), 4
                )
                if row["side"] < 224:
                    judge(f"{near}, the same at the recommended size", ms(BASE, count) / ms(name, count), 10)
                rivals = [prefix + how for how in ("onnxruntime", "openvino") if prefix + how in rows]
                if rivals:
                    best = min(rivals, key=lambda n: ms(n, count))
                    judge(f"{near}, against {rows[best]['how']}", ms(best, count) / ms(name, count), 0.95)
                quick = [prefix + how for how in ("onnxruntime-int8", "openvino-int8") if prefix + how in rows]
                if quick:
                    best = min(quick, key=lambda n: ms(n, count))
                    judge(f"{best}, {count} threads, against float32", ms(name, count) / ms(best, count), 1.3)
    for tag, row in results["int8"].items():
        lost = row["float32_top1"] - row["int8_top1"]
        fine = "reached" if lost <= 0.3 else "not reached"
        said.append(
            f"{tag}: int8 {row['int8_top1']:.2f} %, float32 {row['float32_top1']:.2f} % (target: 0.3 points): {fine}."
        )
    return said


def floor_ms(results: dict[str, Any], row: dict[str, Any], count: str) -> float:
    """Return the milliseconds that this machine's peaks leave an image: its multiply-adds or its bytes, the longer."""
    peak = results["peaks"][count]
    return 1000 * max(row["multiply_adds"] / peak["multiply_adds"], row["moved_bytes"] / peak["bytes"])


def render(results: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md, and the verdicts."""
    one, many = results["thread_counts"][0], results["thread_counts"][-1]
    lines = [
        f"| network, image side, how | ms, 1 thread: p50 · p90 · p99 | ms, {many} threads | images/s | of roofline | "
        "memory | file |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(results["rows"], key=lambda r: r["threads"][many]["ms"]["p50"]):
        cells = [f"**{row['name']}**" if row["how"].startswith("optimize") else row["name"]]
        if row["how"].startswith("optimize"):
            cells[0] += f" ({' / '.join(dict.fromkeys(row['backend'].values()))})"
        for count in dict.fromkeys((one, many)):
            cells.append(" · ".join(f"{row['threads'][count]['ms'][q]:.2f}" for q in ("p50", "p90", "p99")))
        best = row["threads"][many]
        floor = floor_ms(results, row, many) / best["ms"]["p50"]
        cells += [f"{best['images_per_second']:,.0f} (batch {best['batch']})", f"{100 * floor:.0f} %"]
        cells += [f"{row['peak_memory_bytes'] / 1e6:.0f} MB", f"{row['bytes'] / 1e6:.2f} MB"]
        lines.append(f"| {' | '.join(cells)} |")
    where = results["environment"]
    peak = results["peaks"][many]
    lines += [
        "",
        f"Machine: {where['cpu']}, {where['cores']} cores; batch 1, all in one run, in turns. Of roofline: the least "
        "time that this machine's float32 peaks allow, as a share of the measured time. The peaks are those of a large "
        f"matrix product ({peak['multiply_adds'] / 1e9:.0f} billion multiply-adds per second) and of a large copy "
        f"({peak['bytes'] / 1e9:.0f} GB/s); int8 may exceed them. Memory: the peak of a process that runs this network "
        "alone; for `optimize` it includes all runtimes, which are loaded to choose one.",
        "",
        *(f"- {sentence}" for sentence in results["verdicts"]),
    ]
    return "\n".join(lines)


def draw(results: dict[str, Any]) -> None:
    """Write the bars, batch 1 by all threads, and accuracy against latency."""
    from benchmarks.paper.plots import BLACK, BLUE, COLOURS, ORANGE, STYLE, plt

    many = results["thread_counts"][-1]
    rows = sorted(results["rows"], key=lambda r: -r["threads"][many]["ms"]["p50"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 0.23 * len(rows) + 1.2))
        p50, p99 = ([row["threads"][many]["ms"][q] for row in rows] for q in ("p50", "p99"))
        colours = [
            ORANGE if r["how"].startswith("optimize") else BLACK if r["network"] in PEERS else BLUE for r in rows
        ]
        axes.barh(range(len(rows)), p50, color=colours, alpha=0.85)
        axes.hlines(range(len(rows)), p50, p99, color="grey", lw=1)
        for i, value in enumerate(p50):
            axes.annotate(f"{value:.2f}", (value, i), fontsize=6, xytext=(2, -2), textcoords="offset points")
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=6)
        axes.set(
            xscale="log", xlabel=f"milliseconds, batch 1, {many} threads: median, line to p99", ylim=(-1, len(rows))
        )
        axes.set_title("sqzoo.optimize (orange), our networks otherwise (blue), peers (black)", fontsize=9)
        _save(figure, "latency")
        figure, axes = plt.subplots(figsize=(6.5, 4.4))
        for colour, (tag, accuracy) in zip(COLOURS, results["int8"].items(), strict=False):
            for row in rows:
                side = get_weights(tag).resolution
                if row["network"] != tag or row["side"] != side:
                    continue
                top1 = accuracy["int8_top1" if row["how"].endswith("-int8") else "float32_top1"]
                if row["how"] != ALLOWED:
                    axes.plot(row["threads"][many]["ms"]["p50"], top1, "o", color=colour)
                    axes.annotate(row["how"], (row["threads"][many]["ms"]["p50"], top1), fontsize=6, xytext=(3, 3),
                                  textcoords="offset points")  # fmt: skip
            axes.plot([], [], "o", color=colour, label=f"{tag}, {side} px")
        for name, top1 in results["published_top1"].items():
            for row in rows:
                if row["network"] == name:
                    axes.plot(row["threads"][many]["ms"]["p50"], top1, "x", color=BLACK)
                    axes.annotate(f"{name}, {row['how']}", (row["threads"][many]["ms"]["p50"], top1), fontsize=6,
                                  xytext=(3, 3), textcoords="offset points")  # fmt: skip
        axes.set(xscale="log", xlabel=f"milliseconds, batch 1, {many} threads", ylabel="CIFAR-10 test top-1, %")
        axes.legend(fontsize=7)
        axes.set_title("Ours (measured) and published networks (x, accuracy as quoted)", fontsize=9)
        _save(figure, "latency_pareto")


def _save(figure: Any, name: str) -> None:
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        figure.savefig(RESULTS / "speed" / f"{name}.{kind}", metadata=metadata)


def _data(folder: str | None) -> tuple[Dataset, Dataset]:
    """Return training images to calibrate int8 on and to check it, and the test images."""
    train = cifar10("train", folder)
    few = np.random.default_rng(0).permutation(len(train))[: CALIBRATION + CHECKS]
    return train[few], cifar10("test", folder)


def main() -> int:
    """Measure, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="time a network for so long, or 1,000 runs")
    part = parser.add_mutually_exclusive_group()  # --only writes nothing, --accuracy does
    part.add_argument("--only", default="*", help="names to time, by a shell pattern; nothing is written")
    part.add_argument("--accuracy", action="store_true", help="measure int8's accuracy anew, and keep the times")
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--draw", action="store_true", help="from the record, measure nothing")
    arguments = parser.parse_args()
    file = RESULTS / "speed" / "latency.json"
    if arguments.draw or arguments.accuracy:
        results = json.loads(file.read_text(encoding="utf-8"))
        if arguments.accuracy:
            results |= {"accuracy_environment": environment(), "int8": int8_accuracy(*_data(arguments.data))}
            results["verdicts"] = verdicts(results)
            write_record(file, results, results["int8"])
    else:
        # What optimize chose another day, while other programs ran, must not count here.
        kept = tempfile.TemporaryDirectory()
        os.environ["SQZOO_CACHE"] = kept.name
        from benchmarks.size.published import PUBLISHED

        began = time.perf_counter()
        wanted = [c for c in contenders() if fnmatch.fnmatch(c.name, arguments.only)]
        train, test = _data(arguments.data)
        counts = list(dict.fromkeys((1, os.cpu_count() or 1)))
        whole = arguments.only == "*"
        results = {
            "environment": environment(),
            "runtimes": {name: package_version(name) for name in ("onnxruntime", "openvino", "onnx")},
            "seed": 0,
            "data": {"calibration_digest": train.digest, "test_digest": test.digest},
            "thread_counts": [str(n) for n in counts],
            "peaks": {str(n): peaks(n) for n in counts},
            "rows": measure(wanted, train, arguments.seconds, counts),
            "int8": int8_accuracy(train, test) if whole else {},
            "published_top1": {p.name: p.top1 for p in PUBLISHED if p.name in PEERS},
        }
        results["verdicts"] = verdicts(results) if whole else []
        results["minutes"] = round((time.perf_counter() - began) / 60, 1)
        if whole:
            write_record(file, results, {row["network"] for row in results["rows"]} & read_manifest().keys())
    if arguments.only == "*":
        draw(results)
        write_into(BENCHMARKS, "latency", render(results))
    print(render(results))
    return 0


if __name__ == "__main__":
    run_main(main)
