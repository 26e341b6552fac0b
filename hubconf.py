"""torch.hub entry points: `torch.hub.load("org/sqzoo", "sq1", pretrained=True, trust_repo=True)`.

`weights="paper_cifar10"` loads another tag than the default one; further arguments are the architecture's.
"""

from sqzoo.registry import hub_entry as _hub_entry
from sqzoo.registry import warn_of_another_copy as _warn_of_another_copy

dependencies = ["torch", "torchvision", "timm", "huggingface_hub", "safetensors"]

_warn_of_another_copy(__file__)

alexnet_cifar = _hub_entry("alexnet_cifar")
fire_next = _hub_entry("fire_next")
sq1 = _hub_entry("sq1")
squeezenet_cifar = _hub_entry("squeezenet_cifar")
