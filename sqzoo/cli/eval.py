"""`sqzoo eval`."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from sqzoo.cli import _options


class Split(StrEnum):
    """CIFAR-10's splits."""

    train = "train"
    test = "test"


def run(
    tag: _options.Tag,
    data: _options.Data = None,
    split: Annotated[Split, typer.Option(help="Images to evaluate on.")] = Split.test,
    backend: _options.Backend = None,
    trunk: _options.Trunk = None,
) -> None:
    """Evaluate a tag's accuracy and loss on CIFAR-10; prints JSON.

    Examples:
    ```
    sqzoo eval sq1.ft_cifar10
    sqzoo eval fire_next --data cifar-10-batches-py --backend auto
    ```
    """
    import time
    from dataclasses import asdict

    from sqzoo.data import cifar10
    from sqzoo.evaluation import evaluate
    from sqzoo.weights import get_weights

    entry = get_weights(tag)
    images = cifar10(split.value, data)
    model = _options.network(entry.tag, trunk, backend, batch_size=8)
    began = time.perf_counter()
    result = {"tag": entry.tag, "split": split.value} | asdict(evaluate(model, images))
    result |= {"seconds": round(time.perf_counter() - began, 2), "digest": images.digest, "sha256": entry.sha256}
    print(json.dumps(result, indent=1))
