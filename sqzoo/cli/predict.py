"""`sqzoo predict`."""

from pathlib import Path
from typing import Annotated

import typer

from sqzoo.cli import _options


def run(
    images: Annotated[list[str], typer.Argument(help="Picture files.", show_default=False)],
    model: _options.Model = "sq1",
    top: Annotated[int, typer.Option(help="Classes a picture.")] = 3,
    trunk: _options.Trunk = None,
) -> None:
    """Classify pictures.

    Examples:
    ```
    sqzoo predict photo.jpg
    sqzoo predict *.jpg --top 1 --model fire_next
    ```
    """
    from sqzoo.predict import predict
    from sqzoo.registry import create_model

    name = f"local-dir:{model}" if Path(model).is_dir() else model
    network = create_model(name, pretrained=True, trunk=trunk)
    for image, found in zip(images, predict(network, images, top_k=top), strict=True):
        print(f"{image}: " + ", ".join(f"{p.label} {100 * p.probability:.1f} %" for p in found))
