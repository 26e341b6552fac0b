"""The one builder behind all entry points: timm's, with verified and strict loading of our own weights."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from timm.models import build_model_with_cfg, generate_default_cfgs

from sqzoo.errors import UnknownArgumentError, WeightsError, did_you_mean
from sqzoo.weights import CIFAR10_CLASSES, fit, get_weights, load_state, tags

# What timm's builder itself takes; anything else must be an argument of the model.
_TIMM_ARGUMENTS = {"features_only", "out_indices", "feature_cls", "cache_dir", "pretrained_model_args"}
_FIRST_CONV = "features.0"


def _pool_size(architecture: str, side: int) -> tuple[int, int]:
    """Side of the trunk's last map: unpadded and ceiling pools make it other than side / 16."""
    if architecture == "alexnet_cifar":
        for kernel, stride, padding in ((11, 4, 2), (3, 2, 0), (3, 2, 0), (3, 2, 0)):
            side = (side + 2 * padding - kernel) // stride + 1
    else:
        side = (side - 3) // 2 + 1
        for _ in range(3):
            side = -(-(side - 3) // 2) + 1
    return side, side


def configs(architecture: str, classifier: str, **extra: Any) -> Any:
    """Return timm's `default_cfgs` of an architecture, made from the manifest: one for each of its tags."""
    base: dict[str, Any] = {
        "num_classes": 10,
        "input_size": (3, 224, 224),
        "pool_size": _pool_size(architecture, 224),
        "crop_pct": 0.875,  # with 224 this is the paper's resize to 256 and centre crop
        "interpolation": "bilinear",
        "first_conv": _FIRST_CONV,
        "classifier": classifier,
        "label_names": CIFAR10_CLASSES,
        "paper_name": "COMP 551 MiniProject 4 (Flores, Pinto, McGowan, 2019)",
        **extra,
    }
    result: dict[str, dict[str, Any]] = {}
    for tag in tags(architecture):
        entry = get_weights(tag)
        result[tag] = base | {
            "file": str(entry.path),
            "input_size": entry.input_size,
            "pool_size": _pool_size(architecture, entry.input_size[1]),
            "crop_pct": entry.crop_pct,
            "interpolation": entry.interpolation,
            "mean": entry.mean,
            "std": entry.std,
            "num_classes": entry.num_classes,
            "license": entry.licence,
        }
    return generate_default_cfgs(result or {architecture: base})


def build(
    cls: type[nn.Module],
    architecture: str,
    pretrained: bool,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **args: Any,
) -> nn.Module:
    """Build a model, with the weights of a tag where `pretrained`, which puts it in evaluation mode.

    `pretrained_cfg` is a tag (a string: ours, from the manifest) or a timm configuration (the caller's own file or
    Hub repository, which timm reads and we compare with the model).
    """
    known = [*inspect.signature(cls).parameters]
    for name in args.keys() - set(known) - _TIMM_ARGUMENTS:
        raise UnknownArgumentError(
            f"{architecture} has no argument {name!r}.{did_you_mean(name, known)} It takes: {', '.join(known)}."
        )
    ours = pretrained and not isinstance(pretrained_cfg, dict) and not _names_source(pretrained_cfg_overlay)
    if pretrained_cfg is not None and not isinstance(pretrained_cfg, str | dict):
        ours = False
    factory: Callable[..., nn.Module] = cls
    if ours:
        tag = f"{architecture}.{pretrained_cfg}" if pretrained_cfg else architecture
        factory = _loading_factory(cls, tag)

    def complete_or_raise(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
        # timm drops strictness for the whole file when the head differs, so the names are compared here.
        missing = sorted(
            k for k in model.state_dict().keys() - state.keys() if not k.startswith(f"{_classifier(architecture)}.")
        )
        if missing:
            raise WeightsError(f"The weights file lacks {missing} of {architecture}; give a complete one.")
        return state

    model: nn.Module = build_model_with_cfg(
        factory,
        architecture,
        pretrained and not ours,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=complete_or_raise,
        # A fresh dict each time, since timm changes it; all stages, since its default expects five.
        feature_cfg={
            "out_indices": tuple(range(len(cls.taps))),  # type: ignore[attr-defined]
            "flatten_sequential": True,
        },
        **args,
    )
    return model.eval() if pretrained else model


def _loading_factory(cls: type[nn.Module], tag: str) -> Callable[..., nn.Module]:
    """Return a constructor that also loads the tag, before timm may wrap the model for features."""
    entry = get_weights(tag)

    def construct(**args: Any) -> nn.Module:
        model = cls(**args)
        fit(model, load_state(entry), entry.tag, _classifier(entry.architecture), _FIRST_CONV)
        return model

    return construct


def _classifier(architecture: str) -> str:
    return {
        "squeezenet_cifar": "classifier.1",
        "sq1": "fc2",
        "fire_next": "classifier",
        "alexnet_cifar": "classifier.6",
    }[architecture]


def _names_source(overlay: dict[str, Any] | None) -> bool:
    return bool(overlay) and any((overlay or {}).get(k) for k in ("file", "url", "hf_hub_id", "state_dict"))
