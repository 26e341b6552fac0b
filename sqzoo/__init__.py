"""sqzoo: tiny image classifiers made from SqueezeNet, with weights that can be checked and re-made."""

from importlib import import_module
from typing import Any

from sqzoo.errors import SqzooError
from sqzoo.registry import create_model, list_models
from sqzoo.weights import get_weights

__version__ = "0.1.0"

__all__ = ["SqzooError", "create_model", "get_weights", "list_models", "optimize"]


def __getattr__(name: str) -> Any:
    if name == "optimize":  # imported where it is first used, to keep `import sqzoo` light
        return import_module("sqzoo.optimization").optimize
    raise AttributeError(f"module 'sqzoo' has no attribute {name!r}")
