"""sqzoo: tiny image classifiers made from SqueezeNet, with weights that can be checked and re-made."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqzoo.errors import SqzooError

__version__ = "0.1.0"

__all__ = ["SqzooError", "create_model", "get_weights", "list_models"]


def _is_command() -> bool:
    if sys.argv[:1] == ["-m"]:  # so it reads while `python -m NAME` looks for NAME
        words = sys.orig_argv
        return words[words.index("-m") + 1] == "sqzoo" if "-m" in words else False
    return Path(*sys.argv[:1]).stem == "sqzoo"


if TYPE_CHECKING or not _is_command():
    from sqzoo.registry import create_model, list_models
    from sqzoo.weights import get_weights
else:  # `sqzoo --help` must not wait seconds for torch: the command line imports these when a command asks

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sqzoo import registry, weights

        return getattr(weights if name == "get_weights" else registry, name)
