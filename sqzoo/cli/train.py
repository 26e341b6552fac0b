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
    recipe: Annotated[str, typer.Option(help="paper, paper_held_out or finetune.")] = "paper",
    folder: Annotated[
        str | None, typer.Option("--run", help="Run folder (default: runs/MODEL-RECIPE-SEED).", show_default=False)
    ] = None,
    data: _options.Data = None,
    trunk: _options.Trunk = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Folder for the frozen trunk's features (default: in memory).", show_default=False),
    ] = None,
    device: str = "cpu",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=JSON", help="Change the recipe.", show_default=False)
    ] = None,
) -> None:
    """Train a model by a recipe, or go on with a stopped run.

    Examples:
    ```
    sqzoo train sq1 --recipe paper
    sqzoo train sq1 --recipe finetune --run runs/mine --set lr=0.001
    torchrun --nproc-per-node 2 -m sqzoo train sq1 --recipe finetune
    ```
    """
    from sqzoo.data import cifar10
    from sqzoo.registry import check_name
    from sqzoo.train import recipe as make_recipe
    from sqzoo.train import train
    from sqzoo.train.distributed import rank

    for name in model.split("+"):
        check_name(name)
    plan = make_recipe(recipe, model, **_fields(changes or []))
    place = Path(folder or f"runs/{plan.model}-{recipe}-{plan.seed}")
    try:
        result = train(
            plan, cifar10("train", data), cifar10("test", data), place, trunk=trunk, cache=cache, device=device
        )
    except KeyboardInterrupt:
        print("\nThe same command goes on from the last finished epoch.", file=sys.stderr)
        raise
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
