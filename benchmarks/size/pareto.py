"""Accuracy against parameters, multiply-adds and CPU time: our networks at every image size, and published ones.

    python benchmarks/size/pareto.py [--sides 64,96,128,160,192,224] [--seconds 5] [--threads N] [--times] [--draw]

Each architecture's default tag is evaluated at each side, its other complete tags at their own, on the training images
that the run held out and on the test images. Then all networks, ours and those of published.py, are timed in ONNX
Runtime at batch 1, in turns, in this one run. A side is chosen on held-out images: the best, and the smallest within
0.3 points of it. Writes results/size/pareto.json, .png and .svg, and the table of docs/benchmarks.md. `--draw`
makes the last three from the record.
"""

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import RESULTS, run_main
from benchmarks.record import write_record
from benchmarks.size.published import PUBLISHED
from sqzoo import create_model, get_weights
from sqzoo.data import Dataset, cifar10
from sqzoo.deploy.onnx_graph import to_onnx
from sqzoo.environment import environment
from sqzoo.evaluation import logits, metrics
from sqzoo.models.upsample import Upsample
from sqzoo.weights import tags
from tools.readme import BENCHMARKS, write_into

OURS = ("sq1", "squeezenet_cifar", "fire_next")
SIDES = (64, 96, 128, 160, 192, 224)
RUNS = 1000  # of a network: enough, though they took less than `--seconds`
LIMITS = (91.5, 96.2)  # of the plot's accuracy: a network at a size far from its own lies below
NEAR = 0.3  # points of held-out top-1 that a smaller image may cost


def multiply_adds(model: nn.Module, side: int) -> float:
    """Return the millions of multiply-adds of an image."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() / 2e6


def mirrored(data: Dataset) -> Dataset:
    """Return the same images, left and right exchanged."""
    return Dataset(np.ascontiguousarray(data.images[:, :, ::-1]), data.labels)


def shipped(name: str) -> list[str]:
    """Return the tags of an architecture that are complete, the default first."""
    return [tag for tag in tags(name) if get_weights(tag).holds == "complete"]


def evaluate_ours(train: Dataset, test: Dataset, sides: list[int]) -> list[dict[str, Any]]:
    """Return a row for each tag and side: accuracy, multiply-adds, parameters."""
    rows = []
    for tag in (tag for name in OURS for tag in shipped(name)):
        entry = get_weights(tag)
        model = create_model(tag, pretrained=True)
        held = train[train.split(entry.recipe["hold_out"])[1]]
        own = entry.resolution
        for side in sorted({*sides, own}) if tag == shipped(entry.architecture)[0] else [own]:
            model.upsample = Upsample(side)
            seen = {
                part: metrics(logits(model, data), torch.from_numpy(data.labels)).top1
                for part, data in (("held_out_top1", held), ("test_top1", test))
            }
            about = {"tag": tag, "side": side, "trained_at": own, "held_out_images": len(held)}
            if side == own:
                both = logits(model, test) + logits(model, mirrored(test))
                about["test_top1_with_mirror_image"] = metrics(both, torch.from_numpy(test.labels)).top1
            macs, params = multiply_adds(model, 32), sum(p.numel() for p in model.parameters())
            rows.append(about | seen | {"mega_multiply_adds": round(macs, 1), "params": params})
            print(rows[-1], file=sys.stderr)
    return rows


def time_all(networks: dict[str, tuple[nn.Module, int]], seconds: float, threads: int) -> dict[str, dict[str, Any]]:
    """Return each network's median and 90th percentile of milliseconds an image, batch 1; all take turns."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Or the threads of the network before would spin beside those of the one that is timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = {}
    for name, (model, side) in networks.items():
        graph = to_onnx(model.eval(), torch.zeros(2, 3, side, side), {})
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        image = np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32)
        for _ in range(5):
            session.run(None, {"images": image})
        sessions[name] = (session, image)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    left = set(sessions)
    while left:
        for name in sorted(left):
            session, image = sessions[name]
            for _ in range(10):
                began = time.perf_counter()
                session.run(None, {"images": image})
                times[name].append(time.perf_counter() - began)
            if sum(times[name]) >= seconds or len(times[name]) >= RUNS:
                left.remove(name)
    return {
        name: {"ms_p50": 1e3 * statistics.median(t), "ms_p90": 1e3 * float(np.quantile(t, 0.9)), "runs": len(t)}
        for name, t in times.items()
    }


