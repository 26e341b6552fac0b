"""`sqzoo export`."""

from pathlib import Path
from typing import Annotated

import typer

from sqzoo.cli import _options


def run(
    model: Annotated[
        str,
        _options.argument("Model, weights tag, or saved model's folder.", autocompletion=_options.complete_tag),
    ],
    output: Annotated[
        str | None,
        _options.argument("File to write, or folder for transformers-js (default: the model's name)."),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="onnx, onnx-4bit, openvino, torch-export, safetensors-int8, transformers-js, executorch, litert, "
            "coreml, ncnn."
        ),
    ] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="Write FORMAT-int8: onnx, executorch, litert, coreml or ncnn in 8 bits.")
    ] = False,
    preprocessing: Annotated[
        bool, typer.Option("--preprocessing", help="Take uint8 images (N, H, W, 3), return probabilities.")
    ] = False,
    trunk: _options.Trunk = None,
    data: Annotated[
        str | None,
        _options.option(
            "Training images for int8 and 4bit: for a model of your own its folder, else CIFAR-10's "
            "(default: $SQZOO_CIFAR10, else the Hub)."
        ),
    ] = None,
) -> None:
    """Export a model for another runtime, and compare its outputs with PyTorch's.

    int8 and 4bit take their ranges from training images.

    Examples:
    ```
    sqzoo export sq1
    sqzoo export sq1 sq1.onnx --preprocessing
    sqzoo export fire_next fire_next.xml --format openvino
    sqzoo export sq1 sq1.tflite --format litert --int8
    sqzoo export sq1 runs/sq1 --format transformers-js
    sqzoo export runs/photos photos.onnx --int8 --data photos
    ```
    """
    from sqzoo.deploy.int8 import calibration_images
    from sqzoo.errors import shown
    from sqzoo.export import CALIBRATED, FORMATS, export
    from sqzoo.registry import create_model, model_name

    format += "-int8" if int8 and not format.endswith("-int8") else ""
    source = model_name(model)
    network = create_model(source, pretrained=True, trunk=trunk)
    is_folder = source.startswith("local-dir:")
    name = Path(source.removeprefix("local-dir:")).resolve().name if is_folder else model.rpartition("/")[2]
    images = calibration_images(network, root=data) if format in CALIBRATED else None
    target = output or f"{name}{FORMATS.get(format, '')}"
    file = export(network, target, format, preprocessing=preprocessing, calibration=images)
    if format == "transformers-js":
        print(f"{shown(file)}: a folder for the Hub and for transformers.js, same outputs as PyTorch's")
        return
    parts = [p for p in (file, file.with_suffix(".bin"), *file.rglob("*")) if p.is_file()]
    size = sum(p.stat().st_size for p in parts if p == file or format.startswith(("openvino", "ncnn", "coreml")))
    low = format in CALIBRATED or format == "safetensors-int8"
    checked = "not run here" if format.startswith("coreml") else f"{'close to' if low else 'same outputs as'} PyTorch's"
    print(f"{shown(file)}: {size / 1e6:.2f} MB, {checked}")
