"""config.json of a model on the Hub or in a folder: what of it is taken, and of which values.

It comes from strangers. Fields that could lead timm's loader to another file, address or layer are not among them.
"""

import math
import re
from typing import Any

from sqzoo.errors import WeightsError, printable
from sqzoo.weights.untrusted import parse_json

_SIDE = 1024  # pixels, before the crop, too: a batch of them takes a gigabyte
_CHANNELS = 16
_INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "random")
_CROPS = ("center",)  # the one that sqzoo has
_SHA256 = re.compile("[0-9a-f]{64}")


def _number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and low < value <= high


def _numbers(value: Any, low: float, high: float) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 1000 and all(_number(v, low, high) for v in value)


def _sizes(value: Any, lengths: tuple[int, ...]) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(type(v) is int and 1 <= v <= _SIDE for v in value)


def _size(value: Any) -> bool:
    """Whether a value is the size of square images."""
    return _sizes(value, (3,)) and value[0] <= _CHANNELS and value[1] == value[2]


def _text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 1000


_TAKEN = {  # fields of timm's PretrainedCfg that say how images are prepared and what the classes are called
    "input_size": _size,
    "test_input_size": _size,
    "pool_size": lambda v: _sizes(v, (1, 2)),
    "crop_pct": lambda v: _number(v, 0.05, 1),
    "test_crop_pct": lambda v: _number(v, 0.05, 1),
    "crop_mode": lambda v: v in _CROPS,
    "interpolation": lambda v: v in _INTERPOLATIONS,
    "mean": lambda v: _numbers(v, -1000, 1000),
    "std": lambda v: _numbers(v, 1e-4, 1000),  # a smaller one makes infinities of the pixels
    "label_names": lambda v: isinstance(v, list) and all(map(_text, v)),
    "license": _text,
    "description": _text,
    "paper_name": _text,
    "tag": _text,
}


_ARGUMENTS = {  # of the model, whose constructor allows more than fits into memory or numbers
    "temperature": lambda v: _number(v, 1e-3, 1e3),
    "upsample": lambda v: _sizes(v if isinstance(v, list) else [v], (1, 2)),
}


def parse_config(data: bytes, name: str) -> dict[str, Any]:
    """Return architecture, num_classes, model_args, pretrained_cfg, and sha256 and ood_threshold (None: not stated).

    Raises `WeightsError` where one is missing or of another form. `model_args` are not yet compared with the model.
    """
    try:
        config = parse_json(data)
        found = {key: config[key] for key in ("architecture", "num_classes", "pretrained_cfg")}
        found |= {"model_args": config.get("model_args") or {}, "sha256": config.get("sha256")}
        kinds = {"architecture": str, "num_classes": int, "pretrained_cfg": dict, "model_args": dict}
        for key, kind in kinds.items():
            if type(found[key]) is not kind:
                raise TypeError(f"{key} is of another type")
        stated = found["sha256"]
        if stated is not None and not (isinstance(stated, str) and _SHA256.fullmatch(stated)):
            raise ValueError("sha256 is none")
        found["ood_threshold"] = config.get("ood_threshold")
        if found["ood_threshold"] is not None and not _number(found["ood_threshold"], -1e6, 1e6):
            raise ValueError(f"ood_threshold is {found['ood_threshold']!r}")
        about = {k: v for k, v in found["pretrained_cfg"].items() if k in _TAKEN and v is not None}
        for key, value in about.items():
            if not _TAKEN[key](value):
                raise ValueError(f"{key} is {value!r}")
        for key, value in found["model_args"].items():
            if value is not None and key in _ARGUMENTS and not _ARGUMENTS[key](value):
                raise ValueError(f"{key} is {value!r}")
        _check_together(about)
    except (ValueError, KeyError, TypeError) as e:
        raise WeightsError(
            f"{name} is not a model's configuration ({type(e).__name__}: {printable(e)}); name what sqzoo or timm "
            "saved."
        ) from e
    given = {k: v for k, v in found["model_args"].items() if v is not None}
    return found | {"model_args": given, "pretrained_cfg": {k: _tuple(v) for k, v in about.items()}}


def _check_together(about: dict[str, Any]) -> None:
    """Raise ValueError where fields that are right by themselves do not go together."""
    channels, side, _ = about.get("input_size", (3, 1, 1))
    lengths = {len(about[key]) for key in ("mean", "std") if key in about}
    if len(lengths) > 1 or lengths - {3, channels}:
        raise ValueError(f"mean and std are not of 3 or {channels} channels")
    if side / about.get("crop_pct", 1) > _SIDE:
        raise ValueError(f"images of {side} pixels at crop_pct {about['crop_pct']} are larger than {_SIDE} pixels")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
