"""The recipes that have a name: the paper's, those of the shipped weights, those for one's own pictures."""

import dataclasses
from dataclasses import replace
from typing import Any

from sqzoo.errors import ArgumentError, UnknownModelError, did_you_mean
from sqzoo.train.recipe import Recipe


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
_FLAT = replace(_LONG, sizes=((128, 8), (160, 7)), lr=8e-4, noise=0.01, norm_images=8192, sharpness=0.5)
_CUTMIX = replace(_LONG, sizes=((160, 12),), lr=6e-4, cutout=0, cutmix=0.5, noise=0.01, norm_images=8192)
_TAUGHT = replace(_LONG, sizes=((128, 4), (160, 8)), lr=8e-4, cutout=14, noise=0.01, norm_images=8192)
_ALL_LAYERS = {
    "finetune": _FINETUNE,
    "finetune_norm": _NORM,
    "finetune_more": _MORE,
    "finetune_long": _LONG,
    "finetune_large": _LARGE,
    "finetune_sure": _SURE,
    "finetune_noise": replace(_SURE, sizes=((160, 2),), lr=1e-4, noise=0.08),
    "finetune_mean": _MEAN,
    "finetune_flat": _FLAT,
    "finetune_cutmix": _CUTMIX,
    "finetune_taught": _TAUGHT,
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
    they are, for smoothed ones leave answers so even that noise looks like a picture of some class. finetune_flat: a
    long one from those, sharpness-aware, a little noise among the images. finetune_cutmix: a long one from the mean of
    the last three (`mean.py`), with mixed images; the shipped `ft` weights are the mean of the last two.
    finetune_taught: a long one from those of finetune_flat, with teachers that see each image as it does
    (`benchmarks/teacher.py` trains one); no better. From the weights of finetune_sure, and no better on test:
    finetune_noise, two epochs with much noise among the images; finetune_mean, a long cycle up to 192 pixels, whose
    weights are the mean of its last epochs', at a rate still high enough for them to differ.
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
    if name == "finetune_taught" and "teacher" not in changes:
        raise ArgumentError("finetune_taught learns from teachers: give ONNX files, joined by '+', as teacher.")
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
