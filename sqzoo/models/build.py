"""Build models behind all entry points: by timm's builder, with verified and strict loading of weights."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs

from sqzoo.errors import ArgumentError, SqzooError, UnknownArgumentError, WeightsError, did_you_mean, printable
from sqzoo.models.base import ZooModel
from sqzoo.models.upsample import tuned_input
from sqzoo.weights import CIFAR10_CLASSES, Entry, get_weights, read_manifest, tags
from sqzoo.weights.header import read_tensors
from sqzoo.weights.loading import load_state, load_strict, read_verified
from sqzoo.weights.remote import CONFIG, Source, parse_source, read_config, read_weights
from sqzoo.weights.untrusted import LARGEST, read_bytes

# What timm's builder takes, beside the model's own arguments.
_TIMM_ARGUMENTS = {"features_only", "out_indices", "feature_cls", "cache_dir", "pretrained_model_args"}
_HEAD_ARGUMENTS = ("upsample", "temperature")  # arguments that belong to a trained head
_UNTRAINED_INPUT = tuned_input((256, 224))  # the paper's resize and centre crop
_SOURCES, _FIRST_CONV = ("file", "url", "hf_hub_id", "state_dict"), "features.0"


def configs(cls: type[ZooModel], architecture: str) -> Any:
    """Return timm's `default_cfgs` of an architecture: one per tag of the manifest."""
    base: dict[str, Any] = {
        "num_classes": 10,
        "input_size": (3, 224, 224),
        "pool_size": _pool_size(cls, (3, 224, 224), {}),
        **{"crop_pct": 0.875, "interpolation": "bilinear"},  # with 224 the paper's resize to 256 and centre crop
        "first_conv": _FIRST_CONV,
        "classifier": cls.classifier_name,
        "label_names": CIFAR10_CLASSES,
        "paper_name": "COMP 551 MiniProject 4 (Flores, Pinto, McGowan, 2019)",
    }
    result = {}
    for tag in tags(architecture):
        entry = get_weights(tag)
        result[tag] = base | {
            "file": str(entry.path),
            "input_size": entry.input_size,
            "pool_size": _pool_size(cls, entry.input_size, entry.model_args),
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
    """Build a model, and load weights if `pretrained`, in evaluation mode.

    With another number of classes than the weights', the caller's own labels, or features only, the labels, upsampling
    and temperature of the old head are dropped, and images have the size that the trunk was trained at.

    Args:
        cls: the architecture's class.
        architecture: its name in the registry.
        pretrained: load weights.
        pretrained_cfg: a tag of the manifest, or a timm configuration with a safetensors file or Hub repository.
        pretrained_cfg_overlay: fields that replace those of the configuration.
        args: of the constructor and of timm's builder.

    Raises:
        SqzooError: an argument is invalid, or the weights do not match.
    """
    if not isinstance(pretrained, bool):
        raise ArgumentError(
            f"pretrained must be True or False, not {pretrained!r}; name weights by their tag, as in "
            f"create_model('{architecture}.TAG', pretrained=True)."
        )
    known = [*inspect.signature(cls).parameters]
    for name in args.keys() - set(known) - _TIMM_ARGUMENTS:
        raise UnknownArgumentError(
            f"{architecture} has no argument {name!r}.{did_you_mean(name, known)} It takes: {', '.join(known)}."
        )
    overlay = pretrained_cfg_overlay or {}
    theirs = any(overlay.get(key) for key in _SOURCES)
    ours = pretrained and not theirs and (pretrained_cfg is None or isinstance(pretrained_cfg, str))
    default = pretrained_cfg is None and not pretrained
    stated: dict[str, Any] = args.get("pretrained_model_args") or {}
    factory: Callable[..., nn.Module] = cls
    if ours or isinstance(pretrained_cfg, str):
        entry = get_weights(f"{architecture}.{pretrained_cfg}" if pretrained_cfg else architecture)
        stated = {"num_classes": entry.num_classes} | entry.model_args
        if ours:
            factory = _loading_factory(cls, entry)
    if pretrained and not ours:
        pretrained_cfg, overlay, read_args = _read_theirs(cls, pretrained_cfg, overlay, args.get("cache_dir"))
        stated = stated or read_args
    args, changes = _settle(args, stated, overlay.get("label_names"))
    if not stated and default and "upsample" not in args:
        changes = _UNTRAINED_INPUT
    model: nn.Module = build_model_with_cfg(
        factory,
        architecture,
        pretrained and not ours,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=_load_theirs,
        # A new dict, since timm changes it; all stages, since its default expects five.
        feature_cfg={"out_indices": tuple(range(len(cls.stages))), "flatten_sequential": True},
        **args,
    )
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    if changes is not None:
        if changes:
            changes = changes | {"pool_size": _pool_size(cls, changes["input_size"], {})}
        config.update(changes | {"label_names": overlay.get("label_names")})
    if not pretrained:
        return model
    config.pop("state_dict", None)  # or it would stay in memory
    return model.eval()


def _settle(
    args: dict[str, Any], stated: dict[str, Any], labels: Any = None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Merge the caller's arguments `args` with those `stated` by the weights.

    Returns:
        The constructor's arguments, and changes to the configuration if the head is new, else None.
    """
    # With 0 classes it is the same network without its last layer, and takes the same images.
    same = args.get("num_classes") in (None, 0, stated.get("num_classes", len(CIFAR10_CLASSES)))
    if same and not args.get("features_only") and not labels:
        return stated | args, None
    given = {k: v for k, v in args.items() if k not in _HEAD_ARGUMENTS or v != stated.get(k)}
    trunk_args = {k: v for k, v in stated.items() if k not in _HEAD_ARGUMENTS}
    was_upsampled = "upsample" not in given and stated.get("upsample")
    return trunk_args | given, tuned_input(stated["upsample"]) if was_upsampled else {}


def source_cfg(cls: type[ZooModel], source: Source, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's configuration of a model on the Hub or in a folder, with its verified tensors as `state_dict`.

    Args:
        cls: the architecture's class.
        source: where the model is.
        config: what `read_config` returned.

    Raises:
        WeightsError: the configuration describes no model of this class, or the weights do not match.
    """
    built = {"num_classes": config["num_classes"]} | config["model_args"]
    known = inspect.signature(cls).parameters.keys() - {"device", "dtype"}
    try:
        if unknown := sorted(built.keys() - known):
            raise ValueError(f"{cls.__name__} has no argument {unknown[0]!r}")
        if built["num_classes"] != config["num_classes"]:
            raise ValueError(f"it says {config['num_classes']} and {built['num_classes']} for num_classes")
        own = cls(device="meta", **built).state_dict()  # type: ignore[call-arg]
    except (SqzooError, ValueError, TypeError, RuntimeError, OverflowError) as e:
        raise WeightsError(
            f"{source.where}/{CONFIG} describes no model of sqzoo's ({printable(e)}); name what sqzoo or timm saved."
        ) from e
    facts = {"num_classes": config["num_classes"], "architecture": config["architecture"]}
    facts |= {"first_conv": _FIRST_CONV, "classifier": cls.classifier_name}
    return config["pretrained_cfg"] | facts | {"state_dict": read_weights(source, config, own)}


def _read_theirs(
    cls: type[ZooModel], cfg: Any, overlay: dict[str, Any], cache_dir: str | Path | None
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Read the caller's weights, as timm's own reader would unpickle and trust any header.

    Returns:
        timm's configuration and overlay with tensors in place of a file or repository, and the arguments that the
        weights state.
    """
    given = cfg.to_dict() if isinstance(cfg, PretrainedCfg) else dict(cfg) if isinstance(cfg, Mapping) else {}
    if any(overlay.get(key) for key in _SOURCES):
        given = overlay
    file, where = given.get("file"), given.get("hf_hub_id")
    source = None
    if given.get("source") == "local-dir":
        source = Source(str(file), folder=True)
    elif given.get("source") == "hf-hub" or (where and not file and not given.get("state_dict")):
        source = parse_source(f"hf-hub:{where}", cache_dir=None if cache_dir is None else str(cache_dir))
    if source:
        config, source = read_config(source)
        stated = {"num_classes": config["num_classes"]} | config["model_args"]
        return source_cfg(cls, source, config), {k: v for k, v in overlay.items() if k not in _SOURCES}, stated
    if given.get("state_dict"):
        return cfg, overlay, {}
    if not file:
        raise WeightsError(
            f"Weights are not read from {given.get('url') or 'nowhere'}; download the safetensors file and give it as "
            "file, or name a tag."
        )
    packaged = next((e for e in read_manifest().values() if str(e.path) == str(file)), None)
    try:
        tensors = read_verified(packaged) if packaged else read_tensors(read_bytes(Path(file), LARGEST), str(file))
    except OSError as e:
        raise WeightsError(f"Cannot read {file} ({e.strerror}); name a safetensors file.") from e
    stated = {"num_classes": packaged.num_classes} | packaged.model_args if packaged else {}
    return cfg, overlay | {"file": None, "state_dict": tensors}, stated


def _load_theirs(state: dict[str, torch.Tensor], model: ZooModel) -> dict[str, torch.Tensor]:
    """Load the caller's weights strictly, except a head of another size, and return them.

    timm loads them again, but not strictly with another number of classes or features only: it would leave a missing or
    misnamed trunk random.
    """
    load_strict(model, state, "The weights file", model.classifier_name, _FIRST_CONV)
    head = f"{model.classifier_name}.weight"
    stated = model.pretrained_cfg["num_classes"]
    classes = state[head].shape[0] if head in state else 0
    if model.num_classes == stated != classes:
        raise WeightsError(
            f"The weights file has {classes} classes in {head}, its configuration states {stated}; correct num_classes "
            "in pretrained_cfg, or give the file that belongs to it."
        )
    return state


def _loading_factory(cls: type[ZooModel], entry: Entry) -> Callable[..., nn.Module]:
    """Return a constructor that also loads the tag's weights, before timm may wrap the model for features."""

    def construct(**args: Any) -> nn.Module:
        model = cls(**args)
        load_strict(model, load_state(entry, model.state_dict()), entry.tag, cls.classifier_name, _FIRST_CONV)
        if args.get("temperature") == entry.model_args.get("temperature") and model.num_classes == entry.num_classes:
            model.ood_threshold = entry.ood_threshold  # which was fitted at that temperature
        return model

    return construct


def _pool_size(cls: type[ZooModel], input_size: tuple[int, ...], args: dict[str, Any]) -> tuple[int, int]:
    """Return the height and width of the trunk's last map: with unpadded and ceiling pools not size / 16."""
    model = cls(device="meta", **args)  # type: ignore[call-arg]
    height, width = model.forward_features(torch.empty(1, *input_size, device="meta")).shape[2:]
    return height, width
