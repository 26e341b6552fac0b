"""`sqzoo train`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sqzoo.cli._options import Trunk, argument, option
from sqzoo.errors import ArgumentError


def run(
    model: Annotated[str, argument("Architecture, such as sq1.")],
    recipe: Annotated[
        str | None,
        option("paper_cifar10, held_out_cifar10 or ft_cifar10 (default: held_out_cifar10; for your images: images)."),
    ] = None,
    seed: Annotated[int | None, option("Random seed (default: 0).")] = None,
    folder: Annotated[str | None, option("Run folder (default: runs/MODEL-RECIPE-SEED).", "--run")] = None,
    data: Annotated[
        str | None,
        option(
            "Folder of your images, FOLDER/CLASS/*.jpg, or a dataset ORG/NAME on the Hub; or a CIFAR-10 folder "
            "(default: CIFAR-10 in $SQZOO_CIFAR10, else from the Hub)."
        ),
    ] = None,
    labels: Annotated[
        str | None, option("CSV file with the images' names and classes, where the folders are not the classes.")
    ] = None,
    all_layers: Annotated[
        bool, typer.Option("--all-layers", help="After the head, train all layers on your images.")
    ] = False,
    val_fraction: Annotated[float, typer.Option(help="Fraction of each class of your images to validate on.")] = 0.2,
    start: Annotated[
        str | None,
        option(
            "Backbone to start from: imagenet, a weights tag or a file (default: imagenet; for your images the "
            "embedded weights if it cannot be had)."
        ),
    ] = None,
    trunk: Trunk = None,
    cache: Annotated[str | None, option("Folder for the frozen backbone's features (default: in memory).")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or auto: the faster one on the device.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile.")] = False,
    changes: Annotated[
        list[str] | None,
        option("Change a field of the recipe, such as lr=0.0005; may be repeated.", "--set", metavar="FIELD=JSON"),
    ] = None,
) -> None:
    """Train by a recipe on CIFAR-10, or on your own images; resume a stopped run.

    Examples:
    ```
    sqzoo train sq1 --recipe ft_cifar10 --device cuda
    sqzoo train sq1 --recipe paper_cifar10 --seed 1
    sqzoo train sq1 --data photos
    sqzoo train sq1 --data photos --labels photos/labels.csv
    sqzoo train sq1 --data photos --all-layers --run runs/photos --set lr=0.0001
    torchrun --nproc-per-node 2 -m -- sqzoo train sq1 --recipe ft_cifar10 --run runs/mine
    ```
    """
    from sqzoo.data import holds_cifar10
    from sqzoo.environment import check_device, require

    require("scipy", "train", "Training")
    check_device(device)
    fields = _fields(changes or [])
    for name, value in {"seed": seed, "start": start}.items():
        if value is not None and fields.setdefault(name, value) != value:
            raise ArgumentError(f"--{name} and --set {name} differ; give one of them.")
    options: dict[str, Any] = {"trunk": trunk, "cache": cache, "device": device, "precision": precision}
    try:
        if data is not None and not holds_cifar10(Path(data)):
            if compile:
                raise ArgumentError(
                    "--compile is for CIFAR-10, runs on your images are too short for it; leave it out."
                )
            options |= {
                "labels": labels,
                "all_layers": all_layers,
                "val_fraction": val_fraction,
                "recipe_name": recipe,
            }
            _own_images(model, data, folder, fields, options)
        elif all_layers or labels:
            raise ArgumentError(
                "--all-layers and --labels are for a folder of your images in --data; on CIFAR-10 give --recipe "
                "ft_cifar10."
            )
        else:
            _cifar10(model, recipe or "held_out_cifar10", data, folder, fields, options | {"compile": compile})
    except KeyboardInterrupt:
        print("\nThe same command resumes after the last finished epoch.", file=sys.stderr)
        raise


def _own_images(model: str, data: str, folder: str | None, fields: dict[str, Any], options: dict[str, Any]) -> None:
    from sqzoo.own_images.model import next_commands
    from sqzoo.own_images.training import train_on_images

    path = Path(folder or f"runs/{model}-{Path(data).resolve().name}-{fields.get('seed', 0)}")
    result = train_on_images(model, data, path, **options, **fields)
    scores = [f"{name.replace('_', ' ')} {stage['val']['top1']:.1f} %" for name, stage in result["stages"].items()]
    by_stage = f" ({', '.join(scores)}; kept: {result['chosen'].replace('_', ' ')})" if len(scores) > 1 else ""
    val = result["val"]
    print(
        f"{path}: {val['top1']:.1f} % of {val['images']} validation images right{by_stage}; report: {path}/report.html"
    )
    if "test" in result:
        print(f"Of {result['test']['images']} test images, which chose nothing: {result['test']['top1']:.1f} % right")
    if "all_layers" not in result["stages"]:
        print("Often better, and slower: the same command with --all-layers")
    print("Next:", *next_commands(path, result["images"], data if Path(data).is_dir() else None), sep="\n  ")


def _cifar10(
    model: str, name: str, data: str | None, folder: str | None, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    from sqzoo.data import cifar10
    from sqzoo.registry import check_name
    from sqzoo.train import recipe, train
    from sqzoo.train.distributed import rank

    check_name(model)
    plan = recipe(name, model, **fields)
    path = Path(folder or f"runs/{model}-{name}-{plan.seed}")
    result = train(plan, cifar10("train", data), cifar10("test", data), path, **options)
    test = result["test"]
    if rank() == 0:
        print(f"{path}: epoch {result['epoch']}, test top-1 {test['top1']:.2f} %, loss {test['loss']:.4f}")


def _fields(changes: list[str]) -> dict[str, Any]:
    """Parse FIELD=JSON words."""
    from sqzoo.train.recipes import check_fields

    fields: dict[str, Any] = {}
    for change in changes:
        key, _, value = change.partition("=")
        try:
            fields[key] = json.loads(value)
        except ValueError as e:
            raise ArgumentError(f"--set {change!r} is not FIELD=JSON; write it like --set lr=0.001.") from e
    check_fields(fields)
    return fields
