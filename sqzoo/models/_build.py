"""The one builder behind all entry points: timm's, with verified and strict loading of our own weights."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from timm.models import build_model_with_cfg, generate_default_cfgs

from sqzoo.errors import UnknownArgumentError, WeightsError, did_you_mean
from sqzoo.models._base import ZooModel
from sqzoo.weights import CIFAR10_CLASSES, fit, get_weights, load_state, tags

# What timm's builder itself takes; anything else must be an argument of the model.
_TIMM_ARGUMENTS = {"features_only", "out_indices", "feature_cls", "cache_dir", "pretrained_model_args"}
_SOURCES = ("file", "url", "hf_hub_id", "state_dict")
_FIRST_CONV = "features.0"


def configs(cls: type[ZooModel], architecture: str, **extra: Any) -> Any:
    """Return timm's `default_cfgs` of an architecture, made from the manifest: one for each of its tags."""
    trunk = cls(device="meta").features  # type: ignore[call-arg]
    base: dict[str, Any] = {
        "num_classes": 10,
        "input_size": (3, 224, 224),
        "pool_size": _pool_size(trunk, (3, 224, 224)),
        "crop_pct": 0.875,  # with 224 this is the paper's resize to 256 and centre crop
        "interpolation": "bilinear",
        "first_conv": _FIRST_CONV,
        "classifier": cls.classifier_name,
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
            "pool_size": _pool_size(trunk, entry.input_size),
            "crop_pct": entry.crop_pct,
            "interpolation": entry.interpolation,
            "mean": entry.mean,
            "std": entry.std,
            "num_classes": entry.num_classes,
            "license": entry.licence,
        }
    return generate_default_cfgs(result or {architecture: base})


def build(
    cls: type[ZooModel],
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
    theirs = any((pretrained_cfg_overlay or {}).get(key) for key in _SOURCES)
    ours = pretrained and not theirs and (pretrained_cfg is None or isinstance(pretrained_cfg, str))
    if ours or isinstance(pretrained_cfg, str):  # a tag's own arguments, unless the caller gives others
        tag = get_weights(f"{architecture}.{pretrained_cfg}" if pretrained_cfg else architecture)
        args = tag.recipe["model_args"] | args
    factory: Callable[..., nn.Module] = cls
    if ours:
        factory = _loading_factory(cls, f"{architecture}.{pretrained_cfg}" if pretrained_cfg else architecture)
    model: nn.Module = build_model_with_cfg(
        factory,
        architecture,
        pretrained and not ours,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=complete_or_raise,
        # A fresh dict each time, since timm changes it; all stages, since its default expects five.
        feature_cfg={"out_indices": tuple(range(len(cls.taps))), "flatten_sequential": True},
        **args,
    )
    return model.eval() if pretrained else model


def complete_or_raise(state: dict[str, torch.Tensor], model: ZooModel) -> dict[str, torch.Tensor]:
    """Load the caller's weights strictly, but for a head of another size that was asked for; return them for timm.

    timm loads them once more, but drops all strictness where the number of classes differs or features are asked for:
    it would leave a missing or misnamed trunk random.
    """
    fit(model, state, "The weights file", model.classifier_name, _FIRST_CONV)
    head = f"{model.classifier_name}.weight"
    stated = model.pretrained_cfg["num_classes"]  # type: ignore[index]
    found = state[head].shape[0] if head in state else 0
    if model.num_classes == stated != found:
        raise WeightsError(
            f"The weights file has {found} classes in {head}, its configuration states {stated}; correct num_classes "
            "in pretrained_cfg, or give the file that belongs to it."
        )
    return state


def _loading_factory(cls: type[ZooModel], tag: str) -> Callable[..., nn.Module]:
    """Return a constructor that also loads the tag, before timm may wrap the model for features."""
    entry = get_weights(tag)

    def construct(**args: Any) -> nn.Module:
        model = cls(**args)
        fit(model, load_state(entry, model.state_dict()), entry.tag, cls.classifier_name, _FIRST_CONV)
        if entry.calibration and model.num_classes == entry.num_classes:
            model.calibration = {key: entry.calibration[key] for key in ("temperature", "threshold")}
        return model

    return construct


def _pool_size(trunk: nn.Module, input_size: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of the trunk's last map; unpadded and ceiling pools make it other than side / 16."""
    height, width = trunk(torch.empty(1, *input_size, device="meta")).shape[2:]
    return height, width
