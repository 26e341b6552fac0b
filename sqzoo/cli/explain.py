"""`sqzoo explain`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from sqzoo.cli import _options


def run(
    picture: Annotated[str, typer.Argument(help="Picture file.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture to write: .png or .jpg.")] = Path("heat.png"),
    label: Annotated[
        str | None, typer.Option("--class", help="Class to explain (default: the likeliest).", show_default=False)
    ] = None,
    model: _options.Model = "sq1",
    trunk: _options.Trunk = None,
) -> None:
    """Show what in a picture the network looked at (Grad-CAM): the picture, red where it speaks for the class.

    Examples:
    ```
    sqzoo explain photo.jpg
    sqzoo explain photo.jpg --class dog -o why-not-dog.png
    ```
    """
    from sqzoo.errors import ArgumentError, shown
    from sqzoo.explain import explain
    from sqzoo.files import atomic_file

    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(output.suffix.lower())
    if kind is None:
        raise ArgumentError(f"Cannot write {os.fspath(output)!r}: its name must end in .png or .jpg.")
    _options.check_writable(output)
    found = explain(_options.network(model, trunk), picture, label)
    try:
        with atomic_file(output) as stream:
            found.overlay.save(stream, kind)
    except OSError as e:
        raise _options.unwritable(output, e) from e
    prediction = found.prediction
    note = "" if found.heat.any() else "; nothing in it speaks for the class"
    print(f"{shown(picture)}: {prediction.label} {100 * prediction.probability:.1f} %{note}; {shown(output)}")
