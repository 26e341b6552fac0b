"""sqzoo: tiny image classifiers made from SqueezeNet, with weights that can be checked and re-made."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqzoo.errors import SqzooError

__version__ = "0.1.0"

__all__ = ["SqzooError", "create_model", "get_weights", "list_models", "optimize"]


def _is_command() -> bool:
    if sys.argv[:1] == ["-m"]:  # so it reads while `python -m NAME` looks for NAME
        words = sys.orig_argv
        return words[words.index("-m") + 1] == "sqzoo" if "-m" in words else False
    return Path(*sys.argv[:1]).stem == "sqzoo"


if TYPE_CHECKING or not _is_command():
    from sqzoo.registry import create_model, list_models
    from sqzoo.weights import get_weights


def __getattr__(name: str) -> Any:
    # What few users need comes when it is asked for; for the command line all does, or `sqzoo --help` would wait for
    # torch.
    places = {"optimize": "deploy.optimize", "get_weights": "weights"} | dict.fromkeys(
        ("create_model", "list_models"), "registry"
    )
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{places[name]}"), name)
