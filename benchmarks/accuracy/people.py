"""People: how often does a tag say "none of the ten" of a face, and would a distance between features say it oftener?

    python benchmarks/accuracy/people.py [--data FOLDER]

Shows each calibrated tag the 100 faces of scikit-image's `lfw_subset` (grey, 25 pixels, each of another photo) and its
photo of an astronaut, and counts those below the tag's threshold. Then, for sq1.ft_cifar10, the Mahalanobis distance to
the nearest class of training images (Lee et al. 2018), from the pooled features of each stage, scaled to length 1, with
a threshold that as many held-out images pass. Nothing is chosen: the faces are measured alone.
"""

import argparse
import json
from collections import Counter
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from torch.nn.functional import normalize

from benchmarks import RESULTS, run_main
from benchmarks.accuracy.calibrate import KNOWN, Distance
from benchmarks.record import write_record
from sqzoo import create_model, get_weights, list_models
from sqzoo.data import Dataset, Normalise, cifar10
from sqzoo.images.reader import ImageReader
from sqzoo.predict import classify
from sqzoo.uncertainty import TPR, ood_threshold

RESULT = RESULTS / "accuracy" / "people.json"
STUDIED = "sq1.ft_cifar10"


def pictures() -> dict[str, Image.Image]:
    """Return the faces, then the astronaut, by name."""
    from skimage import data

    faces = [Image.fromarray((255 * face).round().astype(np.uint8)) for face in data.lfw_subset()[:100]]
    return {f"face {i}": face for i, face in enumerate(faces)} | {"astronaut": Image.fromarray(data.astronaut())}


def interval(hits: np.ndarray, draws: int = 10_000) -> list[float]:
    """Return the 95 % interval of a share in percent, by bootstrap over the pictures, each of another source."""
    draw = np.random.default_rng(0)
    shares = [draw.choice(hits, len(hits)).mean() for _ in range(draws)]
    return [round(100 * float(q), 1) for q in np.quantile(shares, (0.025, 0.975))]


def flagged(tag: str) -> dict[str, Any]:
    """Return what a tag says of the pictures."""
    answers = list(classify(create_model(tag, pretrained=True), list(pictures().values()), top_k=1))
    unsure = np.array([answer.abstain for answer in answers])
    sure = Counter(a.predictions[0].label for a in answers[:100] if not a.abstain)
    return {
        "unsure": round(100 * float(unsure[:100].mean()), 1),
        "interval": interval(unsure[:100]),
        "others_called": dict(sure.most_common()),
        "astronaut": {"unsure": bool(unsure[100]), "label": answers[100].predictions[0].label},
    }


@torch.inference_mode()
def stages(model: nn.Module, images: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the pooled features (N, C) of each Fire module by its name, of length 1."""
    found: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, maps, name=name: found.setdefault(name, []).append(normalize(maps.mean((2, 3))))
        )
        for name, module in model.named_modules()
        if type(module).__name__ == "Fire"
    ]
    for few in np.array_split(images, range(32, len(images), 32)):
        model.forward_features(Normalise.of(model)(few))  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def distances(data: Dataset, count: int) -> dict[str, Any]:
    """Return by stage how many faces a distance flags in percent, and how many numbers it would add to the file."""
    model = create_model(STUDIED, pretrained=True)
    rest, held = data.split(count)
    known = rest[:: len(rest) // KNOWN][:KNOWN]
    read = ImageReader.of(model)
    shown = np.stack([read(p.convert("RGB")) for name, p in pictures().items() if name != "astronaut"])
    features = [stages(model, images) for images in (data.images[known], data.images[held], shown)]
    result = {}
    for name in features[0]:
        own, inside, faces = (each[name] for each in features)
        distance = Distance(own, torch.from_numpy(data.labels[known]).long())
        flags = distance(faces) < ood_threshold(distance(inside))
        numbers = own.shape[1] * (own.shape[1] + 1) // 2 + 10 * own.shape[1]
        result[name] = {"unsure": round(100 * flags.double().mean().item(), 1), "numbers": numbers}
    return result


def render(record: dict[str, Any]) -> str:
    """Return a paragraph on the tags' faces as Markdown; `record` is what results/ holds, or {}."""
    if not record:
        return "Not measured yet: `python benchmarks/accuracy/people.py`."
    rows, own = record["tags"], record["tags"][STUDIED]
    low, high = (pick(row["unsure"] for row in rows.values()) for pick in (min, max))
    called = [f"{name} ({count})" for name, count in list(own["others_called"].items())[:3]]
    stage, best = max(record["distances"].items(), key=lambda item: item[1]["unsure"])
    size = get_weights("sq1.tiny_cifar10").size
    flags, span = f"`{STUDIED}` flags {own['unsure']:.0f} %", [f"{limit:.0f}" for limit in own["interval"]]
    return (
        f"**People are not caught.** Of 100 faces (Labeled Faces in the Wild, grey, 25 pixels) {flags} (95 % interval "
        f"{span[0]} to {span[1]}) and calls the others {', '.join(called)}; over all calibrated tags {low:.0f} to "
        f"{high:.0f} % are flagged. A distance between features (Mahalanobis, after `{stage}`) would flag "
        f"{best['unsure']:.0f} %, but adds {best['numbers']:,} numbers, {best['numbers'] / 1e6:.2f} MB at a byte each, "
        f"to a file of {size / 1e6:.2f} MB (`sq1.tiny_cifar10`); it is not part of sqzoo."
    )


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    data = cifar10("train", parser.parse_args().data)
    tags = [tag for tag in list_models("*.*", pretrained=True) if get_weights(tag).ood_threshold is not None]
    rows = {tag: flagged(tag) for tag in tags}
    count = get_weights(STUDIED).recipe["hold_out"]
    record = {"kept": TPR, "tags": rows, "distances": distances(data, count), "train_digest": data.digest}
    print(json.dumps(record, indent=1))
    write_record(RESULT, record, tags)


if __name__ == "__main__":
    run_main(main)
