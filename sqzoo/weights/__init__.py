"""Weights: the manifest, the embedded files, the ImageNet trunks; nothing imported here imports torch."""

from sqzoo.weights.manifest import CIFAR10_CLASSES, Entry, get_weights, read_manifest, tags
from sqzoo.weights.trunks import TRUNKS, load_trunk, trunk_name, trunk_source

__all__ = [
    "CIFAR10_CLASSES",
    "TRUNKS",
    "Entry",
    "get_weights",
    "load_trunk",
    "read_manifest",
    "tags",
    "trunk_name",
    "trunk_source",
]
