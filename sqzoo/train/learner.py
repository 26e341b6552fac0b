"""What a run trains, set up from its recipe: the initial model and its copies, images on the device, optimizers."""

import copy
import os
import time
import warnings
from typing import Any

import torch
import torch.nn as nn

from sqzoo.data import NORMALISATIONS, Dataset, Normalise
from sqzoo.errors import ArgumentError
from sqzoo.models.base import ZooModel
from sqzoo.models.upsample import Upsample
from sqzoo.registry import create_model, start_from
from sqzoo.train.batch_norm import insert_batch_norm
from sqzoo.train.distributed import processes
from sqzoo.train.features import trunk_features
from sqzoo.train.optimizer import make_optimizers
from sqzoo.train.recipes import Recipe
from sqzoo.weights import load_trunk

Folder = str | os.PathLike[str] | None
Sets = dict[str, Dataset]  # "train" and, maybe, "test"
_PRUNED_SIZE = 1_000_000  # weights of a layer that is pruned: two layers of that size hold 99 % of AlexNet's weights


class Learner:
    """A run's networks, data and optimizers.

    `model` is the float32 network that the optimizers update; `network` computes in training: the model, or a bfloat16
    copy; `averaged` is evaluated and saved: the model, or a copy that holds the EMA. `weights` and `averaged_weights`
    are what a run learns, by name: the trained parameters, and the buffers, which batch norm changes.
    """

    def __init__(
        self, recipe: Recipe, sets: Sets, trunk: Folder, cache: Folder, device: str, half: bool, show: bool
    ) -> None:
        self.recipe, self.device, self.frozen = recipe, device, recipe.layers != "all"
        self.half, self.dtype = half, torch.bfloat16 if half else torch.float32
        self.distributed = processes() > 1  # each process then has a shard of every batch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a memory-mapped file cannot be written to, and is not
            self.inputs: dict[str, Any] = {n: torch.from_numpy(data.images).to(device) for n, data in sets.items()}
        self.labels = {name: torch.from_numpy(data.labels).to(device) for name, data in sets.items()}
        self.train_idx, val_idx = (torch.from_numpy(i).to(device) for i in sets["train"].split(recipe.hold_out))
        test_idx = torch.arange(len(sets["test"]) if "test" in sets else 0, device=device)
        self.evaluated = {"val": ("train", val_idx), "test": ("test", test_idx)}
        self.image_size = sets["train"].images.shape[2]
        self.normalise = Normalise(*NORMALISATIONS[recipe.normalisation])
        model = initial_model(recipe, trunk).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = self.network = self.averaged = model.eval()
        self.set_size(recipe.size_at(0))
        model.requires_grad_(recipe.layers != "last").get_classifier().requires_grad_(True)
        if self.frozen:
            model.features.requires_grad_(False)
        began = time.perf_counter()
        for name, data in sets.items() if self.frozen else ():
            title, images = f"backbone features, {name}" if show else "", self.inputs[name]
            self.inputs[name] = trunk_features(model, images, self.normalise, data.digest, cache, self.dtype, title)
        self.feature_seconds = time.perf_counter() - began
        if recipe.batch_norm:
            with torch.no_grad():
                images = self.normalise(self.inputs["train"][self.train_idx[:256]])
                insert_batch_norm(model.features, model.upsample(images))
        self.params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        learnt = self.params if self.frozen else dict(model.named_parameters())
        self.weights = {n: t.detach() for n, t in (learnt | dict(model.named_buffers())).items()}
        self.pruned = [p for p in self.params.values() if recipe.prune and p.dim() > 1 and p.numel() >= _PRUNED_SIZE]
        if recipe.prune and not self.pruned:
            raise ArgumentError(f"prune is for layers of {_PRUNED_SIZE:,} weights or more, and none is trained.")
        self.optimizers = make_optimizers(recipe, self.params)
        if half:  # all weights are cast into the copy in one launch; batch norms are shared, in float32
            self.network = copy.deepcopy(model).to(torch.bfloat16)
            for name, module in model.named_modules():
                if isinstance(module, nn.BatchNorm2d):
                    self.network.set_submodule(name, module)
            pairs = zip(self.params.values(), (p for p in self.network.parameters() if p.requires_grad), strict=True)
            self.copied, self.copies = map(list, zip(*((p, q) for p, q in pairs if p is not q), strict=True))
            self.grads = [torch.zeros_like(p) for p in self.copied]
        self.averaged = copy.deepcopy(model) if recipe.ema else model
        self.averaged_weights = {n: t for n, t in self.averaged.state_dict().items() if n in self.weights}
        self.forward: Any = self.network.forward_head if self.frozen else self.network

    def set_size(self, size: int) -> None:
        """Have the networks enlarge images to a size in pixels, cropped as the recipe says."""
        resize = int(size / self.recipe.crop_pct)
        same = resize == size == self.image_size
        if (not same and self.image_size != 32) or size < self.model.min_input_size:
            raise ArgumentError(
                f"sizes must be the images' own {self.image_size} pixels, or for images of 32 pixels at least "
                f"{self.model.min_input_size} with {self.recipe.model}, not {size}."
            )
        for network in (self.model, self.network, self.averaged):
            network.upsample = nn.Identity() if same else Upsample(resize, size)

    def state(self) -> dict[str, torch.Tensor]:
        """Return all tensors that a resumed run needs, by name."""
        tensors = {f"model.{n}": t for n, t in self.weights.items()}
        tensors |= {f"ema.{n}": t for n, t in self.averaged_weights.items() if self.recipe.ema}
        states = [(n, o.state[p]) for n, p in self.params.items() for o in self.optimizers if p in o.state]
        return tensors | {f"optimizer.{n}.{k}": v for n, state in states for k, v in state.items()}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned; nothing for a new run's {}."""
        optimizers = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind in ("model", "ema"):
                (self.weights if kind == "model" else self.averaged_weights)[rest].copy_(tensor)
            elif kind == "optimizer":
                param, _, key = rest.rpartition(".")
                p = self.params[param]
                # Moments are laid out in memory like their weight, so that a resumed run adds in the same order.
                value = torch.empty_like(p).copy_(tensor) if tensor.shape == p.shape else tensor.to(p.device)
                optimizers[p].state[p][key] = value
        if self.half:
            torch._foreach_copy_(self.copies, self.copied)


def initial_model(recipe: Recipe, trunk: Folder) -> ZooModel:
    """Create the model that a recipe starts from: the backbone of ImageNet or of an earlier run, and a fresh head."""
    torch.manual_seed(recipe.seed)
    init: Any = "imagenet" if recipe.start == "imagenet" else "random"
    model: ZooModel = create_model(recipe.model, init=init, trunk=trunk, **recipe.model_args)  # type: ignore[assignment]
    if recipe.layers == "last" and recipe.model == "alexnet_cifar":
        model.load_state_dict(model.state_dict() | load_trunk("alexnet", trunk, linear=True), strict=True)
    if recipe.start != "imagenet":
        start_from(model, recipe.start)
    return model
