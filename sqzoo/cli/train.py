"""`sqzoo train`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sqzoo.cli import _options
from sqzoo.errors import ArgumentError


def run(
    model: Annotated[str, typer.Argument(help="Architecture, such as sq1.", show_default=False)],
    recipe: Annotated[
        str | None,
        typer.Option(help="paper, paper_held_out, finetune, ... (default: paper; pictures for a folder of yours)."),
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--run", help="Run folder (default: runs/MODEL-RECIPE-SEED).", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder of your pictures, FOLDER/CLASS/*.jpg, or a data set ORG/NAME on the Hub; or a CIFAR-10 folder "
            "(default: CIFAR-10 in $SQZOO_CIFAR10, else from the Hub).",
            show_default=False,
        ),
    ] = None,
    all_layers: Annotated[
        bool, typer.Option("--all-layers", help="After the head, train all layers on your pictures.")
    ] = False,
    held_out: Annotated[float, typer.Option(help="Share of each class of your pictures that is held out.")] = 0.2,
    start: Annotated[
        str | None,
        typer.Option(
            help="Trunk for your pictures: imagenet, a weights tag or a file (default: imagenet, or the embedded "
            "weights where it cannot be had).",
            show_default=False,
        ),
    ] = None,
    trunk: _options.Trunk = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Folder to keep the frozen trunk's features in (default: not kept).", show_default=False),
    ] = None,
    device: str = "cpu",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=JSON", help="Change the recipe.", show_default=False)
    ] = None,
) -> None:
    """Train a model on your own pictures, or on CIFAR-10 by a recipe, or go on with a stopped run.

    Examples:
    ```
    sqzoo train sq1 --data photos
    sqzoo train sq1 --data photos --all-layers --run runs/photos
    sqzoo train sq1 --recipe paper
    sqzoo train sq1 --recipe finetune --run runs/mine --set lr=0.001
    torchrun --nproc-per-node 2 -m -- sqzoo train sq1 --recipe finetune --run runs/mine
    ```
    """
    from sqzoo.data import holds_cifar10
    from sqzoo.extras import require

    require("scipy", "train", "Training")
    fields = _fields(changes or [])
    try:
        if data is not None and not holds_cifar10(Path(data)):
            fields = {"start": start} | fields | {"all_layers": all_layers, "held_out": held_out, "recipe_name": recipe}
            _pictures(model, data, folder, fields, trunk, cache, device)
        elif all_layers or start:
            raise ArgumentError(
                "--all-layers and --start go with --data and a folder of your pictures; for CIFAR-10 give --recipe "
                "finetune, or --set start=..."
            )
        else:
            _cifar10(model, recipe or "paper", data, folder, fields, trunk, cache, device)
    except KeyboardInterrupt:
        print("\nThe same command goes on from the last finished epoch.", file=sys.stderr)
        raise


def _pictures(
    model: str,
    data: str,
    folder: str | None,
    options: dict[str, Any],
    trunk: str | None,
    cache: str | None,
    device: str,
) -> None:
    from sqzoo.train.pictures import train_on_pictures

    place = Path(folder or f"runs/{model}-{Path(data).resolve().name}-{options.get('seed', 0)}")
    result = train_on_pictures(model, data, place, trunk=trunk, cache=cache, device=device, **options)
    right = result["held_out"]
    print(f"{place}: {right['top1']:.1f} % of {right['images']} held-out pictures right; report: {place}/report.html")
    print(f"Use it: sqzoo predict --model {place} PICTURE")


def _cifar10(
    model: str,
    recipe: str,
    data: str | None,
    folder: str | None,
    fields: dict[str, Any],
    trunk: str | None,
    cache: str | None,
    device: str,
) -> None:
    from sqzoo.data import cifar10
    from sqzoo.registry import check_name
    from sqzoo.train import recipe as make_recipe
    from sqzoo.train import train
    from sqzoo.train.distributed import rank

    for name in model.split("+"):
        check_name(name)
    plan = make_recipe(recipe, model, **fields)
    place = Path(folder or f"runs/{plan.model}-{recipe}-{plan.seed}")
    result = train(plan, cifar10("train", data), cifar10("test", data), place, trunk=trunk, cache=cache, device=device)
    test = result["test"]
    if rank() > 0:
        return
    print(f"{place}: epoch {result['epoch']}, test top-1 {test['top1']:.2f} %, loss {test['loss']:.4f}")


def _fields(changes: list[str]) -> dict[str, Any]:
    """Return the fields of FIELD=JSON words."""
    fields = {}
    for change in changes:
        key, _, value = change.partition("=")
        try:
            fields[key] = json.loads(value)
        except ValueError as e:
            raise ArgumentError(f"--set {change!r} is not FIELD=JSON; write, say, --set lr=0.001.") from e
    if "sizes" in fields:
        fields["sizes"] = tuple((side, epochs) for side, epochs in fields["sizes"])
    return fields
