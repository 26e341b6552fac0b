"""What to train and how: a frozen recipe, printable and saved with each run."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from sqzoo.data import NORMALISATIONS, Preprocessing
from sqzoo.errors import ArgumentError
from sqzoo.train.panel import is_panel


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
    cutmix: share, in [0, 1), of the images that a rectangle of another image lies in, whose wanted answer is both
    classes by area.
    noise: share, in [0, 1), of the images that noise takes the place of, whose wanted answer is all classes alike (see
    `negatives.py`).
    ema: decay by step, in [0, 1), of a running average of the weights, which is then what is evaluated and kept; 0 is
    none. label_smoothing: share, in [0, 1), of a target that is spread over all classes. trunk_norm: train with batch
    norm in the trunk, which is folded away at the end (see `norms.py`). norm_images: training images, as they are, that
    its statistics are measured on before each evaluation; those of averaged weights are not the average of theirs. 0
    takes the running ones.
    prune: share, in [0, 1), of the weights of each layer of a million or more that are set to zero over the first half
    of the run, the smallest first; no epoch before that counts as the best (see `pruning.py`).
    sharpness: radius, at least 0, within which the loss is to be low all around (0.5, say), at twice the time a step;
    0 is none (see `sharpness.py`).
    teacher: weights tag of a network to learn from besides the labels (see `teacher.py`), or ONNX files joined by "+"
    that are asked about each image as the pupil sees it (see `panel.py`); "" is none.
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
    cutmix: float = 0.0
    noise: float = 0.0
    ema: float = 0.0
    label_smoothing: float = 0.0
    trunk_norm: bool = False
    norm_images: int = 0
    prune: float = 0.0
    sharpness: float = 0.0
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
        for name in ("cutmix", "noise", "ema", "label_smoothing", "prune"):
            if not 0 <= getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 0 and below 1, not {getattr(self, name)!r}.")
        if not 0 <= self.sharpness < math.inf:
            raise ArgumentError(f"sharpness must be a radius of at least 0, not {self.sharpness!r}; 0.5 is usual.")
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
        changed = self.flip or self.pad or self.cutout or self.cutmix or self.noise
        if self.trunk == "frozen" and (len(self.sizes) > 1 or changed):
            raise ArgumentError(
                "a frozen trunk's features are computed once: give one size, no flip, no pad, no cutout, no cutmix and "
                "no noise."
            )
        if self.noise and self.teacher and not is_panel(self.teacher):
            raise ArgumentError("A teacher knows the training images and no noise; give noise or teacher, not both.")
        if self.cutmix and self.teacher:
            raise ArgumentError("A teacher is asked about one picture, not about two in one; give cutmix or teacher.")
        if self.trunk == "frozen" and is_panel(self.teacher):
            raise ArgumentError(
                f"teacher={self.teacher!r} is asked about images, and a frozen trunk's head sees none; give a tag."
            )

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
