"""`sqzoo info`."""

import json
from typing import Annotated, Any

import typer

from sqzoo.cli import _options


def run(tag: _options.Tag, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show everything about a weights tag: figures, recipe, data, licence, hash, and how to use it.

    Examples:
    ```
    sqzoo info sq1.ft_cifar10
    sqzoo info fire_next --json
    ```
    """
    from dataclasses import asdict

    from sqzoo.weights.manifest import get_weights

    entry = get_weights(tag)
    if as_json:
        print(json.dumps(asdict(entry), indent=1))
        return
    shown: list[tuple[str, Any]] = [
        ("tag", entry.tag),
        ("file", str(entry.hub or entry.path)),
        ("stored as", f"{entry.size / 1e6:.2f} MB, {entry.dtype}, {entry.holds}, {entry.stored}"),
        ("SHA-256", entry.sha256),
        ("parameters", f"{entry.params:,}"),
        ("multiply-adds", f"{entry.macs / 1e6:.1f} million for one image of {entry.resolution} px"),
        ("images", f"{entry.input_size[1]} px, upsampled to {entry.resolution}, mean {entry.mean}, std {entry.std}"),
        *((name.replace("_", " "), value) for name, value in entry.metrics.items()),
        *((f"calibration: {name.replace('_', ' ')}", value) for name, value in entry.calibration.items()),
        *((f"recipe: {name}", value) for name, value in entry.recipe.items()),
        *((name.replace("_", " "), value) for name, value in entry.data.items()),
        ("licence", entry.licence),
        ("provenance", entry.provenance),
        ("use", f'sqzoo.create_model("{entry.tag}", pretrained=True)'),
        ("", f"sqzoo predict photo.jpg --model {entry.tag}"),
    ]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        print(f"{name:{width}}  {value if isinstance(value, str) else json.dumps(value)}")
