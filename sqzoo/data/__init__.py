"""Read CIFAR-10 as uint8 arrays, and normalise images for a network."""

from sqzoo.data.cifar import Split, cifar10, holds_cifar10
from sqzoo.data.dataset import Dataset
from sqzoo.data.preprocessing import CIFAR10, IMAGENET, NORMALISATIONS, Normalise

__all__ = [
    "CIFAR10",
    "IMAGENET",
    "NORMALISATIONS",
    "Dataset",
    "Normalise",
    "Split",
    "cifar10",
    "holds_cifar10",
]
