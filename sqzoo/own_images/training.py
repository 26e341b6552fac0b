"""Train on a folder of images: a head on the frozen backbone, then, if asked, all layers; the result is a model."""

import logging
import os
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sqzoo.environment import pick_precision, require
from sqzoo.errors import ArgumentError, WeightsError, shown
from sqzoo.files import read_json
from sqzoo.images.walk import is_image_name
from sqzoo.own_images.duplicates import near_duplicates
from sqzoo.own_images.folder import find_images, find_test_images
from sqzoo.own_images.hub_dataset import download_dataset
from sqzoo.own_images.labels_csv import find_labelled
from sqzoo.own_images.linear_head import head_args, train_head
from sqzoo.own_images.model import add_test, write_model, write_page
from sqzoo.own_images.pixels import ImageSet, image_size, read_images
from sqzoo.registry import check_name
from sqzoo.train.checkpoint import best_weights, run_lock
from sqzoo.train.learner import initial_model
from sqzoo.train.loop import train
from sqzoo.train.recipes import Recipe, recipe
from sqzoo.weights import get_weights, load_trunk, tags, trunk_name

_HEAD, _ALL = "head", "all_layers"  # the two runs, and their folders
_FIXED = {"hold_out", "select", "crop_pct", "num_classes"}  # recipe fields that the images decide
_OF_HEAD = {"sizes", "normalisation", "seed", "model_args", "start"}  # recipe fields that the head takes
_MOST_SEEN = 100_000  # images over all epochs, unless the recipe's sizes are given: large sets need fewer epochs
_logger = logging.getLogger("sqzoo")


