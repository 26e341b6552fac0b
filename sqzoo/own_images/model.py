"""What training on a custom dataset leaves: a model with its configuration, a report and a model card."""

import logging
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sqzoo.data import NORMALISATIONS, Dataset
from sqzoo.deploy.int8 import FEWEST_FILES
from sqzoo.evaluation import evaluate, logits
from sqzoo.files import write_json, write_text
from sqzoo.hub import save_pretrained
from sqzoo.images.reader import OWN_IMAGES_TAG, ImageReader, read_ahead
from sqzoo.models.base import ZooModel
from sqzoo.own_images.duplicates import near_duplicates
from sqzoo.own_images.pixels import ImageSet
from sqzoo.registry import create_model
from sqzoo.report.page import report
from sqzoo.uncertainty import calibrate

_logger = logging.getLogger("sqzoo")
_FEWEST = 50  # validation images for a calibration


def write_model(
    folder: Path, name: str, model: ZooModel, stage: dict[str, Any], images: ImageSet, before: dict[str, Any]
) -> dict[str, Any]:
    """Write a stage's model into its folder and, if it is the best so far, into the run's, with report and card.

    Args:
        folder: of the run.
        name: of the stage and its folder, "head" or "all_layers".
        model: trained.
        stage: result of `sqzoo.train.train`.
        images: trained and validated on.
        before: result of the stages before, or {}.

    Returns:
        The result of all stages, also written into the run's folder as result.json.
    """
    plan, val_idx = stage["recipe"], images.val_idx
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
    save_pretrained(model, folder / name)  # which all layers start from
    if name == "head":
        write_json(folder / name / "result.json", stage)
    names = ("recipe", "epoch", "val", "training_seconds", "feature_seconds", "log", "cross_validation")
    stages = before.get("stages", {}) | {name: {k: stage[k] for k in names if k in stage}}
    best = max(stages, key=lambda n: (stages[n]["val"]["top1"], -round(stages[n]["val"]["loss"], 3)))  # first of equals
    result = before | {"stages": stages, "chosen": best}
    if best == name:
        val_logits = _val_logits(model, images)
        labels = torch.from_numpy(images.labels[val_idx])
        if len(labels) >= _FEWEST and bool((val_logits.argmax(1) != labels).any()):
            fitted = calibrate(val_logits, labels)
            model.temperature, model.ood_threshold = fitted["temperature"], fitted["threshold"]
        result |= {
            "model": plan["model"],
            "classes": list(images.classes),
            "images": len(images),
            "val": stage["val"],
            "by_class": (by_class := _by_class(val_logits, images)),
            "balanced_accuracy": 100 * sum(row["right"] / row["val"] for row in by_class) / len(by_class),
            "left_out": images.left_out,
            "data_digest": images.digest,
            "environment": stage["environment"],
        }
        save_pretrained(model, folder, _card(result))
        write_text(folder / "report.html", _page(folder, result, val_logits, images))
    write_json(folder / "result.json", result)
    return result


def add_test(
    folder: Path, files: list[tuple[Path, int]], result: dict[str, Any], images: ImageSet, device: str
) -> dict[str, Any]:
    """Evaluate a run's model on test images, which chose nothing; add "test" to its result, and to result.json."""
    model = create_model(f"local-dir:{folder}").to(device)
    decoded = read_ahead([file for file, _ in files], ImageReader.of(model), ahead=64)
    rows = [(file.name, image, label) for (_, image), (file, label) in zip(decoded, files, strict=True)]
    readable = [row for row in rows if isinstance(row[1], np.ndarray)]
    if len(readable) < len(rows):
        unreadable = next(name for name, image, _ in rows if not isinstance(image, np.ndarray))
        _logger.warning("%d test images cannot be read, such as %s", len(rows) - len(readable), unreadable)
    if readable:
        names, pixels, targets = zip(*readable, strict=True)
        test = Dataset(np.stack(pixels), np.array(targets))
        if copies := near_duplicates(images, test.images, list(names)):
            _logger.warning(
                "%d test images have a near-duplicate among the training images, which flatters the accuracy, such as "
                "%s (of %s)",
                *(len(copies), copies[0][1], copies[0][0]),
            )
        result = result | {"test": vars(evaluate(model, test)) | {"near_duplicates": copies}}
        write_json(folder / "result.json", result)
    return result


def write_page(folder: Path, result: dict[str, Any], images: ImageSet) -> None:
    """Write a run's report again, after its test images or a stage that is not its model."""
    model: ZooModel = create_model(f"local-dir:{folder}")  # type: ignore[assignment]
    val_logits = _val_logits(model, images) * model.temperature  # the report calibrates them itself
    write_text(folder / "report.html", _page(folder, result, val_logits, images))


def next_commands(folder: Path, images: int, data: str | None = "IMAGES") -> list[str]:
    """Return the commands that use a trained model: classify, in a browser, for other runtimes, for others.

    Args:
        folder: of the run.
        images: that it was trained on.
        data: folder of images for int8's ranges; None where there is none.
    """
    named = shlex.quote(str(folder) if len(folder.parts) > 1 else f"./{folder}")  # a bare name would be a tag's
    int8 = f" --int8 --data {shlex.quote(data)}" if data and images >= FEWEST_FILES else ""
    return [
        f"sqzoo predict --model {named} IMAGE",
        f"sqzoo demo {named}",
        f"sqzoo export {named}{int8}",
        f"sqzoo push {named} --repo ORG/NAME",
    ]


