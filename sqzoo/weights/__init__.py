"""Weights: the manifest, the embedded files, the ImageNet trunks, and the one way into a model."""

from sqzoo.weights.loading import load_state, load_strict, read_verified
from sqzoo.weights.manifest import CIFAR10_CLASSES, Entry, get_weights, read_manifest, tags
from sqzoo.weights.trunks import TRUNKS, load_trunk, trunk_source

__all__ = [
    "CIFAR10_CLASSES",
    "TRUNKS",
    "Entry",
    "get_weights",
    "load_state",
    "load_strict",
    "load_trunk",
    "read_manifest",
    "read_verified",
    "tags",
    "trunk_source",
]
