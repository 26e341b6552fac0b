"""Report a model's predictions as one HTML page: learning curves, confusion, calibration, classes, mistakes."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from sqzoo.errors import ArgumentError
from sqzoo.report.plots import confusion_and_calibration, curves

_TEMPLATE = Path(__file__).with_name("page.html")
_MISTAKES = 24
_SHOWN = 50  # classes of the confusion matrix
_THUMBNAIL = 96  # pixels of the longer side


def report(
    title: str,
    classes: Sequence[str],
    labels: torch.Tensor,
    logits: torch.Tensor,
    *,
    image: Callable[[int], Image.Image] | None = None,
    names: Sequence[str] | None = None,
    log: Iterable[Mapping[str, Any]] = (),
    facts: Mapping[str, str] | None = None,
) -> str:
    """Return a self-contained HTML page on a model's predictions.

    Args:
        title: of the page.
        classes: their names.
        labels: (N,), the target of each image.
        logits: (N, classes); for probabilities p give `p.log()`.
        image: returns the i-th image; called for the shown mistakes only.
        names: the images' file names.
        log: the trainer's rows, one per epoch, for the learning curves.
        facts: shown as a table under the title.

    Raises:
        ArgumentError: the shapes do not fit.
    """
    if not len(labels) or logits.shape != (len(labels), len(classes)):
        raise ArgumentError(
            f"a report needs one image or more and logits of shape (images, classes) = {(len(labels), len(classes))}, "
            f"not {tuple(logits.shape)}."
        )
    from jinja2 import Environment  # which escapes the names of classes and files

    shown = _most_confused(logits, labels)
    counts, calibrated = confusion(logits, labels, shown), calibration(logits, labels)
    note = "" if len(shown) == len(classes) else f"; the {len(shown)} of {len(classes):,} classes with most mistakes"
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    top1 = 100 * (logits.argmax(1) == labels).double().mean().item()
    return template.render(
        title=title,
        facts=facts or {},
        images=len(labels),
        top1=top1,
        error=(top1 * (100 - top1) / len(labels)) ** 0.5,
        loss=F.cross_entropy(logits.double(), labels).item(),
        calibration=calibrated["error"],
        curves=_curves(log),
        matrix=confusion_and_calibration(counts, calibrated, [classes[i] for i in shown], title + note),
        classes=_by_class(logits, labels, classes),
        mistakes=_mistakes(classes, labels, logits, image, names),
    )


def confusion(logits: torch.Tensor, labels: torch.Tensor, classes: Sequence[int] | None = None) -> list[list[int]]:
    """Return the confusion matrix, targets by predictions, of all classes or of some."""
    chosen = range(logits.shape[1]) if classes is None else classes
    position = torch.full((logits.shape[1],), -1)
    position[list(chosen)] = torch.arange(len(chosen))
    rows, columns = position[labels], position[logits.argmax(1)]
    inside = (rows >= 0) & (columns >= 0)
    pairs = torch.bincount((rows * len(chosen) + columns)[inside], minlength=len(chosen) ** 2)
    counts: list[list[int]] = pairs.view(len(chosen), len(chosen)).tolist()
    return counts


def _most_confused(logits: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """Return all classes, or the 50 with most mistakes, because a matrix grows with the square of its classes."""
    classes, predicted = logits.shape[1], logits.argmax(1)
    if classes <= _SHOWN:
        return list(range(classes))
    wrong = predicted != labels
    mistakes = torch.bincount(torch.cat([labels[wrong], predicted[wrong]]), minlength=classes)
    chosen: list[int] = mistakes.argsort(descending=True, stable=True)[:_SHOWN].sort().values.tolist()
    return chosen


def calibration(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> dict[str, Any]:
    """Return the expected calibration error (points) and its bins: [images, mean confidence (%), accuracy (%)]."""
    confidence, predicted = logits.double().softmax(1).max(1)
    right = (predicted == labels).double()
    rows, error = [], 0.0
    for index in range(bins):
        inside = (confidence * bins).long().clamp(max=bins - 1) == index
        if inside.any():
            mean, top1 = confidence[inside].mean().item() * 100, right[inside].mean().item() * 100
            rows.append([int(inside.sum()), round(mean, 3), round(top1, 3)])
            error += abs(mean - top1) * int(inside.sum()) / len(labels)
    return {"error": round(error, 4), "bins": rows}


def _curves(log: Iterable[Mapping[str, Any]]) -> list[str]:
    """Draw the losses of all parts (train, val, test) in one chart, their accuracies in another."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {"loss": {}, "top1": {}}
    for row in log:
        parts = {k: v for k, v in row.items() if isinstance(v, Mapping)}
        for part, metrics in ({"train": {"loss": row["train_loss"]}} | parts).items():
            for metric in charts.keys() & metrics.keys():
                charts[metric].setdefault(part.replace("_", " "), []).append((row["epoch"], metrics[metric]))
    looks = {"loss": ("loss (nats)", torch.inf), "top1": ("top-1 (%)", 100.0)}  # title, highest value
    return [curves(looks[m][0], series, looks[m][1]) for m, series in charts.items() if series]


def _by_class(logits: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    predicted = logits.argmax(1)
    images, answered = (torch.bincount(v, minlength=len(classes)).tolist() for v in (labels, predicted))
    right = torch.bincount(labels[predicted == labels], minlength=len(classes)).tolist()
    wrong = predicted != labels
    pairs, counts = torch.unique(labels[wrong] * len(classes) + predicted[wrong], return_counts=True)
    most: dict[int, tuple[int, int]] = {}  # by class: the class that it is most often mistaken for, how often
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        target, other = divmod(pair, len(classes))
        if count > most.get(target, (0, 0))[1]:
            most[target] = other, count
    return [
        {
            "name": name,
            "images": images[i],
            "recall": 100 * right[i] / images[i] if images[i] else None,
            "precision": 100 * right[i] / answered[i] if answered[i] else None,
            "mistaken": f"{classes[most[i][0]]}, {most[i][1]} times" if i in most else "",
        }
        for i, name in enumerate(classes)
    ]


def _mistakes(
    classes: Sequence[str],
    labels: torch.Tensor,
    logits: torch.Tensor,
    image: Callable[[int], Image.Image] | None,
    names: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """Return the wrong predictions of the highest probability, the most confident first."""
    confidence, predicted = logits.double().softmax(1).max(1)
    wrong = (predicted != labels).nonzero().flatten()
    surest = wrong[confidence[wrong].argsort(descending=True, stable=True)][:_MISTAKES]
    return [
        {
            "is": classes[int(labels[i])],
            "called": classes[int(predicted[i])],
            "percent": 100 * confidence[i].item(),
            "name": names[i] if names else f"image {i}",
            "thumbnail": _thumbnail(image(i)) if image else None,
        }
        for i in surest.tolist()
    ]


def _thumbnail(image: Image.Image) -> str:
    """Return a thumbnail of at most 96 pixels as a data URL: PNG up to 64 pixels, else JPEG."""
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    kind = "png" if max(small.size) <= 64 else "jpeg"
    stream = io.BytesIO()
    small.save(stream, kind)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
