"""`sqzoo doctor`."""

import json
from typing import Annotated

import typer


def run(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> int:
    """Show what is installed, what is missing and how to get it, and where files are kept.

    Exit code 1 if something essential is broken, such as a damaged weights file.

    Examples:
    ```
    sqzoo doctor
    sqzoo doctor --json
    ```
    """
    from sqzoo.doctor import examine

    result = examine()
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        for part, facts in result.items():
            print(part)
            for name, value in facts.items():
                print(f"  {name:22} {value}")
    return 1 if result["essential"]["broken"] else 0