def chosen(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return by tag the rows that held-out images choose: the "best" side, and the "knee" near it."""
    found = {}
    for tag in dict.fromkeys(row["tag"] for row in rows):
        own = sorted((r for r in rows if r["tag"] == tag), key=lambda r: r["side"])
        best = max(own, key=lambda r: r["held_out_top1"])
        knee = next(r for r in own if r["held_out_top1"] >= best["held_out_top1"] - NEAR)
        found[tag] = {"best": best, "knee": knee}
    return found


def of_former_weights(rows: list[dict[str, Any]]) -> list[str]:
    """Return the tags whose weights are no longer those of the rows: the accuracy at their own side is another."""
    own = {row["tag"]: row["test_top1"] for row in rows if row["side"] == row["trained_at"]}
    return [tag for tag, top1 in own.items() if abs(top1 - get_weights(tag).metrics["test_top1"]) > 0.015]


def draw(results: dict[str, Any]) -> None:
    """Write the plot: test accuracy against milliseconds and against multiply-adds."""
    from benchmarks.paper.plots import BLACK, COLOURS, STYLE, plt

    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
        for axes, key, label, ticks in zip(
            panels,
            ("ms_p50", "mega_multiply_adds"),
            (f"milliseconds an image, batch 1, {results['threads']} threads", "multiply-adds, millions"),
            ((0.5, 1, 2, 4, 8), (20, 40, 80, 160, 320)),
            strict=True,
        ):
            for colour, tag in zip(COLOURS, chosen(results["ours"]), strict=False):
                own = [r for r in results["ours"] if r["tag"] == tag]
                axes.plot([r[key] for r in own], [r["test_top1"] for r in own], "o-", color=colour, label=tag)
                if tag.startswith(OURS[0]):  # the others' points lie beside these
                    for row in own:
                        axes.annotate(str(row["side"]), (row[key], row["test_top1"]), fontsize=6, xytext=(3, -8),
                                      textcoords="offset points", annotation_clip=True)  # fmt: skip
            for row in results["published"]:
                if row.get(key):
                    axes.plot(row[key], row["top1"], "x", color=BLACK)
                    axes.annotate(row["name"], (row[key], row["top1"]), fontsize=6, xytext=(4, 3),
                                  textcoords="offset points")  # fmt: skip
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.set(xlabel=label, ylim=LIMITS)
        panels[0].set_ylabel("test top-1, %")
        panels[0].legend(fontsize=7, loc="upper left")
        figure.suptitle(
            "CIFAR-10 under 1M parameters: ours by image side (•), published (x, accuracy as quoted)", fontsize=10
        )
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            figure.savefig(RESULTS / "size" / f"pareto.{kind}", metadata=metadata)
        plt.close(figure)


def render(results: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md: our best sides and knees among the published networks, by accuracy."""
    rows = []
    former = of_former_weights(results["ours"])
    for tag, picked in chosen(results["ours"]).items():
        for row in {r["side"]: r for r in picked.values()}.values():
            name = f"**`{tag}`** at {row['side']} px"
            source = "measured" if tag not in former else "measured earlier"
            rows.append((row["test_top1"], name, row["params"] / 1e6, row["mega_multiply_adds"], row["ms_p50"], source))
    for row in results["published"]:
        rows.append((row["top1"], row["name"], row["params"], row["macs"], row.get("ms_p50"), row["source"]))
    lines = [
        "| network | top-1, % | parameters, M | multiply-adds, M | ms | accuracy from |",
        "|---|---|---|---|---|---|",
    ]
    for top1, name, params, macs, ms, source in sorted(rows, key=lambda r: -r[0]):
        time_ = f"{ms:.2f}" if ms else "-"
        lines.append(f"| {name} | {top1:.2f} | {params:.2f} | {macs:.0f} | {time_} | {source} |")
    where = results["timing_environment"]
    if former:
        lines += ["", f"Table 2 has another accuracy since, to be measured anew: {', '.join(former)}."]
    lines += [
        "",
        f"Milliseconds: ONNX Runtime, batch 1, {results['threads']} threads, {where['cpu']}; median, all in one run.",
    ]
    return "\n".join(lines)


def measured(data: str | None, sides: list[int]) -> dict[str, Any]:
    """Return the accuracy of our networks at each side."""
    train, test = cifar10("train", data), cifar10("test", data)
    return {
        "environment": environment(),
        "data": {"train_digest": train.digest, "test_digest": test.digest},
        "ours": evaluate_ours(train, test, sides),
    }


def timed(results: dict[str, Any], seconds: float, threads: int) -> dict[str, Any]:
    """Return the results with the time of every network, ours and the published ones, measured in turns."""
    networks = {
        f"{r['tag']} {r['side']}": (create_model(r["tag"], pretrained=True), r["side"]) for r in results["ours"]
    }
    networks |= {p.name: (p.build(), 32) for p in PUBLISHED if p.build}
    times = time_all(networks, seconds, threads)
    published = []
    for p in PUBLISHED:
        about = {k: getattr(p, k) for k in ("name", "top1", "params", "macs", "source")}
        counted = {"mega_multiply_adds": round(multiply_adds(networks[p.name][0], 32), 1)} if p.build else {}
        published.append(about | counted | times.get(p.name, {}))
    return results | {
        "timing_environment": environment(),
        "threads": threads,
        "ours": [row | times[f"{row['tag']} {row['side']}"] for row in results["ours"]],
        "published": published,
    }


def main() -> int:
    """Evaluate, time, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default=",".join(map(str, SIDES)), help="image sides, by commas")
    parser.add_argument("--seconds", type=float, default=5, help="time a network for so long")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--times", action="store_true", help="measure the times anew, and keep the accuracies")
    parser.add_argument("--draw", action="store_true", help="from the record, measure nothing")
    arguments = parser.parse_args()
    file = RESULTS / "size" / "pareto.json"
    if not arguments.draw:
        if arguments.times:
            results = json.loads(file.read_text(encoding="utf-8"))
        else:
            results = measured(arguments.data, [int(side) for side in arguments.sides.split(",")])
        write_record(
            file, timed(results, arguments.seconds, arguments.threads), {row["tag"] for row in results["ours"]}
        )
    results = json.loads(file.read_text(encoding="utf-8"))
    draw(results)
    write_into(BENCHMARKS, "pareto", text := render(results))
    print(text)
    return 0


if __name__ == "__main__":
    run_main(main)
