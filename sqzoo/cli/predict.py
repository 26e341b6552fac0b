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

from sqzoo.cli import _options
from sqzoo.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from sqzoo.predict import Classification


class Format(StrEnum):
    """Output formats: text to read, a JSON object per line, or a CSV row per image."""

    text = "text"
    jsonl = "jsonl"
    csv = "csv"


def run(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, folders of them, or - for file names on stdin.", show_default=False),
    ],
    model: _options.Model = "sq1",
    top: Annotated[
        int | None, typer.Option(help="Classes to print per image (default: up to 3).", show_default=False)
    ] = None,
    format: Annotated[Format, typer.Option(help="Output format.")] = Format.text,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write instead of stdout.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 16,
    backend: _options.Backend = None,
    trunk: _options.Trunk = None,
) -> int:
    """Classify pictures.

    Files, whole folders or a list on stdin, in constant memory. A picture that cannot be read is named on stderr and
    the rest goes on; the exit code is then 1. "None of the ten, perhaps" stands before an answer that is unlike the
    pictures the model was trained on.

    Examples:
    ```
    sqzoo predict photo.jpg
    sqzoo predict holiday/ --top 1 --format csv -o holiday.csv
    find . -name '*.jpg' | sqzoo predict - --format jsonl
    ```
    """
    files = _files(images)
    from tqdm import tqdm

    from sqzoo.images.reader import label_names
    from sqzoo.predict import classify

    network = _options.network(model, trunk, backend, batch_size)
    if top is None:
        top = min(3, len(label_names(network)))
    answers = classify(network, files, top_k=top, batch_size=batch_size)
    seen = bad = 0
    with _options.writing(output) as stream:
        # Lines and a bar on the same screen would tear each other.
        quiet = not sys.stderr.isatty() or stream.isatty()
        if format is Format.csv:
            _row(stream, ["image", *(f"{kind}_{n}" for n in range(1, top + 1) for kind in ("label", "probability")),
                          "abstain", "error"])  # fmt: skip
        for answer in tqdm(answers, unit=" pictures", disable=quiet):
            seen += 1
            if answer.error:
                bad += 1
                tqdm.write(f"sqzoo: {answer.error}", file=sys.stderr)
            _write(stream, answer, format, top, len(label_names(network)))
    if bad:
        print(f"sqzoo: {bad:,} of {seen:,} pictures could not be read.", file=sys.stderr)
    return 1 if bad else 0


def _files(images: list[str]) -> Iterator[str]:
    """Return the files that are named; raise for one named on the command line that is not there."""
    for name in images:
        if name != "-" and not os.path.exists(name):
            raise DataError(f"No such image: {name!r}; check the name.")
    return _each(images)


def _each(images: list[str]) -> Iterator[str]:
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
                raise ArgumentError(
                    f"No picture in {name!r}, by the files' suffixes; name another folder, or the files."
                )
        else:
            yield name


def _write(stream: TextIO, answer: "Classification", format: Format, top: int, classes: int) -> None:
    image, found = str(answer.image), answer.predictions
    if format is Format.jsonl:
        facts: dict[str, Any] = {"image": image}
        if answer.error:
            facts["error"] = str(answer.error)
        else:
            facts["predictions"] = [asdict(prediction) for prediction in found]
            facts |= {"ood_score": answer.ood_score, "abstain": answer.abstain}
        stream.write(json.dumps(facts) + "\n")
    elif format is Format.csv:
        cells = [cell for p in found for cell in (p.label, f"{p.probability:.6f}")] or [""] * (2 * top)
        _row(stream, [image, *cells, "" if answer.abstain is None else str(answer.abstain), str(answer.error or "")])
    elif not answer.error:
        classed = ", ".join(f"{p.label} {100 * p.probability:.1f} %" for p in found)
        if answer.abstain:
            classed = f"none of the {'ten' if classes == 10 else classes}, perhaps ({classed})"
        stream.write(f"{image}: {classed}\n")


def _row(stream: TextIO, cells: list[str]) -> None:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    stream.write(line.getvalue())
