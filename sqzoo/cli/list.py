"""`sqzoo list`."""

import json
from enum import StrEnum
from typing import Annotated

import typer


class Column(StrEnum):
    """What the list can be sorted by."""

    tag = "tag"
    top1 = "top1"
    parameters = "parameters"
    mflops = "mflops"
    ms = "ms"
    size = "size"
    mb = "mb"


def run(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'sq*' or '*.ft_cifar10'.")] = "*",
    sort: Annotated[Column, typer.Option(help="Column to sort by, the best first.")] = Column.tag,
    ms: Annotated[bool, typer.Option("--ms", help="Measure milliseconds an image on this machine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List models and weights tags with their figures on CIFAR-10's test images.

    MFLOPs are millions of multiply-adds for one image of the tag's size (pixels a side); MB is the file. The
    milliseconds are those of `sqzoo.optimize` for one image on all threads: about two seconds' measuring a size, once.

    Examples:
    ```
    sqzoo list
    sqzoo list 'sq*' --sort top1
    sqzoo list '*.tiny_*' --ms
    sqzoo list --json
    ```
    """
    from sqzoo.errors import UnknownModelError
    from sqzoo.registry import list_models, multiply_adds
    from sqzoo.weights import get_weights

    architectures, every = list_models(), list_models("*.*", pretrained=True)
    names = list_models(pattern) if "." not in pattern else []
    tags = [t for n in names for t in list_models(f"{n}.*", pretrained=True)]
    tags = tags or list_models(pattern, pretrained=True)
    bare = [n for n in names if not list_models(f"{n}.*", pretrained=True)]
    if not tags and not bare:
        raise UnknownModelError(f"No model matches {pattern!r}; there are: {', '.join([*architectures, *every])}.")
    rows, times = [], _milliseconds(tags) if ms or sort is Column.ms else {}
    for tag in tags:
        entry = get_weights(tag)
        rows.append(
            {
                "tag": tag,
                "top1": entry.metrics["test_top1"],
                "parameters": entry.params,
                "mflops": round(multiply_adds(entry) / 1e6, 1),
                **({"ms": round(times[tag], 2)} if times else {}),
                "size": entry.resolution,
                "mb": round(entry.size / 1e6, 2),
            }
        )
    columns = [column for column in Column if times or column is not Column.ms]
    rows += [dict.fromkeys(columns, None) | {"tag": name} for name in bare]
    if sort is not Column.tag:
        best = -1 if sort is Column.top1 else 1
        rows.sort(key=lambda row: (row.get(sort.value) is None, best * (row.get(sort.value) or 0)))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("tag", no_wrap=True)
    for title in ("top-1, %", "parameters", "MFLOPs", *(["ms"] if times else []), "size, px", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        tag, top1, *rest = row.values()
        if top1 is None:
            table.add_row(tag, *["no weights", *[""] * (len(columns) - 2)])
        else:
            table.add_row(tag, f"{top1:.2f}", *(f"{value:,}" for value in rest))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width to keep to
    console.print(table)


def _milliseconds(tags: list[str]) -> dict[str, float]:
    """Return the time of an image for each tag; weights do not matter for it, so none are needed."""
    import torch

    from sqzoo.deploy.optimize import optimize
    from sqzoo.registry import create_model
    from sqzoo.weights import get_weights

    found: dict[tuple[str, int], float] = {}
    keys = {tag: (get_weights(tag).architecture, get_weights(tag).resolution) for tag in tags}
    for tag, key in keys.items():
        if key not in found:
            torch.manual_seed(0)  # the choice is remembered by the weights
            fast = optimize(create_model(tag))
            found[key] = fast.milliseconds[fast.backend]
    return {tag: found[key] for tag, key in keys.items()}
