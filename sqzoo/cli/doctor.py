"""`sqzoo doctor`."""

import json
from typing import Annotated

import typer


def run(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> int:
    """Say what is installed, where things are kept, what is missing and how to get it.

    Exit code 1 where something essential is broken, such as a damaged weights file.

    Examples:
    ```
    sqzoo doctor
    sqzoo doctor --json
    ```
    """
    from sqzoo.doctor import examine

    found = examine()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        for part, facts in found.items():
            print(part)
            for name, value in facts.items():
                print(f"  {name:22} {value}")
    return 1 if found["essential"]["broken"] else 0
