"""What in a picture a network looked at: Grad-CAM (Selvaraju et al. 2017) on the trunk's last feature maps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from sqzoo.data import Normalise
from sqzoo.errors import ArgumentError, did_you_mean
from sqzoo.images.reader import ImageReader, Picture, as_pil, label_names
from sqzoo.models.base import evaluation_mode
from sqzoo.models.upsample import Upsample
from sqzoo.predict import Prediction, check_finite

_STRENGTH = 0.65  # opacity of the hottest spot
_COLOUR = (220, 30, 0)


@dataclass(frozen=True)
class Explanation:
    """A class's prediction, where it comes from, and the picture with that laid over it.

    heat: (h, w) in 0...1, over what the network saw; all 0 where nothing speaks for the class.
    overlay: the picture's central square, red where the heat is; a border that the network does not see stays as it is.
    """

    prediction: Prediction
    heat: torch.Tensor
    overlay: Image.Image


def explain(model: nn.Module, picture: Picture, label: str | None = None) -> Explanation:
    """Return what in a picture speaks for a class: the likeliest, or the one named `label`.

    Arguments as in `sqzoo.predict.predict`, for a model that `create_model` made. Raises `DataError` for a file that is
    no picture and `ArgumentError` for a label that the model does not have, or anything that is no picture.
    """
    labels = label_names(model)
    if label is not None and label not in labels:
        raise ArgumentError(f"No class {label!r}.{did_you_mean(label, labels)} There are: {', '.join(labels)}.")
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    pixels = ImageReader.of(model)(picture)
    weight = next(model.parameters())
    # Of its own, whatever the caller's: a gradient is needed even within `torch.inference_mode()`.
    with torch.inference_mode(False), evaluation_mode(model):
        with torch.no_grad():
            inputs = Normalise.of(model)(pixels[None]).to(weight.device, weight.dtype)
            maps = model.forward_features(inputs)  # type: ignore[operator]
        with torch.enable_grad():
            maps.requires_grad_()
            logits = model.forward_head(maps.clone())  # type: ignore[operator]  # some heads begin in place
            index = int(logits.argmax()) if label is None else labels.index(label)
            (slope,) = torch.autograd.grad(logits[0, index], maps)
        heat = (slope.mean((2, 3), keepdim=True) * maps.detach()).sum(1)[0].relu().float().cpu()
        heat = heat / heat.max() if heat.max() > 0 else heat
        probabilities = logits.detach().float().softmax(1)
        check_finite(model, probabilities)
        probability = probabilities[0, index].item()
    overlay = _overlay(_central_square(as_pil(picture)), heat, _seen(model, config["crop_pct"]))
    return Explanation(Prediction(labels[index], index, probability), heat, overlay)


def _seen(model: nn.Module, crop_pct: float) -> float:
    """Return the share of a picture's central square, a side, that the trunk sees."""
    upsample = getattr(model, "upsample", None)
    return crop_pct * (upsample.crop / upsample.resize if isinstance(upsample, Upsample) else 1.0)


def _central_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _overlay(square: Image.Image, heat: torch.Tensor, seen: float) -> Image.Image:
    """Lay the heat over the central share `seen` of a square picture."""
    side = max(1, round(square.width * seen))
    low = (square.width - side) // 2
    mask = Image.fromarray(np.uint8(255 * _STRENGTH * heat.numpy())).resize((side, side), Image.Resampling.BICUBIC)
    result = square.copy()
    result.paste(_COLOUR, (low, low, low + side, low + side), mask)
    return result
