"""`sqzoo compress`."""

from typing import Annotated

import typer

from sqzoo.cli import _options


def run(
    parent: Annotated[
        str,
        typer.Argument(
            help="Weights tag, or the folder of a finished run.",
            show_default=False,
            autocompletion=_options.complete_tag,
        ),
    ],
    tag: Annotated[str, typer.Argument(help="The new tag, such as sq1.tiny_cifar10.", show_default=False)],
    size: Annotated[int, typer.Option(metavar="BYTES", min=1, help="The file has at most so many bytes.")] = 340_000,
    images: Annotated[int, typer.Option(min=1, help="Training images whose activations steer the rounding.")] = 512,
    root: Annotated[str, typer.Option(metavar="FOLDER", help="Checkout whose package takes the weights.")] = ".",
    data: _options.Data = None,
    trunk: _options.Trunk = None,
) -> None:
    """Compress a network's weights into a new tag of the package, and measure what that costs.

    Examples:
    ```
    sqzoo compress sq1.ft_cifar10 sq1.tiny_cifar10
    sqzoo compress runs/alexnet_cifar-fc-0 alexnet_cifar.tiny_cifar10 --size 6000000
    ```
    """
    import sys

    from sqzoo.compress.make_tag import make_tiny
    from sqzoo.data import cifar10

    made = make_tiny(
        parent,
        tag,
        root,
        cifar10("train", data),
        cifar10("test", data),
        size=size,
        images=images,
        trunk=trunk,
        progress=lambda line: print(line, file=sys.stderr),
    )
    print(
        f"{tag}: {made['bytes']:,} bytes of {made['parent_bytes']:,}, test top-1 {made['test']['top1']:.2f} %, "
        f"parent {made['parent']['test_top1']:.2f} %"
    )
