"""Allocate bits to layers: measure how the network's outputs suffer from each layer alone, then share out a budget."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from sqzoo.compress.quantize import bits_per_weight, quantize_rows, set_rows, step_for
from sqzoo.compress.stages import Stages, advance, batches
from sqzoo.data import Dataset
from sqzoo.models.base import ZooModel


@dataclass(frozen=True)
class Probe:
    """One layer quantised alone: log2 of its step, bits per weight, KL divergence from the parent's outputs (nats)."""

    step: float
    bits: float
    loss: float


def probe_layers(
    model: ZooModel, calibration: Dataset, val: Dataset, bits: float, progress: Callable[[str], Any]
) -> tuple[dict[str, list[Probe]], dict[str, torch.Tensor]]:
    """Measure each layer's sensitivity at steps of about 1.4 and 0.8 times `bits` per weight.

    Returns:
        By layer: its two probes, and its mean output (units,) over the calibration images.
    """
    stages, held = Stages(model, calibration), batches(model, val)
    target = F.log_softmax(torch.cat([model(x) for x in held]).double(), 1)
    weights = sum(m.weight.numel() for m in stages.layers.values())
    probes: dict[str, list[Probe]] = {}
    means = {}
    for i, names, inputs in stages:
        for name, moments in stages.moments(i, names, inputs):
            layer = stages.layers[name]
            rows, before = layer.weight.flatten(1), copy.deepcopy(layer.state_dict())
            means[name] = rows @ moments.mean + (0.0 if layer.bias is None else layer.bias)
            # In a network of very few bits per weight, small layers are worth more of them.
            usual = bits if layer.weight.numel() > weights / 10 else max(bits, 3.0)
            probes[name] = []
            for share in (1.4, 0.8):
                step = step_for(rows, usual * share)
                indices, values = quantize_rows(rows, moments, step)
                set_rows(layer, values[indices], means[name], moments.mean)
                logits = torch.cat([stages.rest(i, x) for x in held]).double()
                loss = F.kl_div(F.log_softmax(logits, 1), target, reduction="batchmean", log_target=True).item()
                probes[name].append(Probe(math.log2(step), bits_per_weight(indices, values), max(loss, 1e-9)))
                layer.load_state_dict(before)
            progress(f"{name}: " + ", ".join(f"{p.bits:.2f} bits cost {p.loss:.5f}" for p in probes[name]))
        advance(stages.forwards[i], held)
    return probes, means


def allocate(probes: Mapping[str, list[Probe]], sizes: Mapping[str, int], budget: float) -> dict[str, float]:
    """Choose the layers' steps within a budget of bits so that one more bit is worth the same in all of them.

    Through a layer's two probes, its loss is taken as a power of the step, its bits as linear in log(step).
    """

    def steps_at(worth: float) -> tuple[dict[str, float], float]:
        steps, bits = {}, 0.0
        for name, (fine, coarse) in probes.items():
            width = max(coarse.step - fine.step, 0.01)
            power = min(max(math.log2(coarse.loss / fine.loss) / width, 0.5), 4.0)
            slope = max((fine.bits - coarse.bits) / width, 0.1)
            loss = worth * sizes[name] * slope / power
            step = fine.step + math.log2(loss / fine.loss) / power
            step = min(max(step, fine.step - 2), coarse.step + 1)  # no further than the probes can tell
            steps[name] = 2**step
            bits += sizes[name] * max(fine.bits - slope * (step - fine.step), 0.05)
        return steps, bits

    low, high = -60.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if steps_at(2**middle)[1] > budget else (low, middle)
    return steps_at(2**high)[0]
