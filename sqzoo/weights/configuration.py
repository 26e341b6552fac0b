"""config.json of a model on the Hub or in a folder: what of it is taken, and of which values.

It comes from strangers. Fields that could lead timm's loader to another file, address or layer are not among them.
"""

import math
from typing import Any

from sqzoo.errors import WeightsError
from sqzoo.weights.reading import parse_json, printable

_SIDE = 4096  # pixels
_INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "random")
_CROPS = ("center", "squash", "border")


def _number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and low < value <= high


def _numbers(value: Any, low: float, high: float) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 1000 and all(_number(v, low, high) for v in value)


def _sizes(value: Any, lengths: tuple[int, ...]) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(type(v) is int and 1 <= v <= _SIDE for v in value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 1000


_TAKEN = {  # fields of timm's PretrainedCfg that say how images are prepared and what the classes are called
    "input_size": lambda v: _sizes(v, (3,)),
    "test_input_size": lambda v: _sizes(v, (3,)),
    "pool_size": lambda v: _sizes(v, (1, 2)),
    "crop_pct": lambda v: _number(v, 0, 2),
    "test_crop_pct": lambda v: _number(v, 0, 2),
    "crop_mode": lambda v: v in _CROPS,
    "interpolation": lambda v: v in _INTERPOLATIONS,
    "mean": lambda v: _numbers(v, -1000, 1000),
    "std": lambda v: _numbers(v, 0, 1000),
    "label_names": lambda v: isinstance(v, list) and all(map(_text, v)),
    "license": _text,
    "description": _text,
    "paper_name": _text,
    "tag": _text,
}


def read_configuration(data: bytes, name: str) -> dict[str, Any]:
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
        if not isinstance(found["sha256"], str | None):
            raise TypeError("sha256 is of another type")
        found["ood_threshold"] = config.get("ood_threshold")
        if found["ood_threshold"] is not None and not _number(found["ood_threshold"], -math.inf, math.inf):
            raise ValueError(f"ood_threshold is {found['ood_threshold']!r}")
        about = {k: v for k, v in found["pretrained_cfg"].items() if k in _TAKEN and v is not None}
        for key, value in about.items():
            if not _TAKEN[key](value):
                raise ValueError(f"{key} is {value!r}")
    except (ValueError, KeyError, TypeError) as e:
        raise WeightsError(
            f"{name} is not a model's configuration ({type(e).__name__}: {printable(e)}); name what sqzoo or timm "
            "saved."
        ) from e
    given = {k: v for k, v in found["model_args"].items() if v is not None}
    return found | {"model_args": given, "pretrained_cfg": {k: _tuple(v) for k, v in about.items()}}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
