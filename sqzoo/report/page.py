"""A model's answers as one HTML page: figures, learning curves, confusion, calibration, classes, worst mistakes."""

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
_DRAWN = 50  # classes of the confusion matrix
_THUMBNAIL = 96  # pixels of the longer side


def report(
    title: str,
    classes: Sequence[str],
    labels: torch.Tensor,
    logits: torch.Tensor,
    *,
    picture: Callable[[int], Image.Image] | None = None,
    names: Sequence[str] | None = None,
    log: Iterable[Mapping[str, Any]] = (),
    facts: Mapping[str, str] | None = None,
) -> str:
    """Return an HTML page that needs nothing outside it.

    labels: (N,), what each image is. logits: (N, classes); for probabilities p give `p.log()`.
    picture: returns the i-th image; asked only for the mistakes that are shown. names: the images' file names.
    log: the trainer's rows, an epoch each; drawn as learning curves. facts: shown as a table under the title.
    Raises `ArgumentError` where the shapes do not fit.
    """
    if not len(labels) or logits.shape != (len(labels), len(classes)):
        raise ArgumentError(
            f"a report needs one image or more and logits of shape (images, classes) = {(len(labels), len(classes))}, "
            f"not {tuple(logits.shape)}."
        )
    from jinja2 import Environment  # a template escapes the names of classes and files

    drawn = _most_confused(logits, labels)
    counts, calibrated = confusion(logits, labels, drawn), calibration(logits, labels)
    note = "" if len(drawn) == len(classes) else f"; the {len(drawn)} of {len(classes):,} classes with most mistakes"
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
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
        matrix=confusion_and_calibration(counts, calibrated, [classes[i] for i in drawn], title + note),
        classes=_by_class(logits, labels, classes),
        mistakes=_mistakes(classes, labels, logits, picture, names),
    )


def confusion(logits: torch.Tensor, labels: torch.Tensor, classes: Sequence[int] | None = None) -> list[list[int]]:
    """Return how many images of each class (row) were called each class (column), of all classes or of some."""
    chosen = range(logits.shape[1]) if classes is None else classes
    place = torch.full((logits.shape[1],), -1)
    place[list(chosen)] = torch.arange(len(chosen))
    rows, columns = place[labels], place[logits.argmax(1)]
    inside = (rows >= 0) & (columns >= 0)
    pairs = torch.bincount((rows * len(chosen) + columns)[inside], minlength=len(chosen) ** 2)
    counts: list[list[int]] = pairs.view(len(chosen), len(chosen)).tolist()
    return counts


def _most_confused(logits: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """Return all classes, or of many those with most mistakes: a matrix grows with the square of its classes."""
    classes, called = logits.shape[1], logits.argmax(1)
    if classes <= _DRAWN:
        return list(range(classes))
    wrong = called != labels
    mistakes = torch.bincount(torch.cat([labels[wrong], called[wrong]]), minlength=classes)
    chosen: list[int] = mistakes.argsort(descending=True, stable=True)[:_DRAWN].sort().values.tolist()
    return chosen


def calibration(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> dict[str, Any]:
    """Return the expected calibration error in points, and by bin of confidence: images, mean confidence, top-1 (%)."""
    confidence, called = logits.double().softmax(1).max(1)
    right = (called == labels).double()
    rows, error = [], 0.0
    for index in range(bins):
        inside = (confidence * bins).long().clamp(max=bins - 1) == index
        if inside.any():
            mean, top1 = confidence[inside].mean().item() * 100, right[inside].mean().item() * 100
            rows.append([int(inside.sum()), round(mean, 3), round(top1, 3)])
            error += abs(mean - top1) * int(inside.sum()) / len(labels)
    return {"error": round(error, 4), "bins": rows}


def _curves(log: Iterable[Mapping[str, Any]]) -> list[str]:
    """Draw the rows' losses together and their accuracies together."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {"loss (nats)": {}, "top-1 (%)": {}}
    for row in log:
        flat = {f"{k} {m}": v for k, part in row.items() if isinstance(part, Mapping) for m, v in part.items()}
        for name, value in ({k.replace("_", " "): v for k, v in row.items()} | flat).items():
            for chart in charts:
                measure = chart.partition(" ")[0].replace("-", "")
                if name.endswith(measure):
                    series = name.removesuffix(measure).replace("_", " ").strip()
                    charts[chart].setdefault(series, []).append((row["epoch"], value))
    highest = {"top-1 (%)": 100.0}
    return [curves(title, series, highest.get(title, torch.inf)) for title, series in charts.items() if series]


def _by_class(logits: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    called = logits.argmax(1)
    images, answered = (torch.bincount(v, minlength=len(classes)).tolist() for v in (labels, called))
    right = torch.bincount(labels[called == labels], minlength=len(classes)).tolist()
    wrong = called != labels
    pairs, counts = torch.unique(labels[wrong] * len(classes) + called[wrong], return_counts=True)
    most: dict[int, tuple[int, int]] = {}  # of each class, the one that it is most often taken for
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        is_, other = divmod(pair, len(classes))
        if count > most.get(is_, (0, 0))[1]:
            most[is_] = other, count
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
    picture: Callable[[int], Image.Image] | None,
    names: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """Return the wrong answers of the highest probability, the surest first."""
    confidence, called = logits.double().softmax(1).max(1)
    wrong = (called != labels).nonzero().flatten()
    surest = wrong[confidence[wrong].argsort(descending=True, stable=True)][:_MISTAKES]
    return [
        {
            "is": classes[int(labels[i])],
            "called": classes[int(called[i])],
            "percent": 100 * confidence[i].item(),
            "name": names[i] if names else f"image {i}",
            "thumbnail": _thumbnail(picture(i)) if picture else None,
        }
        for i in surest.tolist()
    ]


def _thumbnail(picture: Image.Image) -> str:
    """Return the picture, its longer side at most 96 pixels, as a data address: PNG up to 64 pixels, else JPEG."""
    small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    kind = "png" if max(small.size) <= 64 else "jpeg"
    stream = io.BytesIO()
    small.save(stream, kind)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
