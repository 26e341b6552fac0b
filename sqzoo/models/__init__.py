"""The architectures; importing this package registers them with timm."""

from sqzoo.models.alexnet_cifar import AlexNetCifar
from sqzoo.models.fire_next import FireNext
from sqzoo.models.sq1 import Sq1
from sqzoo.models.squeezenet_cifar import SqueezeNetCifar

__all__ = ["AlexNetCifar", "FireNext", "Sq1", "SqueezeNetCifar"]
