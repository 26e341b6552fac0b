"""How long the fine-tuning of Sq-1 would take on a GPU: its work is counted, the GPU's rate assumed; not measured.

    python benchmarks/gpu_estimate.py

Counts the FLOPs of the recipes that led to the shipped weights, finetune_norm to its last epoch: training steps and
evaluations.
Prints the commands and writes results/gpu_estimate.json.
"""

import json
from pathlib import Path

import torch
from expected import GPU_FLOPS
from torch.utils.flop_counter import FlopCounterMode

from sqzoo import create_model
from sqzoo.environment import environment
from sqzoo.files import write_text
from sqzoo.train import recipe

RECIPES = tuple(f"finetune_{name}" for name in ("norm", "more", "long", "large", "sure", "flat", "cutmix"))
IMAGES, TEST = 50_000, 10_000


def flops(side: int, training: bool, frozen_layers: int = 0) -> float:
    """Return the FLOPs of an image, forward, and, where `training`, backward through all but the first layers."""
    model, image = create_model("sq1"), torch.zeros(1, 3, side, side)
    model.features[:frozen_layers].requires_grad_(False)  # type: ignore[index]
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        found = model(image)
        if training:
            found.sum().backward()
    return float(counter.get_total_flops())


def main() -> None:
    """Count, print, record."""
    total, rows = 0.0, []
    for name in RECIPES:
        start = {} if name == "finetune_norm" else {"start": "FILE"}
        plan = recipe(name, "sq1", **start)
        learnt = (IMAGES - plan.hold_out) * (2 if plan.sharpness else 1)
        looked_at = plan.hold_out + plan.norm_images
        work = sum(
            e * (learnt * flops(s, True, plan.frozen_layers) + looked_at * flops(s, False)) for s, e in plan.sizes
        )
        work += TEST * flops(plan.sizes[-1][0], False)
        total += work
        more = " --set 'start=\"FILE\"'" if start else ""
        command = f"sqzoo train sq1 --recipe {name}{more} --set 'precision=\"bfloat16\"' --device cuda"
        rows.append({"command": command, "petaflop": round(work / 1e15, 4)})
        print(f"{command}: {work / 1e15:.2f} PFLOP")
    result = {
        "measured": False,
        "assumed_tflops": GPU_FLOPS / 1e12,
        "petaflop": round(total / 1e15, 4),
        "seconds": round(total / GPU_FLOPS, 1),
        "recipes": rows,
        "environment": environment(),
    }
    file = Path(__file__).parent / "results" / "gpu_estimate.json"
    write_text(file, json.dumps(result, indent=1) + "\n")
    print(f"{total / 1e15:.2f} PFLOP, {total / GPU_FLOPS:.0f} s at {GPU_FLOPS / 1e12:.0f} TFLOP/s: not measured")


if __name__ == "__main__":
    main()