def _val_logits(model: ZooModel, images: ImageSet) -> torch.Tensor:
    chunks = [images.val_idx[low : low + 256] for low in range(0, len(images.val_idx), 256)]
    return torch.cat([logits(model, images[chunk]) for chunk in chunks])


def _by_class(val_logits: torch.Tensor, images: ImageSet) -> list[dict[str, Any]]:
    """Count the images, validation images and correct predictions of each class."""
    predicted, labels = val_logits.argmax(1).numpy(), images.labels[images.val_idx]
    rows = []
    for label, name in enumerate(images.classes):
        of_class = labels == label
        counts = {"images": (images.labels == label), "val": of_class, "right": of_class & (predicted == label)}
        rows.append({"class": name} | {key: int(mask.sum()) for key, mask in counts.items()})
    return rows


def _page(folder: Path, result: dict[str, Any], val_logits: torch.Tensor, images: ImageSet) -> str:
    """Render the report as an HTML page."""
    val_idx, stage = images.val_idx, result["stages"][result["chosen"]]
    plan = stage["recipe"]
    rows = [row for stage in result["stages"].values() for row in stage["log"]]
    return report(
        f"{result['model']} for {len(images.classes)} classes, on {len(val_idx)} validation images",
        images.classes,
        torch.from_numpy(images.labels[val_idx]),
        val_logits,
        image=lambda i: Image.fromarray(images.images[val_idx[i]]),
        names=[images.names[i] for i in val_idx],
        log=[row | {"epoch": number} for number, row in enumerate(rows, 1)],
        facts={
            "model": result["model"],
            "images": f"{result['images']}, {result['val']['images']} of them for validation",
            "balanced accuracy": f"{result['balanced_accuracy']:.1f} %, the mean of the classes' recalls",
            "trained": _how_trained(result),
            "stages": "\n".join(
                f"{n.replace('_', ' ')}: {s['val']['top1']:.1f} %" for n, s in result["stages"].items()
            ),
            **({"test": f"{result['test']['top1']:.1f} % of {result['test']['images']}"} if "test" in result else {}),
            "next": "\n".join(next_commands(folder, result["images"])),
            "image size": f"{plan['sizes'][-1][0]} pixels",
            "seed": str(plan["seed"]),
            "near-duplicates": "\n".join(f"{val} of {train}" for train, val in result["near_duplicates"]) or "none",
            "left out": "\n".join(f"{name}: {reason}" for name, reason in result["left_out"].items()) or "nothing",
            "commit": str(result["environment"]["commit"]),
        },
    )


def _how_trained(result: dict[str, Any]) -> str:
    """Say in a sentence how the chosen stage was trained."""
    stage, checked = result["stages"][result["chosen"]], result["stages"]["head"]["cross_validation"]
    if result["chosen"] != "head":
        return f"all layers trained after the head, epoch {stage['epoch']} of {len(stage['log'])}"
    scores = {row["strength"]: row["top1"] for row in checked["scores"]}
    score = f", cross-validated accuracy {scores[checked['strength']]:.1f} %" if scores else ""
    return f"the head fitted by logistic regression on the frozen backbone (L2 penalty {checked['strength']:g}{score})"


def _card(result: dict[str, Any]) -> str:
    """Write a model card: the classes, the accuracy, how the model was made and how to use it."""
    val, stage = result["val"], result["stages"][result["chosen"]]
    # Agresti and Coull 1998: of few images, all of them right, the error is not 0.
    plan, share = stage["recipe"], (val["top1"] / 100 * val["images"] + 2) / (val["images"] + 4)
    error = 100 * (share * (1 - share) / (val["images"] + 4)) ** 0.5
    rows = "\n".join(f"| {r['class']} | {r['images']} | {r['right']} of {r['val']} |" for r in result["by_class"])
    start = result["stages"]["head"]["recipe"]["start"]
    backbone = "torchvision's ImageNet backbone" if start == "imagenet" else f"`{Path(start).name}`"
    optimistic = "" if len(result["stages"]) == 1 else " They also chose the\nepoch, so this is slightly optimistic."
    return f"""---
library_name: sqzoo
pipeline_tag: image-classification
---

# {result["model"]} for {len(result["classes"])} classes

{val["top1"]:.1f} % of {val["images"]} validation images right (standard error {error:.1f} points), balanced accuracy
{result["balanced_accuracy"]:.1f} %.{optimistic}

| class | images | validation images right |
|---|---|---|
{rows}

Made by `sqzoo train` from {result["images"]} images (SHA-256 of the data {result["data_digest"]}):
{backbone}; {_how_trained(result)}; {plan["sizes"][-1][0]} pixels, seed {plan["seed"]}.
`report.html` has the confusion matrix, figures by class and the worst mistakes.

It answers with one of its classes for any image. ImageNet's own terms ask for non-commercial research use;
torchvision's weights are BSD-3-Clause.

```bash
sqzoo predict --model THIS_FOLDER photo.jpg
```

```python
import sqzoo

model = sqzoo.create_model("local-dir:THIS_FOLDER")
```
"""
