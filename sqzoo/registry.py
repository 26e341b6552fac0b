"""Create and list models by name: a thin layer over timm's registry."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import timm
import torch.nn as nn
from timm.models import model_entrypoint

from sqzoo import __version__
from sqzoo import models as _models  # registers the architectures
from sqzoo.errors import ArgumentError, UnknownArgumentError, UnknownModelError, WeightsError, did_you_mean, shown, why
from sqzoo.models.build import source_cfg
from sqzoo.weights import get_weights, load_trunk, read_manifest, trunk_name, trunk_source
from sqzoo.weights.header import read_tensors
from sqzoo.weights.loading import read_verified
from sqzoo.weights.remote import Source, parse_source, read_config
from sqzoo.weights.untrusted import LARGEST, read_bytes

_logger = logging.getLogger("sqzoo")
_CLASSES = {getattr(_models, name).__module__: getattr(_models, name) for name in _models.__all__}


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """List the architectures, or with `pretrained` the weights tags, that match a shell pattern."""
    return [name for name in timm.list_models(pattern, pretrained=pretrained) if _is_ours(name)]


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    init: Literal["random", "imagenet"] = "random",
    trunk: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    **model_args: Any,
) -> nn.Module:
    """Create a model.

    Args:
        name: an architecture (`sq1`), a weights tag (`sq1.paper_cifar10`), or a model of ours that `sqzoo.hub` or timm
            saved, whose weights are loaded: "hf-hub:ORG/NAME", "hf-hub:ORG/NAME@REVISION" or "local-dir:FOLDER".
        pretrained: load the tag's weights, verified by SHA-256, and return the model in evaluation mode.
        num_classes: classes of the last layer, which is new where the weights have another number; 0 removes it.
        in_chans: channels of the images; the pretrained first convolution is adapted.
        init: "imagenet" starts an untrained model from torchvision's ImageNet trunk.
        trunk: file or folder with that trunk, for `init="imagenet"` and tags stored as head weights; by default that of
            the environment variable SQZOO_TRUNKS, torch.hub's cache or torchvision's download.
        revision: of an "hf-hub:" model: branch, tag or commit.
        token: Hub token, for private repositories.
        cache_dir: the Hub's cache folder.
        force_download: download a Hub model even if it is cached.
        model_args: the architecture's own arguments, and timm's (`features_only`, `out_indices`, `drop_rate`, ...).

    Raises:
        UnknownModelError: there is no such model or tag.
        UnknownArgumentError: the architecture has no such argument.
        ArgumentError: an argument's value is invalid.
        WeightsError: the weights are missing, damaged or of another model.
    """
    if init not in ("random", "imagenet"):
        raise ArgumentError(f"init must be 'random' or 'imagenet', not {init!r}.")
    if init == "imagenet" and model_args.get("features_only"):
        raise ArgumentError(
            "init='imagenet' needs the whole model, not features_only=True; take its forward_intermediates instead."
        )
    if model_args.get("checkpoint_path"):  # timm's own, which reads pickles
        raise UnknownArgumentError(
            "checkpoint_path is not taken; save_pretrained the model and name its folder as local-dir:FOLDER."
        )
    options = {"revision": revision, "token": token, "force_download": force_download}
    source = parse_source(name, cache_dir=None if cache_dir is None else str(cache_dir), **options)
    if source:
        return _from_source(source, num_classes, in_chans, model_args)
    check_name(name)
    with trunk_source(trunk):
        model: nn.Module = timm.create_model(name, pretrained, num_classes=num_classes, in_chans=in_chans, **model_args)
        if init == "imagenet" and not pretrained:
            start_from_imagenet(model, name.partition(".")[0])
    return model


def _from_source(source: Source, num_classes: int | None, in_chans: int | None, args: dict[str, Any]) -> nn.Module:
    """Build the model that a source's configuration describes, and load its weights."""
    config, source = read_config(source)
    architecture = config["architecture"]
    if architecture not in list_models():
        raise UnknownModelError(
            f"{source.where} holds a model {architecture!r}, which is not ours; load it with timm.create_model."
        )
    own = source_cfg(_CLASSES[model_entrypoint(architecture).__module__], source, config)
    given = {k: v for k, v in {"num_classes": num_classes, "in_chans": in_chans}.items() if v is not None}
    built = {"num_classes": config["num_classes"]} | config["model_args"]
    model: nn.Module = timm.create_model(
        architecture, True, pretrained_cfg=own, pretrained_model_args=built, **(built | args | given)
    )
    if getattr(model, "num_classes", None) == config["num_classes"]:
        model.ood_threshold = config["ood_threshold"]
    return model


