"""`sqzoo explain`."""

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
    from sqzoo.errors import ArgumentError
    from sqzoo.explain import explain

    if output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ArgumentError(f"Cannot write {str(output)!r}: its name must end in .png or .jpg.")
    found = explain(_options.network(model, trunk), picture, label)
    temporary = output.with_name(f".writing-{output.name}")
    try:
        found.overlay.save(temporary)
        temporary.replace(output)
    except OSError as e:
        raise ArgumentError(f"Cannot write {output} ({e.strerror}); name a file that you may write.") from e
    finally:
        temporary.unlink(missing_ok=True)
    prediction = found.prediction
    note = "" if found.heat.any() else "; nothing in it speaks for the class"
    print(f"{picture}: {prediction.label} {100 * prediction.probability:.1f} %{note}; {output}")
