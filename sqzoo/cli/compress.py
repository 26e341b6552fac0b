"""`sqzoo compress`."""

from typing import Annotated

import typer

from sqzoo.cli._options import Data, Trunk, argument, complete_tag


def run(
    parent: Annotated[str, argument("Weights tag, or the folder of a finished run.", autocompletion=complete_tag)],
    tag: Annotated[str, argument("New tag, such as sq1.tiny_cifar10.")],
    size: Annotated[int, typer.Option(metavar="BYTES", min=1, help="Maximum file size in bytes.")] = 340_000,
    images: Annotated[int, typer.Option(min=1, help="Training images whose activations steer the rounding.")] = 512,
    root: Annotated[str, typer.Option(metavar="FOLDER", help="Checkout to add the weights to.")] = ".",
    data: Data = None,
    trunk: Trunk = None,
) -> None:
    """Compress a model's weights into a new tag of the package, and measure the accuracy.

    Examples:
    ```
    sqzoo compress sq1.ft_cifar10 sq1.tiny_cifar10
    sqzoo compress runs/alexnet_cifar-fc-0 alexnet_cifar.tiny_cifar10 --size 6000000
    ```
    """
    import sys

    from sqzoo.compress.make_tag import make_tiny
    from sqzoo.data import cifar10

    record = make_tiny(
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
        f"{tag}: {record['bytes']:,} bytes of {record['parent_bytes']:,}, test top-1 {record['test']['top1']:.2f} %, "
        f"parent {record['parent']['test_top1']:.2f} %"
    )
