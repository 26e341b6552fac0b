"""`sqzoo list`."""

from typing import Annotated

import typer


def run(pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'sq*'.")] = "*") -> None:
    """List models and weights tags.

    Examples:
    ```
    sqzoo list
    sqzoo list 'sq*'
    ```
    """
    from sqzoo.errors import UnknownModelError
    from sqzoo.registry import list_models
    from sqzoo.weights import get_weights

    names = list_models(pattern)
    if not names:
        raise UnknownModelError(f"No model matches {pattern!r}; there are: {', '.join(list_models())}.")
    for name in names:
        print(name)
        for tag in list_models(f"{name}.*", pretrained=True):
            entry = get_weights(tag)
            print(
                f"  {tag}  {entry.metrics['test_top1']:.2f} %  {entry.params:,} parameters  {entry.size / 1e6:.2f} MB"
            )
