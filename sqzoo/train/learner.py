"""One network in training: its model, optimiser and checkpoint, a step, the end of an epoch, the result."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sqzoo.data import Dataset
from sqzoo.environment import environment
from sqzoo.errors import ArgumentError
from sqzoo.train.batches import Batches, FrozenBatches, ImageBatches
from sqzoo.train.checkpoint import resume, same_run_or_raise, write_tensors, write_text
from sqzoo.train.distributed import average_over_processes, first_alone, part, processes, rank, sum_over_processes
from sqzoo.train.evaluate import Metrics, score
from sqzoo.train.norms import fold_away, measure_anew, put_in
from sqzoo.train.panel import is_panel, panel_sha256
from sqzoo.train.pruning import Pruning
from sqzoo.train.recipe import Recipe
from sqzoo.train.shared import SharedTrunk
from sqzoo.train.sharpness import uphill
from sqzoo.train.start import initial_model, start_sha256
from sqzoo.train.teacher import TEMPERATURE, lessons, taught
from sqzoo.weights import get_weights


class Learner:
    """A recipe's network in its run folder; `finished` is the folder's result where there is one already."""

    def __init__(
        self,
        recipe: Recipe,
        train_set: Dataset,
        test_set: Dataset | None,
        folder: Path,
        trunk: str | os.PathLike[str] | None,
        device: str,
    ) -> None:
        self.recipe, self.folder, self.device = recipe, folder, device
        self.about = {
            "recipe": recipe.to_json(),
            "train_digest": train_set.digest,
            "test_digest": test_set.digest if test_set else None,
        }
        if recipe.start != "imagenet":
            self.about["start_sha256"] = start_sha256(recipe.start)
        if recipe.teacher:
            panel = is_panel(recipe.teacher)
            self.about["teacher_sha256"] = panel_sha256(recipe.teacher) if panel else get_weights(recipe.teacher).sha256
        with first_alone():
            self.finished = same_run_or_raise(folder, self.about)
        if self.finished:
            return
        self.environment = environment()  # now, while the commit is that of the code in memory
        self.model = initial_model(recipe, trunk).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        still, layers = recipe.frozen_layers, len(self.model.features)
        if still >= layers:
            raise ArgumentError(
                f"frozen_layers={still} leaves none of the trunk's {layers} layers; give fewer, or trunk='frozen'."
            )
        if recipe.trunk_norm:
            images = torch.from_numpy(np.require(train_set.images[:256], requirements="W")).to(device)
            with torch.no_grad():
                maps = self.model.features[:still](recipe.preprocessing(recipe.sizes[0][0])(images))
            put_in(self.model.features[still:], maps)
        self.forward: Callable[[Any], torch.Tensor] = self.model
        frozen = recipe.trunk == "frozen"
        if frozen:
            self.forward = self.model.forward_head
        parameters = {n: p for n, p in self.model.named_parameters() if not (frozen and n.startswith("features."))}
        if recipe.head == "last":
            last = {id(p) for p in self.model.get_classifier().parameters()}
            parameters = {n: p for n, p in parameters.items() if id(p) in last}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in parameters)
        self.lessons: torch.Tensor | None = None
        if recipe.teacher and not is_panel(recipe.teacher):
            with first_alone():
                self.lessons = lessons(recipe.teacher, train_set, folder / "lessons.safetensors", trunk, device)
        self.parameters = parameters
        self.pruning = Pruning(parameters.values(), recipe.prune)
        # Batch norm, which a head may have, changes its running statistics too.
        self.learned = {n: t.detach() for n, t in (parameters | dict(self.model.named_buffers())).items()}
        decayed = [p for p in parameters.values() if p.dim() > 1]
        plain = [p for p in parameters.values() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)  # Adam where weight_decay is 0
        self.average = {n: t.clone() for n, t in self.learned.items()} if recipe.ema else {}
        self.state = resume(folder, self.learned, self.average, parameters, self.optimizer)

    @property
    def stopped(self) -> bool:
        """Whether the run has gone on for `patience` epochs without getting better."""
        return self.state.best_epoch > 0 and 0 < self.recipe.patience <= self.state.epoch - self.state.best_epoch

    def begin(self, epoch: int) -> None:
        """Make ready for an epoch's steps."""
        self.model.train()
        first = self.recipe.frozen_layers if epoch >= self.recipe.head_epochs else len(self.model.features)
        for name, parameter in self.parameters.items():
            part_of_trunk = name.startswith("features.")
            parameter.requires_grad_(not part_of_trunk or int(name.split(".")[1]) >= first)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.images = 0

    def step(
        self,
        inputs: Any,
        labels: torch.Tensor,
        answers: torch.Tensor | None,
        numbers: torch.Tensor,
        done: int,
        steps: int,
    ) -> None:
        """Take one step of the optimiser on a batch; `done` of the run's `steps` steps lie behind it.

        labels: the numbers of the classes (N,), or their wanted probabilities (N, classes). answers: the logits of a
        panel of teachers, if there is one. numbers: of the batch's images in the training set. Of several processes
        each gets its part of the batch's inputs and answers, and all of its labels and numbers.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, done, steps)
        if self.lessons is not None:
            answers = self.lessons[numbers[part(len(labels))]]
        self.loss_sum += self._backward(inputs, labels, answers)
        if self.recipe.sharpness:
            with uphill(self.parameters.values(), self.model.buffers(), self.recipe.sharpness):
                self._backward(inputs, labels, answers)
        with self.pruning.kept(done, steps):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.images += len(labels)
        if self.average:
            # Young averages forget sooner, or they would remember the weights that the run began with.
            self._move_average(min(self.recipe.ema, (1 + done) / (10 + done)))

    def _backward(self, inputs: Any, labels: torch.Tensor, answers: torch.Tensor | None) -> torch.Tensor:
        """Set the gradients to those of the whole batch; return the sum of the losses (nats) of this process's part."""
        own = labels[part(len(labels))]
        total = torch.zeros((), device=self.device)
        if len(own):
            half = self.recipe.precision == "bfloat16"
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half):
                logits = self.forward(inputs)
            smoothing = self.recipe.label_smoothing
            logits, heads = logits.float(), len(logits) // len(own)
            loss = F.cross_entropy(logits, torch.cat([own] * heads), label_smoothing=smoothing)
            if answers is not None:
                loss = taught(loss, logits, answers.repeat(heads, 1), TEMPERATURE if self.lessons is not None else 1.0)
            (loss if processes() == 1 else loss * (len(own) / len(labels))).backward()
            total = loss.detach() * len(own)
        if processes() > 1:
            trained = [p for p in self.parameters.values() if p.requires_grad]
            for p in trained:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            sum_over_processes(p.grad for p in trained)
        return total

    def _move_average(self, decay: float) -> None:
        with torch.no_grad():
            for name, average in self.average.items():
                if average.is_floating_point():
                    average.lerp_(self.learned[name], 1 - decay)
                else:  # batch norm's count of batches
                    average.copy_(self.learned[name])

    def look(self, plain: Batches) -> None:
        """Make ready for evaluation: the average takes the weights' place until the epoch's `end`.

        plain: this process's batches of images as they are, for `Recipe.norm_images`.
        """
        self.model.eval()
        self._share_statistics()
        self._exchange()
        if self.recipe.norm_images:
            measure_anew(self.model.features, (images for images, _ in plain))  # type: ignore[misc]
            self._share_statistics()

    def _share_statistics(self) -> None:
        """Give all processes the mean of their statistics: each has seen its part of the images."""
        average_over_processes(b for b in self.model.buffers() if b.is_floating_point())

    def _exchange(self) -> None:
        with torch.no_grad():
            for name, average in self.average.items():
                kept = average.clone()
                average.copy_(self.learned[name])
                self.learned[name].copy_(kept)

    def end(self, epoch: int, side: int, seen: dict[str, Metrics], seconds: float, took: float) -> dict[str, Any]:
        """Write the checkpoint of an epoch and return its row of the log; `seconds` of `took` went into training."""
        sum_over_processes([self.loss_sum])
        row: dict[str, Any] = {"epoch": epoch + 1, "side": side, "train_loss": self.loss_sum.item() / self.images}
        row |= {name: dataclasses.asdict(m) for name, m in seen.items()}
        row |= {"seconds": round(took, 2), "time": time.strftime("%Y-%m-%dT%H:%M:%S")}
        self.state.seconds += seconds
        self.state.record(epoch + 1, row, self._score(epoch, seen), self.learned)
        self._exchange()
        if rank() == 0:
            self.state.save(self.folder, self.learned, self.average, self.parameters, self.optimizer)
        return row

    def _score(self, epoch: int, seen: dict[str, Metrics]) -> tuple[float, float] | None:
        """Return what an epoch is compared with others by, or None where it may not be the best."""
        last = self.recipe.select == "last"
        if not self.pruning.complete or (last and epoch + 1 < self.recipe.epochs):
            return None
        return (0.0, 0.0) if last else (seen[self.recipe.select].top1, -seen[self.recipe.select].loss)

    def finish(self, data: FrozenBatches | ImageBatches) -> dict[str, Any]:
        """Take the best epoch's weights, measure what the log lacks, write the weights and the result."""
        with torch.no_grad():
            for name, tensor in self.learned.items():
                tensor.copy_(self.state.best[name])
        self.model.eval()
        data.enter_epoch(self.state.best_epoch - 1)  # its weights are for images of its size
        logged = self.state.log[self.state.best_epoch - 1]
        if self.recipe.trunk_norm:
            fold_away(self.model.features)
            names = self.model.state_dict().keys()
            self.learned = {n: t for n, t in self.learned.items() if n in names}
            logged = {}  # to be measured on what is saved, which rounding may set apart by an image
        looks = {"test": data.test} if self.about["test_digest"] else {}
        looks |= {"held_out": data.held_out} if len(data.held) else {}
        seen = {n: logged.get(n) or dataclasses.asdict(score(self.forward, look())) for n, look in looks.items()}
        result = self.about | {
            "epoch": self.state.best_epoch,
            "side": self.state.log[self.state.best_epoch - 1]["side"],
            "test": seen.get("test"),
            "held_out": seen.get("held_out"),
            "training_seconds": round(self.state.seconds, 1),
            "feature_seconds": round(data.feature_seconds, 1),
            "params": sum(p.numel() for p in self.model.parameters()),
            "environment": self.environment,
            "log": self.state.log,
        }
        if isinstance(self.model, SharedTrunk):
            result["models"] = {n: _scores(self.model.alone(n), data) for n in self.model.depths}
        if rank() > 0:
            return result
        write_tensors(self.folder / "best.safetensors", self.learned, {"format": "pt"})
        self.state.write_log(self.folder)  # once more, should the run have been killed between checkpoint and log
        write_text(self.folder / "result.json", json.dumps(result, indent=1))
        return result


def _scores(
    forward: Callable[[torch.Tensor], torch.Tensor], data: FrozenBatches | ImageBatches
) -> dict[str, dict[str, Any] | None]:
    held_out = dataclasses.asdict(score(forward, data.held_out())) if len(data.held) else None
    return {"test": dataclasses.asdict(score(forward, data.test())), "held_out": held_out}


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0, of a run of `steps`."""
    if recipe.schedule == "constant":
        return recipe.lr
    rise = max(1, int(recipe.warm_up * steps))
    if step < rise:
        return recipe.lr * (step + 1) / rise
    share = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
    return recipe.lr * (recipe.lr_end + (1 - recipe.lr_end) * share)
