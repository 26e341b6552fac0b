"""`sqzoo report`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sqzoo.cli import _options
from sqzoo.cli.eval import Split


def run(
    tag: _options.Tag,
    output: Annotated[Path | None, _options.option("HTML file (default: TAG.html).", "-o", "--output")] = None,
    data: _options.Data = None,
    split: Annotated[Split, typer.Option(help="Images to evaluate on.")] = Split.test,
    trunk: _options.Trunk = None,
) -> None:
    """Write an HTML report on a tag: confusion, calibration, classes, most confident mistakes.

    Examples:
    ```
    sqzoo report sq1.ft_cifar10
    sqzoo report fire_next -o fire_next.html --data cifar-10-batches-py
    ```
    """
    import torch
    from PIL import Image

    from sqzoo.data import cifar10
    from sqzoo.environment import require
    from sqzoo.errors import shown
    from sqzoo.evaluation import logits
    from sqzoo.registry import create_model
    from sqzoo.report.page import report
    from sqzoo.weights import CIFAR10_CLASSES, get_weights

    require("matplotlib", "train", "The report")  # before minutes of evaluation
    entry = get_weights(tag)
    file = output or Path(f"{entry.tag}.html")
    _options.check_writable(file)
    images = cifar10(split.value, data)
    model = create_model(entry.tag, pretrained=True, trunk=trunk)
    record = Path(__file__).parents[2] / entry.metrics["source"]  # in a checkout; a wheel has none
    page = report(
        f"{entry.tag} on CIFAR-10 {split.value}",
        CIFAR10_CLASSES,
        torch.from_numpy(images.labels),
        logits(model, images),
        image=lambda i: Image.fromarray(images.images[i]),
        log=json.loads(record.read_text(encoding="utf-8")).get("log", ()) if record.is_file() else (),
        facts={
            "weights": f"{entry.file}, SHA-256 {entry.sha256}",
            "images": f"CIFAR-10 {split.value}, digest {images.digest}",
            "temperature": f"{model.temperature:.3f}" if entry.calibration else "none fitted",
            "licence": entry.licence,
            "provenance": entry.provenance,
        },
    )
    _options.write_output(file, page.encode())
    print(shown(file))