def train_on_images(
    model: str,
    data: str | os.PathLike[str],
    run: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
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
        labels: CSV file with each image's name and class, where the folders are not the classes.
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
    pick_precision(precision, device, dense=False)
    chosen = recipe(recipe_name or ("finetune" if all_layers else "images"), model, **changes)
    if fixed := _FIXED & (changes.keys() | chosen.model_args.keys()):
        raise ArgumentError(f"{min(fixed)} is decided by the images; leave it out, or give val_fraction.")
    if (chosen.layers == "all") != all_layers:
        advice = "all layers; add all_layers" if chosen.layers == "all" else "the head; leave all_layers out"
        raise ArgumentError(f"recipe {recipe_name!r} trains {advice}, or give another recipe.")
    if not all_layers and (idle := changes.keys() - _OF_HEAD):
        raise ArgumentError(
            f"{min(idle)} has no effect on the head, which is solved, not trained in steps; leave it out, or add "
            "all_layers."
        )
    if len(chosen.sizes) > 1:
        raise ArgumentError(f"sizes must have one entry here, such as [[224, 8]], not {list(chosen.sizes)}.")
    folder = Path(run)
    store = Path(cache) if cache else folder / "cache"
    find: Any = partial(find_labelled, labels=labels) if labels else find_images
    local = Path(data).exists() or (Path(data).parent.name and Path(data).parent.is_dir())  # a mistyped folder
    on_hub = not labels and not local and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", os.fspath(data))
    if not on_hub:
        find(data)  # an unusable one is refused before the run's folder is made
    with run_lock(folder):
        files = find(download_dataset(os.fspath(data), store) if on_hub else data)
        if "sizes" not in changes:
            epochs = max(1, min(chosen.epochs, _MOST_SEEN // len(files.files)))
            chosen = replace(chosen, sizes=((image_size(files), epochs),))
        size = chosen.sizes[0][0]
        images = read_images(files, size, store, val_fraction=val_fraction, seed=chosen.seed, show=progress)
        if images.left_out:
            broken = [item for item in images.left_out.items() if is_image_name(Path(item[0]))]
            count, (name, reason) = len(images.left_out), (broken or list(images.left_out.items()))[0]
            _logger.warning("%d files left out, see result.json; such as %s (%s)", count, name, reason.rstrip("."))
        earlier = read_json(folder / "result.json") if (folder / "result.json").is_file() else {}
        _check_unchanged(folder, images, earlier, chosen, val_fraction)
        duplicates = near_duplicates(images, images.images[images.val_idx], [images.names[i] for i in images.val_idx])
        if duplicates:
            count, (copy, name) = len(duplicates), duplicates[0]
            _logger.warning(
                "%d validation images have a near-duplicate among the training images, which flatters the accuracy; "
                "see result.json; the first: %s (of %s)",
                count,
                name,
                copy,
            )
        classes = len(images.classes)
        fitted: dict[str, Any] = {
            "model_args": {"num_classes": classes} | head_args(model, classes) | chosen.model_args,
            "hold_out": len(images.val_idx),
            "select": "val",
            "crop_pct": 1.0,  # they are decoded at the network's size and crop
        }
        start = start or _start(folder, model, trunk)
        same = {"normalisation": chosen.normalisation, "seed": chosen.seed, "sizes": ((size, 1),)}
        plan = recipe("images", model, start=start, **same, **fitted)
        trained, stage = train_head(plan, images, folder / _HEAD, trunk=trunk, device=device, progress=progress)
        # With the earlier result, so that a head trained again does not take the place of better layers.
        result = write_model(folder, _HEAD, trained, stage, images, earlier | {"near_duplicates": duplicates})
        if all_layers:
            plan = replace(chosen, start=str((folder / _HEAD / "model.safetensors").resolve()), **fitted)
            options: dict[str, Any] = {"device": device, "precision": precision, "progress": progress}
            stage = train(plan, images, None, folder / _ALL, trunk=trunk, **options)
            trained = initial_model(plan, trunk)
            trained.load_state_dict(trained.state_dict() | best_weights(folder / _ALL, stage), strict=True)
            result = write_model(folder, _ALL, trained.to(device), stage, images, result)
        if test_files := find_test_images(files):
            result = add_test(folder, test_files, result, images, device)
        if "test" in result or result["chosen"] != list(result["stages"])[-1]:  # else the last stage wrote it
            write_page(folder, result, images)
        if not cache:
            shutil.rmtree(store, ignore_errors=True)
    return result


def _check_unchanged(
    folder: Path, images: ImageSet, earlier: dict[str, Any], chosen: Recipe, val_fraction: float
) -> None:
    """Raise `ArgumentError` where the run was trained on other images: more were added, or some changed."""
    if not earlier or earlier.get("data_digest") == images.digest:
        return
    before = earlier["stages"][_HEAD]["recipe"]
    size, seed = chosen.sizes[0][0], chosen.seed
    if (before["sizes"][0][0], before["seed"]) != (size, seed):
        what = f"at {before['sizes'][0][0]} pixels with seed {before['seed']}, not at {size} pixels with seed {seed}"
    elif earlier["images"] != len(images):
        what = f"on {earlier['images']} images, and there are {len(images)} now"
    else:
        what = f"on other images, or with another val_fraction than {val_fraction:g}"
    new = f"{shown(folder)}-{len(images)}"
    raise ArgumentError(f"{shown(folder)} was trained {what}; train in a new folder, such as --run {shlex.quote(new)}.")


def _start(folder: Path, model: str, trunk: str | os.PathLike[str] | None) -> str:
    """Return the start of the backbone: this run's earlier one, else ImageNet, else the embedded weights."""
    earlier = folder / _HEAD / "recipe.json"
    if earlier.is_file():
        return str(read_json(earlier)["recipe"]["start"])
    try:
        load_trunk(trunk_name(model), trunk)
    except WeightsError as e:
        complete = [tag for tag in tags(model) if get_weights(tag).holds == "complete"]
        if trunk or os.environ.get("SQZOO_TRUNKS") or not complete:
            raise
        _logger.warning("Starting from %s in place of the ImageNet trunk, which cannot be had: %s", complete[0], e)
        return complete[0]
    return "imagenet"
