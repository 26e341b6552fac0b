"""How long a plan of passes will take: a step of each kind is timed on this machine, the work is counted."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.paper.experiments import Pass, Setting
from sqzoo import create_model
from sqzoo.models.sparse import SparseMaps

IMAGES, HELD_OUT, TEST = 45_000, 5_000, 10_000
DENSITY = {"sq1": 0.106, "fire_next": 0.276}  # share of non-zeros behind fire 9 and fire 8, on CIFAR-10
GPU_FLOPS = 20e12  # float32, a third of an H100's peak: an assumption, not a measurement


@dataclass(frozen=True)
class Cost:
    """Seconds an image: preparing a batch (once a pass), a training step and an evaluation; and a step's FLOPs."""

    batch: float
    step: float
    evaluation: float
    flops: float


def report(plan: list[Pass], seeds: int, workers: int, cached: bool, device: str, bfloat16: bool = False) -> str:
    """Return the plan as lines of text: its passes, the time it takes here, and on a GPU by counted work."""
    costs: dict[tuple[str, bool], Cost] = {}
    seconds = flops = 0.0
    trunks = {p.any.trunk for p in plan if p.any.frozen and not (cached and p.any.ordinary_trunk)}
    for one in plan:
        for setting, epochs in one.settings.items():
            kind = (setting.model, setting.frozen)
            if kind not in costs:
                costs[kind] = _cost(setting, bfloat16 and setting.dense)
            cost = costs[kind]
            epoch = IMAGES * (cost.step + cost.batch / len(one.settings)) + (HELD_OUT + TEST) * cost.evaluation
            seconds += seeds * epochs * epoch
            flops += seeds * epochs * (IMAGES + (HELD_OUT + TEST) / 3) * cost.flops
    runs = seeds * sum(len(p.settings) for p in plan)
    head_epochs = seeds * sum(sum(p.settings.values()) for p in plan)
    lines = [
        f"{len(plan)} passes, {runs} runs ({seeds} seeds), {head_epochs} epochs, {len(trunks)} trunk caches to make."
    ]
    if device == "cpu":
        seconds += len(trunks) * (IMAGES + HELD_OUT + TEST) * _trunk_seconds() if trunks else 0.0
        hours, threads = seconds / workers / 3600, torch.get_num_threads()
        lines.append(f"About {hours:.1f} hours in {workers} process(es) of {threads} thread(s) on this machine.")
    lines.append(
        f"{flops / 1e15:.2f} PFLOP: about {flops / GPU_FLOPS / 60:.0f} minutes on a GPU at {GPU_FLOPS / 1e12:.0f} "
        "TFLOP/s (counted work and an assumed rate; not measured)."
    )
    return "\n".join(lines)


def _cost(setting: Setting, half: bool) -> Cost:
    fields = json.loads(setting.fields)
    count, side = fields["batch_size"], fields["side"]
    torch.manual_seed(0)
    model = create_model(setting.model, **fields["model_args"]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    labels = torch.randint(0, 10, (count,))
    rng = np.random.default_rng(0)
    if setting.frozen:
        length = count * 512 * 13 * 13
        where = np.sort(rng.choice(length, int(length * DENSITY[setting.model]), replace=False))
        values = torch.rand(len(where))
        forward = model.forward_head

        def batch() -> SparseMaps | torch.Tensor:
            maps = SparseMaps((count, 512, 13, 13), where, values)
            if half:
                return maps.dense(torch.bfloat16)
            _ = maps.by_channel
            return maps

        looked_at: SparseMaps | torch.Tensor = SparseMaps((count, 512, 13, 13), where, values)
        dense = looked_at.dense()  # type: ignore[union-attr]
    else:
        forward = model

        def batch() -> SparseMaps | torch.Tensor:
            return dense

        dense = looked_at = torch.rand(count, 3, side, side).to(memory_format=torch.channels_last)
    inputs = batch()

    def step(x: object = inputs) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = forward(x)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()

    def evaluation() -> None:
        with torch.inference_mode():
            forward(looked_at)  # which is never in bfloat16

    counter = FlopCounterMode(display=False)
    with counter:
        step(dense)
    return Cost(*(_seconds(f) / count for f in (batch, step, evaluation)), counter.get_total_flops() / count)


def _trunk_seconds() -> float:
    trunk = create_model("sq1").features.to(memory_format=torch.channels_last)  # type: ignore[union-attr]
    images = torch.rand(8, 3, 224, 224).to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode():
            trunk(images)

    return _seconds(run) / len(images)


def _seconds(run: Callable[[], object], times: int = 3) -> float:
    run()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return min(took)
