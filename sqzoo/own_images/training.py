"""From a folder of images of one's own to a ready model: the head on a frozen backbone, then, if asked, all layers."""

import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sqzoo.environment import require
from sqzoo.errors import ArgumentError, WeightsError
from sqzoo.files import read_json
from sqzoo.own_images.folder import Pictures, find_pictures, from_hub, read_pictures
from sqzoo.own_images.model import write_model
from sqzoo.registry import check_name
from sqzoo.train.checkpoint import best_weights, run_lock
from sqzoo.train.loop import initial_model, train
from sqzoo.train.recipes import Recipe, recipe
from sqzoo.weights import get_weights, load_trunk, tags

_HEAD, _ALL = "head", "all_layers"
_SETTLED = {"hold_out", "select", "crop_pct"}  # by the images
_logger = logging.getLogger("sqzoo")


def train_on_images(
    model: str,
    data: str | os.PathLike[str],
    run: str | os.PathLike[str],
    *,
    all_layers: bool = False,
    recipe_name: str | None = None,
    start: str | None = None,
    held_out: float = 0.2,
    trunk: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    precision: str = "auto",
    progress: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Train an architecture on a folder of images; return the result, also `run`/result.json.

    Args:
        data: FOLDER/class/*.jpg, or the name of a data set on the Hub.
        run: folder, new or this run's. It becomes a model that `create_model("local-dir:RUN")` and `sqzoo predict
            --model RUN` take, with report and card; head/ and all_layers/ are the two runs, the better is the model.
        all_layers: train all layers after the head.
        recipe_name: in place of "images", or of "finetune", which all layers take.
        start: "imagenet", or a weights tag or file that has the backbone; by default ImageNet's where it is at hand or
            can be downloaded, else the architecture's embedded weights.
        held_out: fraction of each class to validate on, drawn by the seed, unless the folder has its own such part.
        trunk, cache, device, precision, progress: as in `train`. **changes: fields of the recipe.
    """
    check_name(model)
    require("matplotlib", "train", "The report")  # before hours of training
    if settled := _SETTLED & changes.keys():
        raise ArgumentError(f"{min(settled)} of the recipe is settled by the images; leave it out, or give held_out.")
    chosen = recipe(recipe_name or ("finetune" if all_layers else "images"), model, **changes)
    if chosen.layers != "all" and all_layers:
        raise ArgumentError(f"recipe {recipe_name!r} trains the head; leave all_layers out, or give another recipe.")
    if len(chosen.sizes) > 1:
        raise ArgumentError(f"sizes of own images must be one, such as [[224, 8]], not {list(chosen.sizes)}.")
    folder, size = Path(run), chosen.sizes[0][0]
    store = Path(cache) if cache else folder / "cache"
    on_hub = not Path(data).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", os.fspath(data))
    if not on_hub:
        find_pictures(data)  # refused before a folder is made
    with run_lock(folder):
        files = find_pictures(from_hub(os.fspath(data), store) if on_hub else data)
        with tqdm(total=len(files.files), desc="images", disable=None if progress else True, leave=False) as bar:
            images = read_pictures(
                files, size, store, share=held_out, seed=chosen.seed, progress=lambda done, of: bar.update(done - bar.n)
            )
        if images.left_out:
            count, (name, reason) = len(images.left_out), next(iter(images.left_out.items()))
            _logger.warning("%d files left out, see result.json; the first: %s (%s)", count, name, reason.rstrip("."))
        options: dict[str, Any] = {"trunk": trunk, "cache": store, "device": device, "precision": precision}
        result: dict[str, Any] = {}
        for name, plan in _plans(chosen, images, start or _start(folder, model, trunk), folder):
            stage = train(plan, images, None, folder / name, **options, progress=progress)
            trained = initial_model(plan, trunk)
            trained.load_state_dict(trained.state_dict() | best_weights(folder / name, stage), strict=True)
            result = write_model(folder, name, trained.to(device), stage, images, result)
        if not cache:
            shutil.rmtree(store, ignore_errors=True)
    return result


def _plans(chosen: Recipe, images: Pictures, start: str, folder: Path) -> list[tuple[str, Recipe]]:
    """Return the recipes in turn, fitted to the images."""
    fitted: dict[str, Any] = {
        "model_args": chosen.model_args | {"num_classes": len(images.classes)},
        "hold_out": len(images.held),
        "select": "val",
        "crop_pct": 1.0,  # images are kept at the size and crop that the network sees
    }
    if chosen.layers != "all":
        return [(_HEAD, replace(chosen, start=start, **fitted))]
    head = recipe("images", chosen.model, normalisation=chosen.normalisation, seed=chosen.seed, start=start, **fitted)
    head = replace(head, sizes=((chosen.sizes[0][0], head.epochs),))
    return [
        (_HEAD, head),
        (_ALL, replace(chosen, start=str((folder / _HEAD / "model.safetensors").resolve()), **fitted)),
    ]


def _start(folder: Path, model: str, trunk: str | os.PathLike[str] | None) -> str:
    """Return what the backbone starts from: this run's earlier choice, else ImageNet, else our embedded weights."""
    earlier = folder / _HEAD / "recipe.json"
    if earlier.is_file():
        return str(read_json(earlier)["recipe"]["start"])
    try:
        load_trunk("alexnet" if model == "alexnet_cifar" else "squeezenet1_1", trunk)
    except WeightsError as e:
        complete = [tag for tag in tags(model) if get_weights(tag).holds == "complete"]
        if trunk or os.environ.get("SQZOO_TRUNKS") or not complete:
            raise
        _logger.warning("Starting from %s in place of the ImageNet trunk, which is not at hand: %s", complete[0], e)
        return complete[0]
    return "imagenet"
