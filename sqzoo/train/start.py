"""What a run starts from: the ImageNet backbone, or an earlier run's weights, and a fresh head."""

import os
from typing import Literal

import torch
from safetensors.torch import load_file

from sqzoo.errors import ArgumentError, WeightsError
from sqzoo.hashing import file_sha256
from sqzoo.models._base import ZooModel
from sqzoo.registry import create_model
from sqzoo.train.recipes import Recipe
from sqzoo.weights import get_weights, load_trunk, read_manifest, read_verified


def initial_model(recipe: Recipe, trunk: str | os.PathLike[str] | None) -> ZooModel:
    """Build the network that a recipe starts from; see `train` for `trunk`."""
    torch.manual_seed(recipe.seed)
    init: Literal["random", "imagenet"] = "imagenet" if recipe.start == "imagenet" else "random"
    model: ZooModel = create_model(recipe.model, init=init, trunk=trunk, **recipe.model_args)  # type: ignore[assignment]
    if recipe.layers == "last" and recipe.model == "alexnet_cifar":
        tensors = model.state_dict() | load_trunk("alexnet", trunk, linear=True)
        model.load_state_dict(tensors, strict=True)
    if recipe.start != "imagenet":
        _start_from(model, recipe.start)
    return model


def start_sha256(file: str) -> str:
    """Return the SHA-256 of a `Recipe.start` that is a tag or a file; raise `ArgumentError` if there is none."""
    if file in read_manifest():
        return get_weights(file).sha256
    try:
        return file_sha256(file)
    except OSError as e:
        raise ArgumentError(f"Cannot read start={file!r} ({e.strerror}); give a run's best.safetensors.") from e


def _start_from(model: ZooModel, file: str) -> None:
    """Load an all-layers run's backbone, and its head if the names and shapes are this model's."""
    try:
        tensors = read_verified(get_weights(file)) if file in read_manifest() else load_file(file)
    except WeightsError:
        raise
    except Exception as e:  # whatever a foreign or damaged file makes safetensors raise
        raise ArgumentError(f"start={file!r} is not a safetensors file ({e}); give a run's best.safetensors.") from e
    own = model.state_dict()
    fitting = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
    backbone = {k: v for k, v in fitting.items() if k.startswith("features.")}
    missing = [k for k in own if k.startswith("features.") and k not in backbone]
    if missing:
        raise ArgumentError(
            f"start={file!r} lacks {len(missing)} tensors of the backbone, {missing[0]} first; give the "
            "best.safetensors of an all-layers run, or a tag stored as a complete file."
        )
    model.load_state_dict(own | (fitting if fitting.keys() == own.keys() else backbone), strict=True)
