"""How long training would take on one H100-class GPU: launches and work are counted, rates assumed; not measured.

    python benchmarks/speed/gpu_estimate.py

Launches: of a step of `ft_cifar10`, counted on fake CUDA tensors by tests/train/test_fake_cuda.py, at 5 to 8
microseconds each. Work: FLOPs at the assumed rate. A step takes the longer. Writes results/speed/gpu_estimate.json.
"""

import json
import os
import subprocess
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import RESULTS, ROOT
from sqzoo import create_model
from sqzoo.environment import environment
from sqzoo.files import write_text
from sqzoo.train import recipe

IMAGES, TEST = 50_000, 10_000
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


def main() -> None:
    """Count, print, record."""
    trunks = os.environ.get("SQZOO_TRUNKS") or str(ROOT.parent / "shared" / "data" / "weights")
    script = ROOT / "tests" / "train" / "test_fake_cuda.py"
    done = subprocess.run([sys.executable, str(script), trunks], capture_output=True, text=True, check=True)
    counted = {k: sum(v.values()) for k, v in json.loads(done.stdout)["ft"]["launches"].items()}
    launches = sum(counted[k] for k in ("batch", "forward", "step", "ema")) + BACKWARD
    plan = recipe("ft_cifar10", "sq1")
    steps = -(-(IMAGES - plan.hold_out) // plan.batch_size)
    seconds = []
    for microseconds in MICROSECONDS:
        total = 0.0
        for size, epochs in plan.sizes:
            work = plan.batch_size * flops("sq1", size, True) / FLOPS
            looks = plan.hold_out * flops("sq1", size, False) / FLOPS
            total += epochs * (steps * max(launches * microseconds / 1e6, work) + looks)
        seconds.append(round(total, 1))
    result = {
        "measured": False,
        "assumed": {"tflops": FLOPS / 1e12, "microseconds_per_launch": MICROSECONDS},
        "launches": counted | {"backward": BACKWARD, "step in all": launches},
        "ft_seconds": seconds,
        "environment": environment(),
    }
    write_text(RESULTS / "speed" / "gpu_estimate.json", json.dumps(result, indent=1) + "\n")
    print(f"ft_cifar10 for sq1: {launches} launches per step, {seconds[0]:.0f} to {seconds[1]:.0f} s: not measured")


if __name__ == "__main__":
    main()
