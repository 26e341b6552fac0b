"""The model that training on images of one's own leaves: weights with their configuration, a report page, a card."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sqzoo.data import NORMALISATIONS
from sqzoo.files import write_json, write_text
from sqzoo.hub import save_pretrained
from sqzoo.images.reader import OWN_IMAGES_TAG
from sqzoo.models.base import ZooModel
from sqzoo.own_images.folder import Pictures
from sqzoo.report.page import report
from sqzoo.train.evaluation import logits
from sqzoo.uncertainty import calibrate

_FEWEST = 50  # validation images for a calibration


def write_model(
    folder: Path, name: str, model: ZooModel, stage: dict[str, Any], images: Pictures, before: dict[str, Any]
) -> dict[str, Any]:
    """Write a stage's model into its folder and, if it is the best so far, into the run's, with report and card.

    Args:
        folder: of the run.
        name: of the stage, "head" or "all_layers", and of its folder.
        model: trained.
        stage: result of `sqzoo.train.train`.
        images: trained and validated on.
        before: result of the stages before, or {}.

    Returns:
        The result of all stages, also written into the run's folder as result.json.
    """
    plan, held = stage["recipe"], images.held
    size = plan["sizes"][0][0]
    mean, std = NORMALISATIONS[plan["normalisation"]]
    model.eval().pretrained_cfg.update(
        num_classes=len(images.classes),
        label_names=images.classes,
        input_size=(3, size, size),
        pool_size=None,
        crop_pct=plan["crop_pct"],
        interpolation="bilinear",
        mean=mean,
        std=std,
        tag=OWN_IMAGES_TAG,
    )
    save_pretrained(model, folder / name)  # what all layers start from
    names = ("recipe", "epoch", "val", "training_seconds", "feature_seconds", "log")
    stages = before.get("stages", {}) | {name: {k: stage[k] for k in names}}
    better = max(stages, key=lambda n: (stages[n]["val"]["top1"], -stages[n]["val"]["loss"]))
    result = before | {"stages": stages, "chosen": better}
    if better == name:
        parts = [held[low : low + 256] for low in range(0, len(held), 256)]
        answers = torch.cat([logits(model, images[part]) for part in parts])
        labels = torch.from_numpy(images.labels[held])
        if len(labels) >= _FEWEST and bool((answers.argmax(1) != labels).any()):
            fitted = calibrate(answers, labels)
            model.temperature, model.ood_threshold = fitted["temperature"], fitted["threshold"]
        result |= {
            "model": plan["model"],
            "classes": list(images.classes),
            "images": len(images),
            "val": stage["val"],
            "by_class": by_class(answers, images),
            "left_out": images.left_out,
            "data_digest": images.digest,
            "environment": stage["environment"],
        }
        save_pretrained(model, folder, card(result))
        write_text(folder / "report.html", page(result, answers, images))
    write_json(folder / "result.json", result)
    return result


def by_class(logits: torch.Tensor, images: Pictures) -> list[dict[str, Any]]:
    """Count each class's images, its validation images, and how many of these are right.

    Args:
        logits: of the validation images (N, classes).
        images: all of them.
    """
    guesses, labels = logits.argmax(1).numpy(), images.labels[images.held]
    rows = []
    for label, name in enumerate(images.classes):
        own = labels == label
        row = {"class": name, "images": int((images.labels == label).sum()), "val": int(own.sum())}
        rows.append(row | {"right": int((guesses[own] == label).sum())})
    return rows


def page(result: dict[str, Any], logits: torch.Tensor, images: Pictures) -> str:
    """Render the report of a result of `train_on_images` as an HTML page."""
    held = images.held
    rows = [row for stage in result["stages"].values() for row in stage["log"]]
    return report(
        f"{result['model']} for {len(images.classes)} classes, on {len(held)} validation images",
        images.classes,
        torch.from_numpy(images.labels[held]),
        logits,
        picture=lambda i: Image.fromarray(images.images[held[i]]),
        names=[images.names[i] for i in held],
        log=[row | {"epoch": number} for number, row in enumerate(rows, 1)],
        facts=_facts(result),
    )


def _facts(result: dict[str, Any]) -> dict[str, str]:
    stage = result["stages"][result["chosen"]]
    plan = stage["recipe"]
    return {
        "model": result["model"],
        "images": f"{result['images']}, {result['val']['images']} of them for validation",
        "trained": f"{result['chosen'].replace('_', ' ')}, from {plan['start']}, epoch {stage['epoch']}",
        "image size": f"{plan['sizes'][-1][0]} pixels",
        "seed": str(plan["seed"]),
        "left out": "\n".join(f"{name}: {reason}" for name, reason in result["left_out"].items()) or "nothing",
        "commit": str(result["environment"]["commit"]),
    }


def card(result: dict[str, Any]) -> str:
    """Write a model card: what the model knows, how well, how it was made, how to use it."""
    val, chosen = result["val"], result["stages"][result["chosen"]]
    plan, share = chosen["recipe"], val["top1"] / 100
    error = 100 * (share * (1 - share) / val["images"]) ** 0.5
    rows = [f"| {r['class']} | {r['images']} | {r['right']} of {r['val']} |" for r in result["by_class"]]
    start = result["stages"]["head"]["recipe"]["start"]
    origin = {"imagenet": "torchvision's ImageNet backbone"}.get(start, f"`{Path(start).name}`")
    whole = result["chosen"] == "all_layers"
    layers = "all layers trained after the head" if whole else "the head trained on the frozen backbone"
    size = plan["sizes"][-1][0]
    return "\n".join(
        [
            "---\nlibrary_name: sqzoo\npipeline_tag: image-classification\n---\n",
            f"# {result['model']} for {len(result['classes'])} classes\n",
            f"{val['top1']:.1f} % of {val['images']} validation images right (standard error {error:.1f} points); they "
            "also chose the epoch, which flatters a little.\n",
            "| class | images | validation images right |\n|---|---|---|",
            *rows,
            f"\nMade by `sqzoo train` from {result['images']} images, SHA-256 of the data {result['data_digest']}: "
            f"{origin} ({layers}), {chosen['epoch']} epochs at {size} pixels, seed {plan['seed']}. "
            "`report.html` has the learning curves, the confusion matrix and the worst mistakes.\n",
            "It answers with one of its classes whatever it is shown. ImageNet's own terms ask for non-commercial "
            "research use; torchvision's weights are BSD-3-Clause.\n",
            "```bash\nsqzoo predict --model THIS_FOLDER photo.jpg\n```\n",
            '```python\nimport sqzoo\n\nmodel = sqzoo.create_model("local-dir:THIS_FOLDER")\n```\n',
        ]
    )
