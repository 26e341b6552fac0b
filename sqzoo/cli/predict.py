"""`sqzoo predict`."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from sqzoo import SAMPLE
from sqzoo.cli import _options
from sqzoo.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from sqzoo.predict import Classification


class Format(StrEnum):
    """Output formats: text, a JSON object per line, or a CSV row per image."""

    text = "text"
    jsonl = "jsonl"
    csv = "csv"


def run(
    images: Annotated[
        list[str] | None, _options.argument("Image files, folders of them, or - for file names on stdin.")
    ] = None,
    sample: Annotated[bool, _options.option("Classify the package's own photo of a cat.", "--sample")] = False,
    model: _options.Model = "sq1",
    top: Annotated[int, _options.option("Classes to print per image, at most all.")] = 3,
    format: Annotated[Format, typer.Option(help="Output format.")] = Format.text,
    output: Annotated[Path | None, _options.option("File to write instead of stdout.", "-o", "--output")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 16,
    backend: _options.Backend = None,
    trunk: _options.Trunk = None,
) -> int:
    """Classify images: files, folders, or a list on stdin, in constant memory.

    An unreadable image is reported on stderr and skipped; the exit code is then 1. "None of the ten, perhaps" marks an
    image that is unlike those that the model was trained on.

    Examples:
    ```
    sqzoo predict --sample
    sqzoo predict photo.jpg
    sqzoo predict holiday/ --top 1 --format csv -o holiday.csv
    find . -name '*.jpg' | sqzoo predict - --format jsonl
    ```
    """
    files = _files([*(images or []), *([str(SAMPLE)] if sample else [])])
    from tqdm import tqdm

    from sqzoo.images.reader import label_names
    from sqzoo.predict import classify

    network = _options.network(model, trunk, backend, batch_size)
    classes = len(label_names(network))
    top = min(top, classes)
    answers = classify(network, files, top_k=top, batch_size=batch_size)
    total = unreadable = 0
    with _options.writing(output) as stream:
        quiet = not sys.stderr.isatty() or stream.isatty()  # lines and a bar on one screen disturb each other
        if format is Format.csv:
            columns = [f"{column}_{n}" for n in range(1, top + 1) for column in ("label", "probability")]
            _write_row(stream, ["image", *columns, "abstain", "error"])
        for answer in tqdm(answers, unit=" images", disable=quiet):
            total += 1
            if answer.error:
                unreadable += 1
                tqdm.write(f"sqzoo: {answer.error}", file=sys.stderr)
            _write(stream, answer, format, top, classes)
    if unreadable:
        print(f"sqzoo: {unreadable:,} of {total:,} images could not be read.", file=sys.stderr)
    return 1 if unreadable else 0


def _files(images: list[str]) -> Iterator[str]:
    """Return the files to classify; raise for a missing one before any work is done."""
    if not images:
        raise ArgumentError("No image was named; name files or folders, or take the package's own photo with --sample.")
    for name in images:
        if name != "-" and not os.path.exists(name):
            raise DataError(f"No such image: {name!r}; check the name.")
    return _expanded(images)


def _expanded(images: list[str]) -> Iterator[str]:
    from sqzoo.images.walk import image_files

    for name in images:
        if name == "-":
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif os.path.isdir(name):
            empty = True
            for file in image_files(name):
                empty = False
                yield str(file)
            if empty:
                raise ArgumentError(f"No image in {name!r}, by the files' suffixes; name another folder, or the files.")
        else:
            yield name


def _write(stream: TextIO, answer: "Classification", format: Format, top: int, classes: int) -> None:
    image, predictions = str(answer.image), answer.predictions
    if format is Format.jsonl:
        row: dict[str, Any] = {"image": image}
        if answer.error:
            row["error"] = str(answer.error)
        else:
            row["predictions"] = [asdict(prediction) for prediction in predictions]
            row |= {"ood_score": answer.ood_score, "abstain": answer.abstain}
        stream.write(json.dumps(row) + "\n")
    elif format is Format.csv:
        cells = [cell for p in predictions for cell in (p.label, f"{p.probability:.6f}")] or [""] * (2 * top)
        abstain = "" if answer.abstain is None else str(answer.abstain)
        _write_row(stream, [image, *cells, abstain, str(answer.error or "")])
    elif not answer.error:
        text = ", ".join(f"{p.label} {100 * p.probability:.1f} %" for p in predictions)
        if answer.abstain:
            text = f"none of the {'ten' if classes == 10 else classes}, perhaps ({text})"
        stream.write(f"{image}: {text}\n")


def _write_row(stream: TextIO, cells: list[str]) -> None:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    stream.write(line.getvalue())
