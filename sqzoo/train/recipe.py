"""What to train and how: a frozen recipe, printable and saved with each run."""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sqzoo.data import NORMALISATIONS, Preprocessing
from sqzoo.errors import ArgumentError, UnknownModelError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """One training run.

    model: an architecture; several joined by "+" are trained on one trunk, all layers (see `shared.py`).
    trunk: "frozen" trains the head alone on cached trunk features (the paper); "trained" trains all layers.
    head_epochs: of an all-layers run's epochs, how many at its beginning leave the trunk as it is, lest a random head
    spoil it.
    frozen_layers: of an all-layers run's trunk, how many layers at its beginning stay as they are: the first have the
    largest maps, and what they have learnt is good for any picture.
    head: behind a frozen trunk, train "all" of the head or its "last" layer alone, the others being torchvision's
    (AlexNet in the paper).
    start: "imagenet", or a weights tag or the weights file of an all-layers run: its trunk, and its head where it is of
    this model.
    sizes: (side in pixels, epochs) in turn; a frozen trunk has one side.
    crop_pct: 0.875 sees the central 28 of 32 pixels (the paper's resize 256, crop 224), 1.0 all of them.
    hold_out: training images kept apart; select: which images choose the best epoch, "held_out" or "test" (the
    paper's own way, which flatters), or "last": none do, the last epoch counts. log_test: look at the test images after
    every epoch though they choose nothing.
    patience: epochs without a better score on the images that choose before the run stops; 0: it never does.
    schedule: the learning rate is `lr` throughout, or with "cosine" rises to it over the share `warm_up` of all steps
    and falls along a cosine to `lr_end` times itself.
    flip, pad, cutout: mirror half of the images, shift them by up to `pad` pixels, paint over a square of `cutout`
    pixels a side, all at the data's own size (32 pixels for CIFAR-10).
    trivial_augment: change each image by one operation of torchvision's TrivialAugmentWide (see `augment.py`).
    noise: share, in [0, 1), of the images that noise takes the place of, whose wanted answer is all classes alike (see
    `negatives.py`).
    ema: decay by step, in [0, 1), of a running average of the weights, which is then what is evaluated and kept; 0 is
    none. label_smoothing: share, in [0, 1), of a target that is spread over all classes. trunk_norm: train with batch
    norm in the trunk, which is folded away at the end (see `norms.py`). norm_images: training images, as they are, that
    its statistics are measured on before each evaluation; those of averaged weights are not the average of theirs. 0
    takes the running ones.
    prune: share, in [0, 1), of the weights of each layer of a million or more that are set to zero over the first half
    of the run, the smallest first; no epoch before that counts as the best (see `pruning.py`).
    teacher: weights tag of a network to learn from besides the labels (see `teacher.py`); "" is none.
    precision: of the layers' arithmetic in training; "bfloat16" is faster where the processor has instructions for it
    (`sqzoo doctor` tells), slower elsewhere, and slower for Sq-1's head, which has little to do where a map is zero.
    Weights, optimiser and evaluation are float32 in any case.
    """

    model: str
    model_args: dict[str, Any] = field(default_factory=dict)
    trunk: Literal["frozen", "trained"] = "frozen"
    head: Literal["all", "last"] = "all"
    start: str = "imagenet"
    head_epochs: int = 0
    frozen_layers: int = 0
    sizes: tuple[tuple[int, int], ...] = ((224, 20),)
    crop_pct: float = 0.875
    normalisation: str = "imagenet"
    hold_out: int = 0
    select: Literal["held_out", "test", "last"] = "test"
    log_test: bool = False
    patience: int = 0
    batch_size: int = 128
    lr: float = 0.001
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warm_up: float = 0.0
    lr_end: float = 0.0
    flip: bool = False
    pad: int = 0
    cutout: int = 0
    trivial_augment: bool = False
    noise: float = 0.0
    ema: float = 0.0
    label_smoothing: float = 0.0
    trunk_norm: bool = False
    norm_images: int = 0
    prune: float = 0.0
    teacher: str = ""
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "trunk": ("frozen", "trained"),
            "head": ("all", "last"),
            "normalisation": tuple(NORMALISATIONS),
            "select": ("held_out", "test", "last"),
            "schedule": ("constant", "cosine"),
            "precision": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"{name} must be one of {list(allowed)}, not {getattr(self, name)!r}.")
        if not self.sizes or any(len(part) != 2 or min(part) < 1 for part in self.sizes):
            raise ArgumentError(f"sizes must be (side in pixels, epochs) pairs of at least 1, not {self.sizes!r}.")
        if self.batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, not {self.batch_size!r}.")
        if not 0 <= self.cutout <= 32:
            raise ArgumentError(f"cutout must be between 0 and 32 pixels, not {self.cutout!r}.")
        for name in ("noise", "ema", "label_smoothing", "prune"):
            if not 0 <= getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 0 and below 1, not {getattr(self, name)!r}.")
        if self.frozen_layers < 0:
            raise ArgumentError(f"frozen_layers must be at least 0, not {self.frozen_layers!r}.")
        if self.trunk == "frozen" and ("+" in self.model or self.head_epochs or self.frozen_layers):
            raise ArgumentError(
                "several models, head_epochs and frozen_layers go with trunk='trained'; give one model and neither."
            )
        if self.trunk_norm and self.trunk == "frozen":
            raise ArgumentError("trunk_norm=True changes the trunk as it learns; give trunk='trained' with it.")
        if self.prune and self.ema:
            raise ArgumentError("An average of weights has no zeros where they had; give prune or ema, not both.")
        if self.head == "last" and self.trunk == "trained":
            raise ArgumentError("head='last' trains one layer alone; give trunk='frozen' with it, or head='all'.")
        if not 0 <= self.lr_end <= 1:
            raise ArgumentError(f"lr_end must be a share of lr, between 0 and 1, not {self.lr_end!r}.")
        for name in ("warm_up", "lr_end"):
            if self.schedule == "constant" and getattr(self, name):
                raise ArgumentError(
                    f"{name}={getattr(self, name)!r} goes with schedule='cosine'; give both or neither."
                )
        if self.norm_images and (self.norm_images < 100 or not self.trunk_norm):
            raise ArgumentError(
                f"norm_images={self.norm_images!r} must be 100 or more and goes with trunk_norm=True; give both, or 0."
            )
        if self.select == "held_out" and self.hold_out < 1:
            raise ArgumentError(f"select='held_out' needs images: hold_out is {self.hold_out}; give 5000, say.")
        changing = self.flip or self.pad or self.cutout or self.trivial_augment or self.noise
        if self.trunk == "frozen" and (changing or len(self.sizes) > 1):
            raise ArgumentError(
                "a frozen trunk's features are computed once: give one size, no flip, no pad, no cutout, no "
                "trivial_augment and no noise."
            )
        if self.noise and self.teacher:
            raise ArgumentError("A teacher knows the training images and no noise; give noise or teacher, not both.")

    @property
    def epochs(self) -> int:
        """Number of epochs over all sizes."""
        return sum(epochs for _, epochs in self.sizes)

    @property
    def looks_at_test(self) -> bool:
        """Whether the test images are looked at after every epoch."""
        return self.select == "test" or self.log_test

    def preprocessing(self, side: int) -> Preprocessing:
        """Return the resize, crop and normalisation at an image side."""
        return Preprocessing(side, self.crop_pct, *NORMALISATIONS[self.normalisation])

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON writes it (tuples as lists)."""
        result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return result


def _paper(model: str, lr: float, epochs: int, **changes: Any) -> Recipe:
    return Recipe(model, lr=lr, sizes=((224, epochs),), **changes)


def _pictures(model: str, all_layers: bool) -> Recipe:
    common: dict[str, Any] = {"crop_pct": 1.0, "hold_out": 1, "select": "held_out", "batch_size": 32}
    if not all_layers:
        # AlexNet's linear layers are large, and from scratch.
        lr = 0.0001 if model == "alexnet_cifar" else 0.001
        return Recipe(model, sizes=((224, 60),), lr=lr, patience=10, **common)
    rest: dict[str, Any] = {"weight_decay": 0.05, "schedule": "cosine", "warm_up": 0.1, "flip": True, "pad": 28}
    return Recipe(model, trunk="trained", sizes=((224, 8),), lr=2e-4, **common, **rest)


# Table 3's learning rate for Sq-1, figure 8's for Fire-Next; the paper gives none for the other two, and no batch size.
_PAPER = {
    "squeezenet_cifar": _paper("squeezenet_cifar", 0.0004, 10),
    "sq1": _paper("sq1", 0.0004, 24),
    "fire_next": _paper("fire_next", 0.001, 10, batch_size=64),
    "alexnet_cifar": _paper("alexnet_cifar", 0.0004, 16, head="last"),
}
_FINETUNE = Recipe(
    "sq1",
    trunk="trained",
    sizes=((64, 3), (96, 3), (128, 4)),
    crop_pct=1.0,
    hold_out=5000,
    select="held_out",
    batch_size=64,
    lr=5e-4,
    weight_decay=0.05,
    schedule="cosine",
    warm_up=0.1,
    flip=True,
    pad=4,
)
_NORM = replace(
    _FINETUNE,
    sizes=((96, 10), (128, 8), (160, 6), (192, 4)),
    hold_out=1000,
    lr=1e-3,
    patience=3,
    trunk_norm=True,
    ema=0.998,
    cutout=8,
)
_MORE = replace(_NORM, sizes=((128, 8),), lr=3e-4, patience=0)
_LONG = replace(_MORE, sizes=((128, 36),), lr=1e-3, cutout=10, frozen_layers=5, select="last")
_LARGE = replace(_LONG, sizes=((128, 10), (160, 20)), lr=8e-4, cutout=14, label_smoothing=0.1)
_SURE = replace(_LARGE, sizes=((160, 4),), lr=2e-4, label_smoothing=0.0)
_MEAN = replace(_LONG, sizes=((160, 5), (192, 18)), lr=8e-4, lr_end=0.2, cutout=14, ema=0.9998, norm_images=8192)
_TRIVIAL = replace(
    _LONG,
    sizes=((128, 24), (160, 9)),
    lr=8e-4,
    norm_images=8192,
    trivial_augment=True,
    noise=0.01,
)
_ALL_LAYERS = {
    "finetune": _FINETUNE,
    "finetune_norm": _NORM,
    "finetune_more": _MORE,
    "finetune_long": _LONG,
    "finetune_large": _LARGE,
    "finetune_sure": _SURE,
    "finetune_noise": replace(_SURE, sizes=((160, 2),), lr=1e-4, noise=0.08),
    "finetune_mean": _MEAN,
    "finetune_trivial": _TRIVIAL,
}
_GO_ON = tuple(_ALL_LAYERS)[2:]  # from an earlier run
RECIPES = ("paper", "paper_held_out", "fc", "fc_held_out", *_ALL_LAYERS, "pictures", "pictures_all_layers")


def recipe(name: str, model: str, **changes: Any) -> Recipe:
    """Return a named recipe for a model, with fields changed by keyword.

    paper: frozen trunk, Adam, best epoch on the test images. paper_held_out: the same on 45,000 images, best epoch on
    the 5,000 held out. fc, fc_held_out: AlexNet's three linear layers from scratch, for want of torchvision's; the
    last layer alone is the paper's. finetune: all layers, AdamW, random crop and flip, growing images, 10 epochs.
    finetune_norm: longer, up to larger images, with batch norm in the trunk, averaged weights and cutout. At 192 pixels
    the rate is too low for a new size: 160 was better, and `patience` ends the run. finetune_more: another cycle at one
    size, from the weights file or tag `start`. finetune_long: a long cycle from there, the first layers left as they
    are, its last epoch kept; the `tiny` weights are compressed from it. finetune_large: another from those, up to
    larger images, with larger squares cut out and smoothed labels. finetune_sure: a short last one on the labels as
    they are, for smoothed ones leave answers so even that noise looks like a picture of some class; the shipped `ft`
    weights. From those, and no better on test: finetune_noise, two epochs with noise among the images, to be called
    none of the classes; finetune_mean, a long cycle up to 192 pixels, whose weights are the mean of its last epochs',
    at a rate still high enough for them to differ.
    pictures: the head alone, for one's own pictures, until the held-out ones gain no more; pictures_all_layers: all
    layers after it. Both are for `train_on_pictures`, which says which images are held out.
    """
    if name not in RECIPES:
        raise ArgumentError(f"Unknown recipe {name!r}.{did_you_mean(name, RECIPES)} There are: {', '.join(RECIPES)}.")
    several = name in _ALL_LAYERS
    for part in model.split("+") if several else [model]:
        if part not in _PAPER:
            raise UnknownModelError(
                f"Unknown model {part!r}.{did_you_mean(part, _PAPER)} There are: {', '.join(_PAPER)}."
            )
    if name in _GO_ON and "start" not in changes:
        raise ArgumentError(f"{name} goes on from an earlier run: give its best.safetensors as start.")
    if name in ("pictures", "pictures_all_layers"):
        base = _pictures(model, name == "pictures_all_layers")
    elif several:
        base = replace(_ALL_LAYERS[name], model=model)
    else:
        base = _paper(model, 0.0001, 2) if name.startswith("fc") else _PAPER[model]
        if name.endswith("_held_out"):
            base = replace(base, hold_out=5000, select="held_out")
    known = [f.name for f in dataclasses.fields(Recipe)]
    for key in changes.keys() - set(known):
        raise ArgumentError(f"A recipe has no {key!r}.{did_you_mean(key, known)} It has: {', '.join(known)}.")
    return replace(base, **changes)
