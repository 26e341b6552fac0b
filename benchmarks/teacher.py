"""Trains a teacher from scratch at 32 pixels and writes it as an ONNX file, for a recipe's `teacher`.

    torchrun --nproc-per-node 2 benchmarks/teacher.py FILE.onnx [--widths 128,384,384] [--epochs 16] [--seed 0]

Our networks all go back to one ImageNet trunk and err on the same images; this one errs on others, so the mean of its
answers and theirs is better than either. It may be stopped and started again. What it reaches on the held-out images,
of which it learns nothing, is in FILE.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from sqzoo.train.evaluate import logits, metrics
from tqdm import tqdm

from sqzoo import SqzooError
from sqzoo.data import CIFAR10, Dataset, Preprocessing, cifar10
from sqzoo.environment import environment
from sqzoo.errors import ArgumentError
from sqzoo.export import export
from sqzoo.hashing import file_sha256
from sqzoo.train.augment import augment
from sqzoo.train.checkpoint import write_tensors, write_text
from sqzoo.train.distributed import average_over_processes, joined, part, rank, sum_over_processes
from sqzoo.train.loop import keep_freed_memory
from sqzoo.unsure import calibrate
from sqzoo.weights import CIFAR10_CLASSES

SIDE, PATCH = 32, 2  # pixels a side, of an image and of what the first layer sees
HELD_OUT = 1_000  # the images that the recipes of the `ft` weights hold out
BATCH, MICRO = 512, 64  # images a step, and those that a process runs at once, whose maps its cache holds
CONVOLUTIONS = {"lr": 0.24, "momentum": 0.6, "weight_decay": 0.0}  # Muon's, whose steps have one size whatever the loss
OTHERS, BIASES, MOMENTUM, DECAY = 0.5, 4.0, 0.85, 1e-3  # learning rates and the rest of SGD
SMOOTHING, CUTOUT = 0.1, 10
PREPARE = Preprocessing(SIDE, 1.0, *CIFAR10)


class Block(nn.Module):
    """3x3 convolution, maximum of 2x2 where asked for, batch norm, GELU."""

    def __init__(self, inputs: int, outputs: int, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.dirac_(self.conv.weight[:inputs])  # as many channels as can are handed on as they are
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.norm(self.pool(self.conv(x))))


class Teacher(nn.Module):
    """Images (N, 3, 32, 32) to logits (N, 10); in evaluation mode, the mean of an image's and its mirror image's.

    images: (N, 32, 32, 3) uint8, to set the first layer, which then stays: the main directions of 2x2 patches, brought
    to one strength, and their opposites.
    """

    in_chans, num_classes = 3, len(CIFAR10_CLASSES)

    def __init__(self, widths: list[int], images: torch.Tensor) -> None:
        super().__init__()
        self.pretrained_cfg = {
            "architecture": "teacher",
            "num_classes": self.num_classes,
            "label_names": CIFAR10_CLASSES,
            "input_size": (3, SIDE, SIDE),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": PREPARE.mean,
            "std": PREPARE.std,
        }
        self.patches = nn.Conv2d(3, 6 * PATCH**2, PATCH, bias=False)
        blocks = []
        for inputs, outputs in zip([6 * PATCH**2, *widths], widths, strict=False):
            blocks += [Block(inputs, outputs, pool=True), Block(outputs, outputs, pool=False)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(widths[-1], self.num_classes, bias=False)
        rows = F.unfold(PREPARE(images), PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH**2)
        sizes, directions = torch.linalg.eigh(rows.T.cov())
        found = (directions / (sizes + 1e-2).sqrt()).T.reshape(-1, 3, PATCH, PATCH)
        self.patches.weight = nn.Parameter(torch.cat([found, -found]), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._logits(x) if self.training else (self._logits(x) + self._logits(x.flip(3))) / 2

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks(self.patches(x)).amax((2, 3))) / 8


class Optimizers:
    """Muon for the convolutions (a step is the gradient with all its directions brought to one strength), SGD else.

    Muon takes matrices, so it has the convolutions' weights as such, a row an output channel, in the same memory.
    """

    def __init__(self, model: Teacher) -> None:
        self.model, self.weights = model, [block.conv.weight for block in model.blocks]  # type: ignore[union-attr]
        self.matrices = [nn.Parameter(w.detach().view(len(w), -1)) for w in self.weights]  # type: ignore[arg-type]
        rest = {n: p for n, p in model.named_parameters() if p.requires_grad and not n.endswith("conv.weight")}
        biases = [p for n, p in rest.items() if n.endswith("bias")]
        others = [p for n, p in rest.items() if not n.endswith("bias")]
        # The product of rate and decay is what pulls a weight to zero: for both the same.
        groups = [
            {"params": others, "lr": OTHERS, "weight_decay": DECAY},
            {"params": biases, "lr": BIASES, "weight_decay": DECAY * OTHERS / BIASES},
        ]
        self.both = (
            torch.optim.Muon(self.matrices, nesterov=True, **CONVOLUTIONS),
            torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True),
        )
        self.peaks = [[group["lr"] for group in one.param_groups] for one in self.both]
        self.momenta: dict[str, torch.Tensor] = {}
        for i, parameter in enumerate([*self.matrices, *others, *biases]):
            self.momenta[f"momentum.{i}"] = torch.zeros_like(parameter)
            one = self.both[0] if i < len(self.matrices) else self.both[1]
            one.state[parameter]["momentum_buffer"] = self.momenta[f"momentum.{i}"]

    def step(self, done: float) -> None:
        """Take a step with the gradients summed over the processes; a share `done` of all steps lies behind it."""
        sum_over_processes(p.grad for p in self.model.parameters() if p.grad is not None)
        for matrix, weight in zip(self.matrices, self.weights, strict=True):
            matrix.grad, weight.grad = weight.grad.reshape(len(weight), -1), None  # type: ignore[union-attr, arg-type]
        for one, peaks in zip(self.both, self.peaks, strict=True):
            for group, peak in zip(one.param_groups, peaks, strict=True):
                group["lr"] = peak * min(done / 0.2, (1 - done) / 0.8)  # up for a fifth of the steps, then down to 0
            one.step()
            one.zero_grad()
        with torch.no_grad():
            for matrix in self.matrices:  # whose size batch norm undoes: kept, or the steps would shrink beside it
                matrix.mul_(len(matrix) ** 0.5 / matrix.norm())


def train(model: Teacher, data: Dataset, epochs: int, seed: int, checkpoint: Path) -> list[float]:
    """Train on images, going on from the checkpoint if there is one; return the loss of each epoch."""
    optimizers = Optimizers(model)
    kept = dict(model.state_dict()) | optimizers.momenta
    losses: list[float] = []
    if checkpoint.is_file():
        found = load_file(checkpoint)
        losses = found.pop("losses").tolist()
        for name, tensor in kept.items():
            tensor.copy_(found[name])
    steps = -(-len(data) // BATCH)
    for epoch in range(len(losses), epochs):
        model.train()
        torch.manual_seed(seed * 1_000_003 + epoch)
        total = torch.zeros(())
        batches = torch.randperm(len(data)).split(BATCH)
        bar = tqdm(batches, f"epoch {epoch + 1}/{epochs}", disable=rank() > 0, leave=False)
        for step, numbers in enumerate(bar):
            batch = data[numbers.numpy()]
            images, labels = augment(torch.from_numpy(batch.images), 4, True, CUTOUT), torch.from_numpy(batch.labels)
            own = part(len(labels))
            for some, wanted in zip(images[own].split(MICRO), labels[own].split(MICRO), strict=True):
                with torch.autocast("cpu", torch.bfloat16):
                    answers = model(PREPARE(some))
                loss = F.cross_entropy(answers.float(), wanted, label_smoothing=SMOOTHING, reduction="sum")
                (loss / len(labels)).backward()
                total += loss.detach()
            optimizers.step((epoch + step / steps) / epochs)
        average_over_processes(b for b in model.buffers() if b.is_floating_point())
        sum_over_processes([total])
        losses.append(total.item() / len(data))
        if rank() == 0:
            print(f"epoch {epoch + 1}/{epochs}: loss {losses[-1]:.4f}, {time.strftime('%H:%M:%S')}", flush=True)
            write_tensors(checkpoint, kept | {"losses": torch.tensor(losses, dtype=torch.float64)}, {"format": "pt"})
    return losses


def main() -> None:
    """Train, measure on the held-out images, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--widths", default="128,384,384")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    arguments = parser.parse_args()
    if arguments.file.suffix != ".onnx":
        raise ArgumentError(f"{arguments.file} is to be an ONNX file; end its name in .onnx.")
    facts: dict[str, Any] = {"environment": environment()}  # now, while the commit is that of the code in memory
    widths = [int(width) for width in arguments.widths.split(",")]
    keep_freed_memory()
    everything = cifar10("train", arguments.data)
    kept, held = everything.split(HELD_OUT)
    with joined("cpu"):
        torch.manual_seed(arguments.seed)
        model = Teacher(widths, torch.from_numpy(everything.images[kept[:5_000]]))
        checkpoint = arguments.file.with_suffix(".checkpoint")
        losses = train(model, everything[kept], arguments.epochs, arguments.seed, checkpoint)
        if rank() > 0:
            return
        looked_at = everything[held]
        found, labels = logits(model, looked_at), torch.from_numpy(looked_at.labels)
        model.calibration = calibrate(found, labels)  # type: ignore[assignment]
        export(model, arguments.file, preprocessing=True)
        score = metrics(found / model.calibration["temperature"], labels)
        facts |= {"widths": widths, "epochs": arguments.epochs, "seed": arguments.seed, "losses": losses}
        facts |= {"held_out": {"top1": score.top1, "loss": score.loss, "images": score.images}}
        facts |= {"train_digest": everything.digest, "sha256": file_sha256(arguments.file)}
        write_text(arguments.file.with_suffix(".json"), json.dumps(facts, indent=1))
        print(f"{arguments.file}: {score.top1:.2f} % and {score.loss:.3f} on {score.images} held-out images")


if __name__ == "__main__":
    try:
        main()
    except SqzooError as e:
        sys.exit(f"teacher: {e}")
