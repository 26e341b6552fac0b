"""`sqzoo explain`."""

import io
import os
from pathlib import Path
from typing import Annotated

import typer

from sqzoo.cli import _options


def run(
    image: Annotated[str, _options.argument("Image file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Image to write: .png or .jpg.")] = Path("heat.png"),
    label: Annotated[str | None, _options.option("Class to explain (default: the most likely).", "--class")] = None,
    model: _options.Model = "sq1",
    trunk: _options.Trunk = None,
) -> None:
    """Show which parts of an image support a class, in red over the image (Grad-CAM).

    Examples:
    ```
    sqzoo explain photo.jpg
    sqzoo explain photo.jpg --class dog -o why-not-dog.png
    ```
    """
    from sqzoo.errors import ArgumentError, shown
    from sqzoo.explain import explain

    format = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(output.suffix.lower())
    if format is None:
        raise ArgumentError(f"Cannot write {os.fspath(output)!r}: its name must end in .png or .jpg.")
    _options.check_writable(output)
    result = explain(_options.network(model, trunk), image, label)
    stream = io.BytesIO()
    result.overlay.save(stream, format)
    _options.write_output(output, stream.getvalue())
    prediction = result.prediction
    note = "" if result.heat.any() else "; nothing in it supports the class"
    print(f"{shown(image)}: {prediction.label} {100 * prediction.probability:.1f} %{note}; {shown(output)}")
