"""Training recipes: one for each weights tag, under the tag's own name."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sqzoo.errors import ArgumentError, UnknownModelError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """One training run, seed included; precision and device are arguments of `train`, not part of it."""

    model: str  # architecture, such as "sq1"
    model_args: dict[str, Any] = field(default_factory=dict)  # the architecture's own: num_classes, drop_rate, mid, ...
    start: str = "imagenet"  # torchvision's backbone, or a weights tag or file: its backbone, and its head if it fits

    # Images
    sizes: tuple[tuple[int, int], ...] = ((224, 20),)  # (image size in pixels, epochs) in turn; small, fast ones first
    crop_pct: float = 0.875  # fraction that the centre crop keeps: 0.875 is the paper's 224 of 256; 1.0 keeps all
    normalisation: Literal["imagenet", "cifar10"] = "imagenet"  # the backbone's; the paper does not say which
    flip: bool = False  # mirror half of the images
    pad: int = 0  # random crop after padding by reflection, pixels; 4 is usual for 32-pixel images
    random_crop: float = 0.0  # smallest area of a random resized crop, with colour jitter, for your own images; 0: none
    cutout: int = (
        0  # side of the masked square, pixels (DeVries and Taylor 2017): in short runs 1.8 to 3.5 points worse
    )

    # Optimizer
    layers: Literal["head", "last", "all"] = "head"  # "head": on a frozen backbone, as in the paper; "last": last layer
    batch_norm: bool = False  # in the backbone during training, folded at the end: 82.4 against 79.1 % without
    batch_size: int = 128  # 512 loses 3 points at equal epochs
    lr: float = 0.001  # of AdamW; with weight_decay 0 it is the paper's Adam
    muon_lr: float = 0.0  # of Muon for the backbone's convolutions, +1.2 points in short runs; 0: AdamW there too
    weight_decay: float = 0.0  # of matrices and filters, not of biases and norms
    schedule: Literal["constant", "cosine"] = "constant"  # "cosine": linear warm-up over a tenth, then to 0
    label_smoothing: float = 0.0  # fraction of the target that is spread over all classes
    ema: float = 0.0  # decay per step of the averaged weights, which are evaluated and saved; 0: none
    prune: float = 0.0  # sparsity of layers of a million weights or more (AlexNet's), reached halfway

    # Protocol
    hold_out: int = 0  # validation images, taken from the training set; 5000 have a standard error of 0.3 points
    select: Literal["val", "test", "last"] = "test"  # what chooses the epoch; "test" is the paper's, and biased
    patience: int = 0  # early stopping after so many epochs without a better score; 0: never
    seed: int = 0  # of the head's initial weights, the order of the images, augmentation and dropout

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Recipe).items():
            value, (low, high) = getattr(self, name), _RANGES.get(name, (0, 0))
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ArgumentError(f"{name} must be one of {list(get_args(kind))}, not {value!r}.")
            numbers = (int, float) if kind is float else (int,)
            if kind in (int, float) and not (type(value) in numbers and low <= value <= high):
                word = "a whole number" if kind is int else "a number"
                raise ArgumentError(f"{name} must be {word} from {low:g} to {high:g}, not {value!r}.")
            plain = dict if name == "model_args" else kind
            if plain in (str, bool, dict) and type(value) is not plain:
                raise ArgumentError(f"{name} must be of type {plain.__name__}, not {value!r}.")
        object.__setattr__(self, "sizes", _sizes(self.sizes))
        if self.layers != "all" and (len(self.sizes) > 1 or any(getattr(self, n) for n in _ALL_LAYERS)):
            raise ArgumentError(f"{', '.join(_ALL_LAYERS)} and several sizes need layers='all', not a frozen backbone.")
        if self.prune and self.ema:
            raise ArgumentError(
                "prune and ema do not go together, averaged weights are not sparse; give prune or ema, not both."
            )
        if self.select == "val" and not self.hold_out:
            raise ArgumentError("select='val' needs validation images: hold_out is 0; give a number, such as 5000.")

    @property
    def epochs(self) -> int:
        """Total number of epochs."""
        return sum(epochs for _, epochs in self.sizes)

    def size_at(self, epoch: int) -> int:
        """Return the image size of an epoch, counted from 0."""
        return [size for size, epochs in self.sizes for _ in range(epochs)][epoch]

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


# Fields for layers="all" alone.
_ALL_LAYERS = ("flip", "pad", "random_crop", "cutout", "batch_norm", "muon_lr")
_RANGES: dict[str, tuple[float, float]] = {
    **{"pad": (0, 31), "cutout": (0, 32), "batch_size": (1, 65536), "crop_pct": (0.1, 1)},
    "random_crop": (0, 1),
    **dict.fromkeys(("hold_out", "patience", "seed"), (0, 2**31 - 1)),
    **dict.fromkeys(("label_smoothing", "ema", "prune"), (0, 0.9999)),
    **dict.fromkeys(("lr", "muon_lr", "weight_decay"), (0, 1e6)),
}


def _sizes(value: Any) -> tuple[tuple[int, int], ...]:
    pairs = [tuple(p) if isinstance(p, list | tuple) else () for p in value] if isinstance(value, list | tuple) else []
    if not pairs or any([*map(type, p)] != [int, int] or not (32 <= p[0] <= 1024 and 1 <= p[1] <= 9999) for p in pairs):
        raise ArgumentError(
            f"sizes must be pairs (size from 32 to 1024, epochs from 1 to 9999), such as [[64, 2]], not {value!r}."
        )
    return tuple(pairs)


# Fire-Next's 50 epochs for all, fewer where ten brought nothing better. Sq-1's learning rate is Table 3's, Fire-Next's
# figure 8's, the others' Adam's default. What the paper leaves open is decided on validation images:
# benchmarks/paper/PLAN.md.
_HEAD: dict[str, Any] = {"sizes": ((224, 50),), "batch_size": 64, "patience": 10}
_PAPER = {
    "sq1": Recipe("sq1", lr=0.0004, **_HEAD),
    "squeezenet_cifar": Recipe("squeezenet_cifar", **_HEAD),
    "fire_next": Recipe("fire_next", **_HEAD),
    "alexnet_cifar": Recipe("alexnet_cifar", layers="last", **_HEAD),
}
_HELD_OUT = {name: replace(plan, hold_out=5000, select="val") for name, plan in _PAPER.items()}

_ALL: dict[str, Any] = {"layers": "all", "crop_pct": 1.0, "schedule": "cosine", "weight_decay": 0.05, "flip": True}
_FT: dict[str, Any] = _ALL | {"batch_norm": True, "pad": 4, "hold_out": 5000, "select": "last"}
# Muon, batch norm and label smoothing by benchmarks/accuracy/recipe_search.py, without cutout and EMA.
_FT |= {"sizes": ((96, 40), (128, 50), (160, 30)), "muon_lr": 3e-3, "label_smoothing": 0.1}
_FT_ALEXNET = _FT | {"sizes": ((128, 6), (160, 2)), "lr": 5e-4, "prune": 0.92}  # pruned for its tiny_cifar10
_FT_ALEXNET |= {"muon_lr": 0.0, "label_smoothing": 0.0}
_IMAGES: dict[str, Any] = {"crop_pct": 1.0, "hold_out": 1, "select": "val", "batch_size": 32}
# From the fitted head on; few photos are soon learnt by heart. On held-back training images, batch norm and Muon (6e-4)
# were no better within a standard error (flowers, food), for 70 % more time; rates of 3e-4 and 4e-4 neither (flowers).
_IMAGES_ALL: dict[str, Any] = _ALL | _IMAGES | {"sizes": ((224, 20),), "lr": 1e-4, "patience": 8}
_IMAGES_ALL |= {"random_crop": 0.25, "label_smoothing": 0.1, "ema": 0.98}

RECIPES: dict[str, dict[str, Recipe]] = {
    "paper_cifar10": _PAPER,
    "held_out_cifar10": _HELD_OUT,
    "ft_cifar10": {n: Recipe(n, **(_FT_ALEXNET if n == "alexnet_cifar" else _FT)) for n in _PAPER},
    "images": {n: Recipe(n, sizes=((224, 1),), **_IMAGES) for n in _PAPER},
    "finetune": {n: Recipe(n, **_IMAGES_ALL) for n in _PAPER},
}


def recipe(name: str, model: str, **changes: Any) -> Recipe:
    """Return a recipe by name for a model, with fields changed.

    - `paper_cifar10`: the paper's protocol: frozen backbone, Adam, the epoch chosen on the test images. Table 2 has its
      accuracy over three seeds, and the records under benchmarks/results/paper/heads its time.
    - `held_out_cifar10`: the same on 45,000 images, the epoch chosen on the other 5,000; tested once, at the end.
    - `ft_cifar10`: all layers, one cosine schedule over growing images. The shipped files were made by earlier recipes.
    - `images`, `finetune`: a head by logistic regression, then all layers, on a custom dataset (`train_on_images`).

    Args:
        name: one of `RECIPES`.
        model: an architecture, such as "sq1".
        changes: fields of `Recipe`.

    Raises:
        ArgumentError, UnknownModelError: unknown recipe, field or model.
    """
    if name == "tiny_cifar10":
        raise ArgumentError(f"{name} is compressed, not trained: sqzoo compress {model}.ft_cifar10 {model}.{name}.")
    if name not in RECIPES:
        raise ArgumentError(f"Unknown recipe {name!r}.{did_you_mean(name, RECIPES)} There are: {', '.join(RECIPES)}.")
    plans = RECIPES[name]
    if model.partition(".")[0] in plans and "." in model:
        own = model.partition(".")[0]
        raise UnknownModelError(f"{model!r} is a weights tag; to start from it give {own} and --start {model}.")
    if model not in plans:
        raise UnknownModelError(f"Unknown model {model!r}.{did_you_mean(model, plans)} There are: {', '.join(plans)}.")
    check_fields(changes)
    return replace(plans[model], **changes)


def check_fields(changes: Iterable[str]) -> None:
    """Raise `ArgumentError` for a name that is no field of a recipe, or is its model."""
    known = [f.name for f in dataclasses.fields(Recipe) if f.name != "model"]
    for key in set(changes) - set(known):
        raise ArgumentError(f"A recipe takes no {key!r}.{did_you_mean(key, known)} It has: {', '.join(known)}.")