def model_name(word: str) -> str:
    """Turn a word of the command line into a name for `create_model`: a path to a folder gets "local-dir:".

    Raises:
        UnknownModelError: the word is the bare name of a folder.
    """
    separators = [s for s in (os.sep, os.altsep) if s]
    if ":" in word or not os.path.isdir(word) or word.partition(".")[0] in list_models():
        return word
    if not any(s in word for s in separators) and word not in (os.curdir, os.pardir):
        raise UnknownModelError(
            f"No model {word!r}; for the folder of that name write {os.path.join(os.curdir, word)} or local-dir:{word}."
        )
    return f"local-dir:{word}"


def check_name(name: str) -> None:
    """Raise `UnknownModelError` unless `name` is an architecture or tag of ours."""
    architecture, _, tag = name.partition(".")
    known = list_models()
    if architecture not in known and os.path.isdir(name):
        raise UnknownModelError(f"No model {name!r}; for the folder of that name write local-dir:{name}.")
    if architecture not in known and os.path.dirname(name):
        raise UnknownModelError(
            f"No folder {name!r}, and no model of that name; give a run's or a saved model's folder."
        )
    if architecture not in known:
        raise UnknownModelError(f"Unknown model {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}.")
    tags = list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tags:
        raise UnknownModelError(
            f"{architecture} has no weights tag {tag!r}.{did_you_mean(name, tags)} "
            f"There are: {', '.join(tags) or 'none'}."
        )


def start_from_imagenet(model: nn.Module, architecture: str) -> None:
    """Load torchvision's ImageNet trunk into `model.features`.

    Raises:
        ArgumentError: the architecture has another trunk.
    """
    tensors = load_trunk(trunk_name(architecture))
    own = model.features.state_dict()  # type: ignore[union-attr]
    trunk = {k.removeprefix("features."): v for k, v in tensors.items()}
    first = "0.weight"
    if trunk[first].shape[1] != own[first].shape[1]:
        trunk[first] = timm.models.adapt_input_conv(own[first].shape[1], trunk[first])
    if other := [k for k, v in own.items() if k not in trunk or trunk[k].shape != v.shape]:
        raise ArgumentError(
            f"init='imagenet' is for architectures on SqueezeNet's or AlexNet's trunk, and {architecture} has its own "
            f"(features.{other[0]} is not ImageNet's); leave init out."
        )
    model.features.load_state_dict({k: trunk[k] for k in own}, strict=True)  # type: ignore[union-attr]


def start_sha256(file: str) -> str:
    """Return the SHA-256 of a tag's file, or of a weights file; raise `ArgumentError` where it cannot be read."""
    if file in read_manifest():
        return get_weights(file).sha256
    try:
        return hashlib.sha256(read_bytes(Path(file), LARGEST)).hexdigest()
    except (OSError, WeightsError) as e:
        raise ArgumentError(f"Cannot read start={shown(file)!r} ({why(e)}); give a run's best.safetensors.") from e


def start_from(model: nn.Module, file: str) -> None:
    """Load the trunk of a weights tag or of an all-layers run's file, and the head where it matches the model."""
    try:
        known = file in read_manifest()
        tensors = read_verified(get_weights(file)) if known else read_tensors(read_bytes(Path(file), LARGEST), file)
    except (OSError, WeightsError) as e:
        raise ArgumentError(f"Cannot use start={shown(file)!r} ({why(e)}); give a run's best.safetensors.") from e
    own = model.state_dict()
    matching = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
    trunk = {k: v for k, v in matching.items() if k.startswith("features.")}
    if missing := [k for k in own if k.startswith("features.") and k not in trunk]:
        raise ArgumentError(
            f"start={file!r} lacks {len(missing)} tensors of the trunk, {missing[0]} first; give the "
            "best.safetensors of an all-layers run, or a tag stored as a complete file."
        )
    model.load_state_dict(own | (matching if matching.keys() == own.keys() else trunk), strict=True)


def _is_ours(name: str) -> bool:
    # By the module that registered it: another package may have a model of the same name.
    return model_entrypoint(name.partition(".")[0]).__module__ in _CLASSES


def hub_entry(name: str) -> Callable[..., nn.Module]:
    """Return the torch.hub entry point of an architecture; its help is the architecture's own."""

    def entry(pretrained: bool = False, weights: str | None = None, **model_args: Any) -> nn.Module:
        if weights is None:
            return create_model(name, pretrained, **model_args)
        return create_model(weights if "." in weights else f"{name}.{weights}", True, **model_args)

    function = model_entrypoint(name)
    entry.__name__, entry.__doc__ = name, f"{function.__doc__}\n\n{_CLASSES[function.__module__].__doc__}"
    return entry


def warn_of_another_copy(hubconf: str) -> None:
    """Warn where this package is not the one beside a hubconf.py: Python imports a package once."""
    used, asked = Path(__file__).resolve().parents[1], Path(hubconf).resolve().parent
    if used != asked:
        _logger.warning(
            "sqzoo %s in %s is already imported and is used, not the one in %s; load that in a new process.",
            __version__,
            used,
            asked,
        )
