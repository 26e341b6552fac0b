"""From a folder of one's own pictures to a ready model: the head on a frozen trunk, then, if asked, all layers."""

import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

from sqzoo.data import NORMALISATIONS, Dataset
from sqzoo.errors import ArgumentError, WeightsError
from sqzoo.hub import save_pretrained
from sqzoo.pictures import Pictures, find_pictures, from_hub, read_pictures
from sqzoo.reading import OWN_PICTURES
from sqzoo.registry import check_name
from sqzoo.report import report
from sqzoo.train.checkpoint import alone_in, read_json, write_text
from sqzoo.train.evaluate import logits
from sqzoo.train.loop import train
from sqzoo.train.recipe import Recipe
from sqzoo.train.recipes import recipe
from sqzoo.train.start import initial_model
from sqzoo.unsure import calibrate
from sqzoo.weights import get_weights, load_trunk, tags

_HEAD, _ALL = "head", "all_layers"
_SETTLED = {"hold_out", "select", "log_test", "crop_pct"}
_FEWEST = 50  # held-out pictures for a calibration
_logger = logging.getLogger("sqzoo")


def train_on_pictures(
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
    progress: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Train an architecture on a folder of pictures, FOLDER/class/*.jpg; return the result, also `run`/result.json.

    data: see `sqzoo.pictures.find_pictures`, or the name of a data set on the Hub (`from_hub`).
    held_out: share of each class that is held out, by the recipe's seed, unless the folder has its own such part; it
    chooses the epoch, and the figures are on it.
    run: becomes a model that `create_model("local-dir:RUN")` and `sqzoo predict --model RUN` take, with a report
    (report.html) and a card (README.md), as soon as the head is trained; head/ and all_layers/ are the two runs, each
    resumed where it stopped. The better of the two on the held-out pictures is the model.
    recipe_name: one with a frozen trunk in place of "pictures", or one that trains all layers in place of
    "pictures_all_layers" (and asks for them); `changes` are to its fields.
    start: "imagenet", or a weights tag or file that has the trunk; by default ImageNet's where it is at hand or can be
    downloaded, else the embedded weights of the architecture. cache: folder that keeps decoded pictures and features.
    Raises `DataError` where the folder cannot be learnt from.
    """
    check_name(model)
    if settled := _SETTLED & changes.keys():
        raise ArgumentError(f"{min(settled)} of the recipe is settled by the pictures; leave it out, or give held_out.")
    if changes.get("teacher"):
        raise ArgumentError(f"teacher={changes['teacher']!r} knows CIFAR-10's classes, not these; leave it out.")
    folder = Path(run)
    chosen = recipe(recipe_name or ("pictures_all_layers" if all_layers else "pictures"), model, **changes)
    if chosen.trunk == "frozen" and all_layers:
        raise ArgumentError(
            f"recipe {recipe_name!r} trains the head alone; leave all_layers out, or give another recipe."
        )
    store = Path(cache) if cache else folder / "cache"
    on_hub = not Path(data).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", os.fspath(data))
    if not on_hub:
        find_pictures(data)  # refused before a folder is made
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        found = find_pictures(from_hub(os.fspath(data), store) if on_hub else data)
        side = chosen.sizes[-1][0]
        with tqdm(total=len(found.files), desc="pictures", unit="img", disable=not progress, leave=False) as bar:
            pictures = read_pictures(
                found, side, store, share=held_out, seed=chosen.seed, progress=lambda done, of: bar.update(done - bar.n)
            )
        _tell_left_out(pictures)
        where: dict[str, Any] = {"trunk": trunk, "cache": store, "device": device, "progress": progress}
        result: dict[str, Any] = {}
        for name, plan in _plans(chosen, pictures, start or _start(folder, model, trunk), folder):
            stage = train(plan, pictures, None, folder / name, **where)
            trained = _finished(plan, folder / name, trunk, pictures.classes)
            if name == _HEAD:
                save_pretrained(trained, folder / _HEAD)  # what all layers start from
            result = _finish(folder, name, stage, trained.to(device), plan, pictures, result)
        if not cache:
            shutil.rmtree(store, ignore_errors=True)
    return result


def _plans(chosen: Recipe, pictures: Pictures, start: str, folder: Path) -> list[tuple[str, Recipe]]:
    """Return the recipes in turn, fitted to the pictures."""
    fitted = replace(
        chosen,
        model_args=chosen.model_args | {"num_classes": len(pictures.classes)},
        hold_out=len(pictures.held),
        select="held_out",
        log_test=False,
        crop_pct=1.0,  # they are kept at the size and crop that the network sees
    )
    if chosen.trunk == "frozen":
        return [(_HEAD, replace(fitted, start=start))]
    head = replace(
        recipe("pictures", chosen.model, normalisation=chosen.normalisation, seed=chosen.seed),
        model_args=fitted.model_args,
        hold_out=fitted.hold_out,
        start=start,
    )
    head = replace(head, sizes=((chosen.sizes[-1][0], head.epochs),))
    weights = (folder / _HEAD / "model.safetensors").resolve()
    return [(_HEAD, head), (_ALL, replace(fitted, start=str(weights)))]


def _start(folder: Path, model: str, trunk: str | os.PathLike[str] | None) -> str:
    """Return what the trunk starts from: what an earlier start of this run took, else ImageNet's, else our weights."""
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


def _finished(plan: Recipe, run: Path, trunk: str | os.PathLike[str] | None, classes: tuple[str, ...]) -> nn.Module:
    """Return a finished run's network, whose configuration says how to prepare pictures and what the classes are."""
    model = initial_model(plan, trunk)
    model.load_state_dict(model.state_dict() | load_file(run / "best.safetensors"), strict=True)
    side = plan.sizes[-1][0]
    mean, std = NORMALISATIONS[plan.normalisation]
    model.pretrained_cfg.update(  # type: ignore[operator,union-attr]
        num_classes=len(classes),
        label_names=classes,
        input_size=(3, side, side),
        pool_size=None,
        crop_pct=plan.crop_pct,
        interpolation="bilinear",
        mean=mean,
        std=std,
        tag=OWN_PICTURES,
    )
    return model.eval()


def _finish(
    folder: Path,
    name: str,
    stage: dict[str, Any],
    model: nn.Module,
    plan: Recipe,
    pictures: Pictures,
    before: dict[str, Any],
) -> dict[str, Any]:
    """Write the model of a stage if it is the best so far, its report and card, and the result of all stages."""
    stages = before.get("stages", {}) | {
        name: {k: stage[k] for k in ("recipe", "epoch", "held_out", "training_seconds", "feature_seconds", "log")}
    }
    better = max(stages, key=lambda n: (stages[n]["held_out"]["top1"], -stages[n]["held_out"]["loss"]))
    result = before | {"stages": stages, "chosen": better}
    if better == name:
        found = _logits(model, plan, pictures)
        held = pictures.held
        labels = torch.from_numpy(pictures.labels[held])
        if len(held) >= _FEWEST and bool((found.argmax(1) != labels).any()):
            model.calibration = calibrate(found, labels)  # type: ignore[assignment]
        result |= {
            "model": plan.model,
            "classes": list(pictures.classes),
            "pictures": len(pictures),
            "held_out": stage["held_out"],
            "by_class": _by_class(found, pictures),
            "left_out": pictures.left_out,
            "data_digest": pictures.digest,
            "environment": stage["environment"],
        }
        save_pretrained(model, folder, _card(result))
        logs = [row for s in stages.values() for row in s["log"]]
        page = report(
            f"{plan.model} for {len(pictures.classes)} classes, on {len(held)} held-out pictures",
            pictures.classes,
            labels,
            found,
            picture=lambda i: Image.fromarray(pictures.images[held[i]]),
            names=[pictures.names[i] for i in held],
            log=[row | {"epoch": number} for number, row in enumerate(logs, 1)],
            facts=_facts(result),
        )
        write_text(folder / "report.html", page)
    write_text(folder / "result.json", json.dumps(result, indent=1))
    return result


def _logits(model: nn.Module, plan: Recipe, pictures: Pictures) -> torch.Tensor:
    parts = [pictures.held[low : low + 256] for low in range(0, len(pictures.held), 256)]
    prepare = plan.preprocessing(plan.sizes[-1][0])
    return torch.cat([logits(model, Dataset(pictures.images[p], pictures.labels[p]), prepare) for p in parts])


def _facts(result: dict[str, Any]) -> dict[str, str]:
    stage = result["stages"][result["chosen"]]
    plan = stage["recipe"]
    return {
        "model": result["model"],
        "pictures": f"{result['pictures']}, {result['held_out']['images']} of them held out",
        "trained": f"{result['chosen'].replace('_', ' ')}, from {plan['start']}, epoch {stage['epoch']}",
        "picture side": f"{plan['sizes'][-1][0]} pixels",
        "seed": str(plan["seed"]),
        "left out": "\n".join(f"{name}: {reason}" for name, reason in result["left_out"].items()) or "nothing",
        "commit": str(result["environment"]["commit"]),
    }


def _by_class(found: torch.Tensor, pictures: Pictures) -> list[dict[str, Any]]:
    guesses, labels = found.argmax(1).numpy(), pictures.labels[pictures.held]
    rows = []
    for label, name in enumerate(pictures.classes):
        own = labels == label
        row = {"class": name, "pictures": int((pictures.labels == label).sum()), "held_out": int(own.sum())}
        rows.append(row | {"right": int((guesses[own] == label).sum())})
    return rows


def _tell_left_out(pictures: Pictures) -> None:
    if pictures.left_out:
        name, reason = next(iter(pictures.left_out.items()))
        _logger.warning(
            "%d of the folder's files left out, of which result.json tells; the first: %s (%s)",
            len(pictures.left_out),
            name,
            reason.rstrip("."),
        )


def _card(result: dict[str, Any]) -> str:
    """Return a model card: what it knows, how well, how it was made, how to use it."""
    held, chosen = result["held_out"], result["stages"][result["chosen"]]
    plan, share = chosen["recipe"], held["top1"] / 100
    error = 100 * (share * (1 - share) / held["images"]) ** 0.5
    rows = [f"| {r['class']} | {r['pictures']} | {r['right']} of {r['held_out']} |" for r in result["by_class"]]
    start = result["stages"][_HEAD]["recipe"]["start"]
    origin = {"imagenet": "torchvision's ImageNet trunk"}.get(start, f"`{Path(start).name}`")
    layers = "all layers trained after the head" if result["chosen"] == _ALL else "the head trained on the frozen trunk"
    side = plan["sizes"][-1][0]
    return "\n".join(
        [
            "---\nlibrary_name: sqzoo\npipeline_tag: image-classification\n---\n",
            f"# {result['model']} for {len(result['classes'])} classes\n",
            f"{held['top1']:.1f} % of {held['images']} held-out pictures right (standard error {error:.1f} points); "
            "they also chose the epoch, which flatters a little.\n",
            "| class | pictures | held-out ones right |\n|---|---|---|",
            *rows,
            f"\nMade by `sqzoo train` from {result['pictures']} pictures, SHA-256 of the data {result['data_digest']}: "
            f"{origin} ({layers}), {chosen['epoch']} epochs at {side} pixels, seed {plan['seed']}. "
            "`report.html` has the learning curves, the confusion matrix and the worst mistakes.\n",
            "It answers with one of its classes whatever it is shown. ImageNet's own terms ask for non-commercial "
            "research use; torchvision's weights are BSD-3-Clause.\n",
            "```bash\nsqzoo predict --model THIS_FOLDER photo.jpg\n```\n",
            '```python\nimport sqzoo\n\nmodel = sqzoo.create_model("local-dir:THIS_FOLDER")\n```\n',
        ]
    )
