"""sqzoo: tiny image classifiers made from SqueezeNet, with weights that can be checked and re-made."""

from sqzoo.errors import SqzooError
from sqzoo.registry import create_model, list_models
from sqzoo.weights import get_weights

__version__ = "0.1.0"

__all__ = ["SqzooError", "create_model", "get_weights", "list_models"]
