"""Options and arguments that several commands share, and what the shell completes for them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import nn


def complete_tag(incomplete: str) -> list[str]:
    """Return the weights tags that begin so; without torch, which would take seconds at each press of the key."""
    manifest = Path(__file__).parents[1] / "weights" / "manifest.json"
    tags = [entry["tag"] for entry in json.loads(manifest.read_text(encoding="utf-8"))["weights"]]
    return [tag for tag in tags if tag.startswith(incomplete)]


Tag = Annotated[
    str, typer.Argument(metavar="TAG", help="Weights tag, such as sq1.ft_cifar10.", autocompletion=complete_tag)
]
Model = Annotated[
    str,
    typer.Option("--model", help="Model, weights tag, run folder or hf-hub:ORG/NAME.", autocompletion=complete_tag),
]
Trunk = Annotated[
    str | None,
    typer.Option(help="File or folder with the ImageNet trunk, for tags stored as a head.", show_default=False),
]
Data = Annotated[
    str | None, typer.Option(help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub).", show_default=False)
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="Runtime: auto (the fastest here, measured), onnxruntime, openvino, ... (default: PyTorch as it is).",
        show_default=False,
    ),
]


def network(model: str, trunk: str | None, backend: str | None = None, batch_size: int = 1) -> "nn.Module":
    """Return the pretrained model that `--model` names, behind the runtime that `--backend` names."""
    from sqzoo.registry import create_model, model_name

    found = create_model(model_name(model), pretrained=True, trunk=trunk)
    if backend is None:
        return found
    from sqzoo.optimization import optimize

    return optimize(found, backend, batch_size)
