"""`sqzoo list`."""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sqzoo.weights.manifest import Entry


class Column(StrEnum):
    """What the list can be sorted by."""

    tag = "tag"
    top1 = "top1"
    parameters = "parameters"
    mmacs = "mmacs"
    ms = "ms"
    size = "size"
    mb = "mb"


def run(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'sq*' or '*.ft_cifar10'.")] = "*",
    sort: Annotated[Column, typer.Option(help="Column to sort by, the best first.")] = Column.tag,
    ms: Annotated[bool, typer.Option("--ms", help="Measure milliseconds per image on this machine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the weights tags with their figures on CIFAR-10's test images.

    MMACs are millions of multiply-adds for one image at the tag's image size, in pixels per side; MB is the file's
    size. --ms shows the time that `sqzoo.optimize` takes per image on all threads, measured once per image size, in
    about two seconds.

    Examples:
    ```
    sqzoo list
    sqzoo list 'sq*' --sort top1
    sqzoo list '*.tiny_*' --ms
    sqzoo list --json
    ```
    """
    from fnmatch import fnmatchcase

    from sqzoo.errors import UnknownModelError
    from sqzoo.weights.manifest import architectures, read_manifest

    known = read_manifest()
    entries = [e for e in known.values() if any(fnmatchcase(name, pattern) for name in (e.tag, e.architecture))]
    if not entries:
        raise UnknownModelError(f"No model matches {pattern!r}; there are: {', '.join([*architectures(), *known])}.")
    times = _milliseconds(entries) if ms or sort is Column.ms else {}
    rows = [
        {
            "tag": entry.tag,
            "top1": entry.metrics["test_top1"],
            "parameters": entry.params,
            "mmacs": round(entry.macs / 1e6, 1),
            **({"ms": round(times[entry.tag], 2)} if times else {}),
            "size": entry.resolution,
            "mb": round(entry.size / 1e6, 2),
        }
        for entry in entries
    ]
    rows.sort(key=lambda row: row[sort], reverse=sort is Column.top1)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    titles = ["tag", "top-1, %", "parameters", "MMACs", *(["ms"] if times else []), "size, px", "MB"]
    cells = [[f"{row['tag']}", f"{row['top1']:.2f}", *(f"{v:,}" for v in list(row.values())[2:])] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for tag, *figures in (titles, *cells):
        print(f"{tag:{widths[0]}}", *(f"{f:>{w}}" for f, w in zip(figures, widths[1:], strict=True)), sep="  ")


def _milliseconds(entries: "Sequence[Entry]") -> dict[str, float]:
    """Return the time per image for each tag; weights do not matter for it, so none are needed."""
    import torch

    from sqzoo.deploy.optimize import optimize
    from sqzoo.registry import create_model

    measured: dict[tuple[str, int], float] = {}
    for entry in entries:
        key = entry.architecture, entry.resolution
        if key not in measured:
            torch.manual_seed(0)  # the choice is remembered by the weights
            fast = optimize(create_model(entry.tag))
            measured[key] = fast.milliseconds[fast.backend]
    return {entry.tag: measured[entry.architecture, entry.resolution] for entry in entries}
