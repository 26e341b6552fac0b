"""How long training would take on one H100-class GPU: launches and work are counted, rates assumed; not measured.

    python benchmarks/speed/gpu_estimate.py

Launches: of a step of `ft_cifar10`, with cutout and EMA besides, counted on fake CUDA tensors by
tests/train/test_fake_cuda.py, at 5 to 8 microseconds each. Work: FLOPs at the assumed rate. A step takes the longer.
Writes results/speed/gpu_estimate.json.
"""

import json
import os
import subprocess
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import RESULTS, ROOT
from benchmarks.paper.experiments import experiments, passes
from benchmarks.record import write_record
from sqzoo import create_model
from sqzoo.environment import environment
from sqzoo.train import recipe

IMAGES, SEEDS = 50_000, 3
FLOPS = 100e12  # bfloat16, a tenth of an H100's peak: an assumption
MICROSECONDS = (5, 8)  # per launch: an assumption
BACKWARD = 107 * 2  # operations, counted on a CPU; a convolution's backward is up to three kernels, here two on average


def flops(model: str, size: int, training: bool) -> float:
    """Count the FLOPs of an image, forward and, where `training`, backward."""
    network, image = create_model(model), torch.zeros(1, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        result = network(image)
        if training:
            result.sum().backward()
    return float(counter.get_total_flops())


def ft_seconds(launches: int, microseconds: float) -> float:
    """Return the seconds of `ft_cifar10` for sq1: each step as long as its launches or its work, the longer."""
    plan, total = recipe("ft_cifar10", "sq1"), 0.0
    steps = -(-(IMAGES - plan.hold_out) // plan.batch_size)
    for size, epochs in plan.sizes:
        work = plan.batch_size * flops("sq1", size, True) / FLOPS
        looks = plan.hold_out * flops("sq1", size, False) / FLOPS
        total += epochs * (steps * max(launches * microseconds / 1e6, work) + looks)
    return round(total, 1)


def sweep_seconds(launches: int, microseconds: float) -> float:
    """Return the seconds of all heads of the paper's sweeps, three seeds each, one after the other.

    A head's work is far below its launches'. The few runs of all layers are left out.
    """
    heads = [(s, n) for p in passes(list(experiments().values())) for s, n in p.settings.items() if s.frozen]
    plans = [s.recipe(0, epochs) for s, epochs in heads]
    steps = sum(p.epochs * -(-(IMAGES - p.hold_out) // p.batch_size) for p in plans)
    return round(SEEDS * steps * launches * microseconds / 1e6, 1)


def main() -> None:
    """Count, print, record."""
    trunks = os.environ.get("SQZOO_TRUNKS") or str(ROOT.parent / "shared" / "data" / "weights")
    script = ROOT / "tests" / "train" / "test_fake_cuda.py"
    done = subprocess.run([sys.executable, str(script), trunks], capture_output=True, text=True, check=True)
    counted = {
        name: {part: sum(kinds.values()) for part, kinds in measured["launches"].items()}
        for name, measured in json.loads(done.stdout).items()
        if name in ("ft", "head")
    }
    counted["ft"]["backward"], counted["head"]["backward"] = BACKWARD, 2 * counted["head"]["forward"]
    for parts in counted.values():
        parts["step in all"] = sum(parts[k] for k in ("batch", "forward", "backward", "step", "ema"))
    result = {
        "measured": False,
        "assumed": {"tflops": FLOPS / 1e12, "microseconds_per_launch": MICROSECONDS},
        "launches": counted,
        "ft_seconds": [ft_seconds(counted["ft"]["step in all"], m) for m in MICROSECONDS],
        "sweep_seconds": [sweep_seconds(counted["head"]["step in all"], m) for m in MICROSECONDS],
        "environment": environment(),
    }
    write_record(RESULTS / "speed" / "gpu_estimate.json", result)
    print(json.dumps({k: v for k, v in result.items() if k.endswith("_seconds")}), "not measured")


if __name__ == "__main__":
    main()
