"""Train on a folder of images: the head on a frozen backbone, then, if asked, all layers; the result is a model."""

import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqzoo.environment import require
from sqzoo.errors import ArgumentError, WeightsError
from sqzoo.files import read_json
from sqzoo.own_images.folder import find_images
from sqzoo.own_images.hub_dataset import download_dataset
from sqzoo.own_images.model import write_model
from sqzoo.own_images.pixels import ImageSet, read_images
from sqzoo.registry import check_name
from sqzoo.train.checkpoint import best_weights, run_lock
from sqzoo.train.learner import initial_model
from sqzoo.train.loop import train
from sqzoo.train.recipes import Recipe, recipe
from sqzoo.weights import get_weights, load_trunk, tags

_HEAD, _ALL = "head", "all_layers"  # the two runs, and their folders
_FIXED = {"hold_out", "select", "crop_pct", "num_classes"}  # recipe fields that the images decide
_logger = logging.getLogger("sqzoo")


def train_on_images(
    model: str,
    data: str | os.PathLike[str],
    run: str | os.PathLike[str],
    *,
    all_layers: bool = False,
    recipe_name: str | None = None,
    start: str | None = None,
    val_fraction: float = 0.2,
    trunk: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
    device: str = "cpu",
    precision: str = "auto",
    **changes: Any,
) -> dict[str, Any]:
    """Train an architecture on a custom dataset.

    Args:
        model: architecture, such as "sq1".
        data: FOLDER/class/*.jpg, or the name of a dataset on the Hub.
        run: folder, new or this run's. It becomes a model for `create_model("local-dir:RUN")` and `sqzoo predict
            --model RUN`, with report and card; of the two runs in head/ and all_layers/ the better is the model.
        all_layers: train all layers after the head.
        recipe_name: None is "images", or "finetune" for all layers.
        start: "imagenet", or a weights tag or file that has the backbone; None is ImageNet's if it can be had, else
            the architecture's embedded weights.
        val_fraction: of each class for validation, chosen by the seed, unless the folder has a validation part.
        trunk, cache, progress, device, precision: as in `train`.
        changes: fields of the recipe.

    Returns:
        The content of RUN/result.json.

    Raises:
        ArgumentError: arguments do not fit each other, or the run's folder cannot be used.
        DataError: the images cannot be trained on.
    """
    check_name(model)
    require("matplotlib", "train", "The report")  # before hours of training
    chosen = recipe(recipe_name or ("finetune" if all_layers else "images"), model, **changes)
    if fixed := _FIXED & (changes.keys() | chosen.model_args.keys()):
        raise ArgumentError(f"{min(fixed)} is decided by the images; leave it out, or give val_fraction.")
    if chosen.layers != "all" and all_layers:
        raise ArgumentError(f"recipe {recipe_name!r} trains the head; leave all_layers out, or give another recipe.")
    if len(chosen.sizes) > 1:
        raise ArgumentError(f"sizes must have one entry here, such as [[224, 8]], not {list(chosen.sizes)}.")
    folder = Path(run)
    store = Path(cache) if cache else folder / "cache"
    on_hub = not Path(data).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", os.fspath(data))
    if not on_hub:
        find_images(data)  # an unusable one is refused before the run's folder is made
    with run_lock(folder):
        files = find_images(download_dataset(os.fspath(data), store) if on_hub else data)
        images = read_images(
            files, chosen.sizes[0][0], store, val_fraction=val_fraction, seed=chosen.seed, show=progress
        )
        if images.left_out:
            count, (name, reason) = len(images.left_out), next(iter(images.left_out.items()))
            _logger.warning("%d files left out, see result.json; the first: %s (%s)", count, name, reason.rstrip("."))
        options: dict[str, Any] = {"cache": store, "device": device, "precision": precision, "progress": progress}
        result: dict[str, Any] = {}
        for name, plan in _plans(chosen, images, start or _start(folder, model, trunk), folder):
            stage = train(plan, images, None, folder / name, trunk=trunk, **options)
            trained = initial_model(plan, trunk)
            trained.load_state_dict(trained.state_dict() | best_weights(folder / name, stage), strict=True)
            result = write_model(folder, name, trained.to(device), stage, images, result)
        if not cache:
            shutil.rmtree(store, ignore_errors=True)
    return result


def _plans(chosen: Recipe, images: ImageSet, start: str, folder: Path) -> list[tuple[str, Recipe]]:
    """Return the stages' names and recipes, fitted to the images."""
    fitted: dict[str, Any] = {
        "model_args": chosen.model_args | {"num_classes": len(images.classes)},
        "hold_out": len(images.val_idx),
        "select": "val",
        "crop_pct": 1.0,  # they are decoded at the network's size and crop
    }
    if chosen.layers != "all":
        return [(_HEAD, replace(chosen, start=start, **fitted))]
    head = recipe("images", chosen.model, normalisation=chosen.normalisation, seed=chosen.seed, start=start, **fitted)
    head = replace(head, sizes=((chosen.sizes[0][0], head.epochs),))
    whole = replace(chosen, start=str((folder / _HEAD / "model.safetensors").resolve()), **fitted)
    return [(_HEAD, head), (_ALL, whole)]


def _start(folder: Path, model: str, trunk: str | os.PathLike[str] | None) -> str:
    """Return the start of the backbone: this run's earlier one, else ImageNet, else the embedded weights."""
    earlier = folder / _HEAD / "recipe.json"
    if earlier.is_file():
        return str(read_json(earlier)["recipe"]["start"])
    try:
        load_trunk("alexnet" if model == "alexnet_cifar" else "squeezenet1_1", trunk)
    except WeightsError as e:
        complete = [tag for tag in tags(model) if get_weights(tag).holds == "complete"]
        if trunk or os.environ.get("SQZOO_TRUNKS") or not complete:
            raise
        _logger.warning("Starting from %s in place of the ImageNet trunk, which cannot be had: %s", complete[0], e)
        return complete[0]
    return "imagenet"
