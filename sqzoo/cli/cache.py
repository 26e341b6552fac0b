"""`sqzoo cache`."""

from typing import Annotated

import typer


def run(
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read and hash everything; exit code 1 where something is damaged."),
    ] = False,
    remove: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Remove a trunk or Hub model from the cache.", show_default=False),
    ] = None,
) -> int:
    """List, verify or remove what is kept on this machine.

    Examples:
    ```
    sqzoo cache --verify
    sqzoo cache --remove squeezenet1_1
    ```
    """
    from sqzoo import cache
    from sqzoo.errors import shown

    if remove:
        gone = cache.remove(remove)
        print(f"removed {gone.name}, {gone.size / 1e6:.2f} MB, from {shown(gone.path)}")
        return 0
    damaged = 0
    for each in cache.entries():
        wrong = each.damage() if verify else None
        damaged += wrong is not None
        state = f"  {wrong or 'intact'}" if verify else ""
        print(f"{each.kind:8} {shown(each.name):32} {each.size / 1e6:8.2f} MB  {shown(each.path)}{state}")
    return 1 if damaged else 0
