"""torch.hub entry points: `torch.hub.load("org/sqzoo", "sq1", pretrained=True, trust_repo=True)`."""

import logging as _logging
import pathlib as _pathlib
from typing import Any as _Any

import sqzoo as _sqzoo

dependencies = ["torch", "torchvision", "timm", "huggingface_hub", "safetensors"]

_used, _own = (_pathlib.Path(file).resolve().parent for file in (_sqzoo.__path__[0], __file__))
if _used != _own:  # Python imports a package once, whatever revision torch.hub was asked for
    _logging.getLogger("sqzoo").warning(
        "sqzoo %s in %s is already imported and is used, not the one in %s; load that in a new process.",
        _sqzoo.__version__,
        _used,
        _own,
    )


def _create(name: str, pretrained: bool, weights: str | None, model_args: dict[str, _Any]) -> _Any:
    if weights is not None:
        name, pretrained = (weights if "." in weights else f"{name}.{weights}"), True
    return _sqzoo.create_model(name, pretrained, **model_args)


def squeezenet_cifar(pretrained: bool = False, weights: str | None = None, **model_args: _Any) -> _Any:
    """SqueezeNet 1.1 with a 10-way last layer, 727,626 parameters (paper, Table 2).

    pretrained: load the default weights. weights: a tag, such as "paper_cifar10", instead of the default.
    model_args: num_classes, in_chans, global_pool, drop_rate, pool2, pool3, features_only.
    """
    return _create("squeezenet_cifar", pretrained, weights, model_args)


def sq1(pretrained: bool = False, weights: str | None = None, **model_args: _Any) -> _Any:
    """Sq-1: SqueezeNet 1.1's trunk, a 1x1 convolution and two linear layers, 792,618 parameters (paper, Table 3).

    pretrained: load the default weights. weights: a tag, such as "paper_cifar10", instead of the default.
    model_args: num_classes, in_chans, global_pool, width, mid, drop_rate, logit_drop_rate, mid_relu, pool2, pool3,
    features_only.
    """
    return _create("sq1", pretrained, weights, model_args)


def fire_next(pretrained: bool = False, weights: str | None = None, **model_args: _Any) -> _Any:
    """Fire-Next: SqueezeNet 1.1 with a SqueezeNext block for its last Fire module, 691,018 parameters (paper, Table 2).

    pretrained: load the default weights. weights: a tag, such as "paper_cifar10", instead of the default.
    model_args: num_classes, in_chans, global_pool, width, reduction, add, batch_norm, pool2, pool3, features_only.
    """
    return _create("fire_next", pretrained, weights, model_args)


def alexnet_cifar(pretrained: bool = False, weights: str | None = None, **model_args: _Any) -> _Any:
    """AlexNet with a 10-way last layer, 57,044,810 parameters, the paper's baseline (Table 2).

    pretrained: load the default weights. weights: a tag instead of the default.
    model_args: num_classes, in_chans, global_pool, drop_rate, features_only.
    """
    return _create("alexnet_cifar", pretrained, weights, model_args)
