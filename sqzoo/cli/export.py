"""`sqzoo export`."""

from pathlib import Path
from typing import Annotated

import typer

from sqzoo.cli import _options


def run(
    model: Annotated[
        str,
        typer.Argument(
            help="Model, weights tag, or a folder that save_pretrained wrote.",
            show_default=False,
            autocompletion=_options.complete_tag,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Argument(
            help="File to write, or folder for transformers-js (default: the model's name, here).", show_default=False
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="onnx, onnx-int8, openvino, torch-export, safetensors-int8 or transformers-js.")
    ] = "onnx",
    preprocessing: Annotated[
        bool, typer.Option("--preprocessing", help="Take uint8 pictures (N, H, W, 3), give probabilities.")
    ] = False,
    trunk: _options.Trunk = None,
    data: _options.Data = None,
) -> None:
    """Write a model for another runtime, once its outputs were compared with PyTorch's.

    int8 takes its ranges from CIFAR-10's training images.

    Examples:
    ```
    sqzoo export sq1
    sqzoo export sq1 sq1.onnx --preprocessing
    sqzoo export fire_next fire_next.xml --format openvino
    sqzoo export sq1 runs/sq1 --format transformers-js
    ```
    """
    from sqzoo.deploy.onnx_graph import calibration_images
    from sqzoo.errors import shown
    from sqzoo.export import FORMATS, export
    from sqzoo.registry import create_model, model_name

    source = model_name(model)
    network = create_model(source, pretrained=True, trunk=trunk)
    folder = source.startswith("local-dir:")
    name = Path(source.removeprefix("local-dir:")).resolve().name if folder else model.rpartition("/")[2]
    images = calibration_images(network, root=data) if format == "onnx-int8" else None
    file = export(
        network,
        output or f"{name}{FORMATS.get(format, '')}",
        format,
        preprocessing=preprocessing,
        calibration=images,
    )
    if format == "transformers-js":
        print(f"{shown(file)}: a folder for the Hub and for transformers.js, its outputs are PyTorch's")
    else:
        print(f"{shown(file)}: {file.stat().st_size / 1e6:.2f} MB, its outputs are PyTorch's")
