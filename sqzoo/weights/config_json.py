"""Parse config.json of a model on the Hub or in a folder, which comes from strangers.

Fields that could lead timm's loader to another file, address or layer are dropped.
"""

import hashlib
import math
import re
from typing import Any

from sqzoo.errors import WeightsError, printable
from sqzoo.weights.untrusted import parse_json

_MAX_SIZE = 1024  # pixels, before the crop, too: a batch of such images takes a gigabyte
_MAX_CHANNELS = 16
_INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "random")
_SHA256 = re.compile("[0-9a-f]{64}")
_TYPES = {"architecture": str, "num_classes": int, "pretrained_cfg": dict, "model_args": dict}


def _number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and low < value <= high


def _numbers(value: Any, low: float, high: float) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 1000 and all(_number(v, low, high) for v in value)


def _sizes(value: Any, *lengths: int) -> bool:
    return (
        isinstance(value, list) and len(value) in lengths and all(type(v) is int and 1 <= v <= _MAX_SIZE for v in value)
    )


def _input_size(value: Any) -> bool:
    return _sizes(value, 3) and value[0] <= _MAX_CHANNELS and value[1] == value[2]


def _text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 1000


_PRETRAINED_CFG = {  # the fields of timm's PretrainedCfg that are taken: preparation of images, names of classes
    "input_size": _input_size,
    "test_input_size": _input_size,
    "pool_size": lambda v: _sizes(v, 1, 2),
    "crop_pct": lambda v: _number(v, 0.05, 1),
    "test_crop_pct": lambda v: _number(v, 0.05, 1),
    "crop_mode": lambda v: v == "center",
    "interpolation": lambda v: v in _INTERPOLATIONS,
    "mean": lambda v: _numbers(v, -1000, 1000),
    "std": lambda v: _numbers(v, 1e-4, 1000),  # a smaller one makes infinities of pixels
    "label_names": lambda v: isinstance(v, list) and all(map(_text, v)),
    **dict.fromkeys(("license", "description", "paper_name", "tag"), _text),
}
_MODEL_ARGS = {  # their constructors allow values that would fill the memory or overflow
    "temperature": lambda v: _number(v, 1e-3, 1e3),
    "upsample": lambda v: _sizes(v if isinstance(v, list) else [v, v], 2),
}
_STATED = {
    "architecture": lambda v: _text(v) and len(v) <= 100,
    "sha256": lambda v: isinstance(v, str) and bool(_SHA256.fullmatch(v)),
    "ood_threshold": lambda v: _number(v, -1e6, 1e6),
}


def parse_config(data: bytes, name: str) -> dict[str, Any]:
    """Parse a model's config.json and check its fields.

    Args:
        data: the file's bytes.
        name: of the file, for errors.

    Returns:
        architecture, num_classes, model_args (not yet compared with the model), pretrained_cfg, and sha256 and
        ood_threshold, which are None where not stated.

    Raises:
        WeightsError: a field is missing or invalid.
    """
    try:
        config = parse_json(data)
        result = {key: config[key] for key in ("architecture", "num_classes", "pretrained_cfg")}
        result |= {"model_args": config.get("model_args") or {}}
        for key, kind in _TYPES.items():
            if type(result[key]) is not kind:
                raise TypeError(f"{key} is of another type")
        args = {k: v for k, v in result["model_args"].items() if v is not None}
        cfg = {k: v for k, v in result["pretrained_cfg"].items() if k in _PRETRAINED_CFG and v is not None}
        result |= {key: config.get(key) for key in _STATED}
        for checks, values in ((_PRETRAINED_CFG, cfg), (_MODEL_ARGS, args), (_STATED, result)):
            for key, check in checks.items():
                if values.get(key) is not None and not check(values[key]):
                    raise ValueError(f"{key} is {values[key]!r}")
        _check_together(cfg)
    except (ValueError, KeyError, TypeError) as e:
        raise WeightsError(
            f"{name} is not a model's configuration ({type(e).__name__}: {printable(e)}); name what sqzoo or timm "
            "saved."
        ) from e
    cfg = {k: tuple(v) if isinstance(v, list) else v for k, v in cfg.items()}
    return result | {"model_args": args, "pretrained_cfg": cfg}


def _check_together(cfg: dict[str, Any]) -> None:
    """Raise ValueError where valid fields contradict each other."""
    channels, size, _ = cfg.get("input_size", (3, 1, 1))
    lengths = {len(cfg[key]) for key in ("mean", "std") if key in cfg}
    if len(lengths) > 1 or lengths - {3, channels}:
        raise ValueError(f"mean and std are not of 3 or {channels} channels")
    if size / cfg.get("crop_pct", 1) > _MAX_SIZE:
        raise ValueError(f"images of {size} pixels at crop_pct {cfg['crop_pct']} are larger than {_MAX_SIZE} pixels")


def is_generated_card(card: bytes | None, config: bytes | None) -> bool:
    """Whether a model card may be replaced: it is absent, or has the hash that sqzoo noted in config.json."""
    try:
        return card is None or parse_json(config or b"")["card_sha256"] == hashlib.sha256(card).hexdigest()
    except (ValueError, KeyError, TypeError):
        return False
