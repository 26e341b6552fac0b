"""What to train and how: a recipe for each weights tag, under the tag's own name."""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sqzoo.data import NORMALISATIONS
from sqzoo.errors import ArgumentError, UnknownModelError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """One training run, seed included; the machine's precision and device are no part of it."""

    model: str  # architecture, such as "sq1"
    model_args: dict[str, Any] = field(default_factory=dict)  # its own arguments: num_classes, drop_rate, mid, ...
    start: str = "imagenet"  # torchvision's backbone; or a weights tag or file that has one, and a head where it fits

    # Images
    sizes: tuple[tuple[int, int], ...] = ((224, 20),)  # (image size in pixels, epochs) in turn, small and fast first
    crop_pct: float = 0.875  # central part that is seen: 0.875 is the paper's resize to 256, crop to 224; 1.0 is all
    normalisation: str = "imagenet"  # the backbone's own; the paper does not say which, "cifar10" is the other choice
    flip: bool = False  # mirror half of the images
    pad: int = 0  # random crop: shift by up to so many pixels of the 32, edges reflected; 4 is usual
    cutout: int = 0  # side of a square that is painted over (DeVries and Taylor 2017), of 32 pixels: about +1 point

    # Optimiser
    layers: Literal["head", "last", "all"] = "head"  # "head" on a frozen backbone: the paper; "last": its last layer
    frozen_layers: int = 0  # of "all", so many first layers stay: 5 of 13 cost 0.4 points and save a third of the time
    batch_norm: bool = False  # in the backbone while it trains, folded into it at the end: 82.4 against 79.1 % without
    batch_size: int = 128  # 512 loses 3 points at equal epochs
    lr: float = 0.001  # of AdamW, which is Adam, the paper's, at a weight decay of 0
    muon_lr: float = 0.0  # of Muon on the backbone's convolutions, 0 for AdamW there too: +1.2 points in short runs
    weight_decay: float = 0.0  # of matrices and filters, not of biases and norms
    schedule: Literal["constant", "cosine"] = "constant"  # "cosine" rises over a tenth of the steps, then falls to 0
    label_smoothing: float = 0.0  # part of a target that is spread over all classes
    ema: float = 0.0  # decay by step of an average of the weights, which is what is evaluated and kept; 0 for none
    prune: float = 0.0  # part of the weights of each layer of a million or more set to 0 in the first half: AlexNet's

    # Protocol
    hold_out: int = 0  # training images that are validated on; 5000 has a standard error of 0.3 points, 1000 of 0.6
    select: Literal["val", "test", "last"] = "test"  # what chooses the epoch; "test" is the paper's way, which flatters
    patience: int = 0  # epochs without a better score before the run stops; 0: it never does
    seed: int = 0  # of the head's first weights, the order of the images, their augmentation and dropout

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"{name} must be one of {list(allowed)}, not {getattr(self, name)!r}.")
        for name, (kind, low, high) in _RANGES.items():
            value = getattr(self, name)
            if not (type(value) is kind or (type(value), kind) == (int, float)) or not low <= value <= high:
                word = "a whole number" if kind is int else "a number"
                raise ArgumentError(f"{name} must be {word} from {low:g} to {high:g}, not {value!r}.")
        for name, kind in {"model": str, "start": str, "model_args": dict, "flip": bool, "batch_norm": bool}.items():
            if not isinstance(getattr(self, name), kind):
                raise ArgumentError(f"{name} must be of type {kind.__name__}, not {getattr(self, name)!r}.")
        object.__setattr__(self, "sizes", _sizes(self.sizes))
        if self.layers != "all" and (len(self.sizes) > 1 or any(getattr(self, n) for n in _ALL_LAYERS)):
            raise ArgumentError(f"{', '.join(_ALL_LAYERS)} and several sizes go with layers='all', not a frozen trunk.")
        if self.prune and self.ema:
            raise ArgumentError("An average of weights has no zeros where they had; give prune or ema, not both.")
        if self.select == "val" and not self.hold_out:
            raise ArgumentError("select='val' needs images: hold_out is 0; give 5000, say.")

    @property
    def epochs(self) -> int:
        """Number of epochs over all sizes."""
        return sum(epochs for _, epochs in self.sizes)

    def size_at(self, epoch: int) -> int:
        """Return the image size of an epoch, counted from 0."""
        return [size for size, epochs in self.sizes for _ in range(epochs)][epoch]

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON writes it: tuples as lists."""
        result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return result


_ALL_LAYERS = ("flip", "pad", "cutout", "batch_norm", "frozen_layers", "muon_lr")  # fields that go with layers="all"
_CHOICES: dict[str, tuple[str, ...]] = {
    "layers": ("head", "last", "all"),
    "normalisation": tuple(NORMALISATIONS),
    "select": ("val", "test", "last"),
    "schedule": ("constant", "cosine"),
}
_RANGES: dict[str, tuple[type, float, float]] = {
    **{"pad": (int, 0, 31), "cutout": (int, 0, 32), "batch_size": (int, 1, 65536), "crop_pct": (float, 0.1, 1)},
    **dict.fromkeys(("hold_out", "patience", "seed", "frozen_layers"), (int, 0, 2**31 - 1)),
    **dict.fromkeys(("label_smoothing", "ema", "prune"), (float, 0, 0.9999)),
    **dict.fromkeys(("lr", "muon_lr", "weight_decay"), (float, 0, 1e6)),
}


def _sizes(value: Any) -> tuple[tuple[int, int], ...]:
    pairs = value if isinstance(value, list | tuple) else ()
    kinds = [[type(n) for n in p] == [int, int] if isinstance(p, list | tuple) else False for p in pairs]
    if not pairs or not all(kinds) or any(size < 32 or epochs < 1 for size, epochs in pairs):
        raise ArgumentError(f"sizes must be pairs (size from 32, epochs from 1), such as [[64, 2]], not {value!r}.")
    return tuple((size, epochs) for size, epochs in pairs)


# Fire-Next's 50 epochs for all. Sq-1's learning rate is Table 3's, Fire-Next's figure 8's, the others' Adam's default.
# What the paper leaves open is decided on held-out images: benchmarks/paper/PLAN.md.
_HEAD: dict[str, Any] = {"sizes": ((224, 50),), "batch_size": 64}
_PAPER = {
    "sq1": Recipe("sq1", lr=0.0004, **_HEAD),
    "squeezenet_cifar": Recipe("squeezenet_cifar", **_HEAD),
    "fire_next": Recipe("fire_next", **_HEAD),
    "alexnet_cifar": Recipe("alexnet_cifar", layers="last", **_HEAD),
}
_HELD_OUT = {name: replace(plan, hold_out=5000, select="val") for name, plan in _PAPER.items()}

_ALL: dict[str, Any] = {"layers": "all", "crop_pct": 1.0, "schedule": "cosine", "weight_decay": 0.05, "flip": True}
_FT: dict[str, Any] = _ALL | {"batch_norm": True, "pad": 4, "hold_out": 5000, "select": "last"}
_FT |= {"sizes": ((96, 40), (128, 50), (160, 30)), "muon_lr": 3e-3, "ema": 0.998, "cutout": 14, "label_smoothing": 0.1}
_FT_ALEXNET = _FT | {"sizes": ((128, 6), (160, 2)), "lr": 5e-4, "prune": 0.92}  # pruned for its tiny_cifar10
_FT_ALEXNET |= {"muon_lr": 0.0, "ema": 0.0, "cutout": 0, "label_smoothing": 0.0}
_IMAGES: dict[str, Any] = {"crop_pct": 1.0, "hold_out": 1, "select": "val", "batch_size": 32}
_IMAGES_HEAD: dict[str, Any] = _IMAGES | {"sizes": ((224, 60),), "patience": 10}

RECIPES: dict[str, dict[str, Recipe]] = {
    "paper_cifar10": _PAPER,
    "held_out_cifar10": _HELD_OUT,
    "ft_cifar10": {n: Recipe(n, **(_FT_ALEXNET if n == "alexnet_cifar" else _FT)) for n in _PAPER},
    # AlexNet's linear layers are large, and from scratch.
    "images": {n: Recipe(n, lr=1e-4 if n == "alexnet_cifar" else 1e-3, **_IMAGES_HEAD) for n in _PAPER},
    "finetune": {n: Recipe(n, sizes=((224, 8),), lr=2e-4, pad=28, **(_ALL | _IMAGES)) for n in _PAPER},
}


def recipe(name: str, model: str, **changes: Any) -> Recipe:
    """Return a named recipe for a model, with fields changed.

    - `paper_cifar10`: the paper's own protocol. Frozen backbone, Adam, the epoch chosen on the test images. Table 2 has
      what it attains, over three seeds, and the records under benchmarks/results/paper/heads in what time.
    - `held_out_cifar10`: the same on 45,000 images, the epoch chosen on the 5,000 others, one look at the test images.
    - `ft_cifar10`: all layers, one cosine over growing images. Not yet run to its end: the shipped files are of an
      earlier chain of runs (see the manifest).
    - `images`, `finetune`: the head, then all layers, for images of one's own (`train_on_images`).
    """
    if name == "tiny_cifar10":
        raise ArgumentError(f"{name} is compressed, not trained: sqzoo compress {model}.ft_cifar10 {model}.{name}.")
    if name not in RECIPES:
        raise ArgumentError(f"Unknown recipe {name!r}.{did_you_mean(name, RECIPES)} There are: {', '.join(RECIPES)}.")
    plans = RECIPES[name]
    if model not in plans:
        raise UnknownModelError(f"Unknown model {model!r}.{did_you_mean(model, plans)} There are: {', '.join(plans)}.")
    known = [f.name for f in dataclasses.fields(Recipe) if f.name != "model"]
    for key in changes.keys() - set(known):
        raise ArgumentError(f"A recipe takes no {key!r}.{did_you_mean(key, known)} It has: {', '.join(known)}.")
    return replace(plans[model], **changes)
