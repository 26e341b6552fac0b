"""Explain a prediction by Grad-CAM (Selvaraju et al. 2017) on the trunk's last feature maps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from sqzoo.data import Normalise
from sqzoo.errors import ArgumentError, did_you_mean
from sqzoo.images.reader import ImageInput, ImageReader, as_pil, label_names
from sqzoo.models.base import evaluation_mode
from sqzoo.models.upsample import Upsample
from sqzoo.predict import Prediction, check_finite

_OPACITY = 0.65  # of the hottest spot
_COLOUR = (220, 30, 0)


@dataclass(frozen=True)
class Explanation:
    """Where in an image the evidence for a class is.

    Args:
        prediction: the class.
        heat: (h, w) in 0...1 over what the network sees; all 0 where nothing supports the class.
        overlay: the image's central square, red where the heat is; borders that the network does not see are unchanged.
    """

    prediction: Prediction
    heat: torch.Tensor
    overlay: Image.Image


def explain(model: nn.Module, image: ImageInput, label: str | None = None) -> Explanation:
    """Return where in an image the evidence for a class is.

    Args:
        model: a model of `create_model`.
        image: as in `sqzoo.predict.predict`.
        label: the class; by default the most probable one.

    Raises:
        DataError: the file is not an image.
        ArgumentError: the model has no such label, or the input is not an image.
    """
    labels = label_names(model)
    if label is not None and label not in labels:
        raise ArgumentError(f"No class {label!r}.{did_you_mean(label, labels)} There are: {', '.join(labels)}.")
    pixels = ImageReader.of(model)(image)
    weight = next(model.parameters())
    # The gradient is needed even inside a caller's `torch.inference_mode()`.
    with torch.inference_mode(False), evaluation_mode(model):
        with torch.no_grad():
            inputs = Normalise.of(model)(pixels[None]).to(weight.device, weight.dtype)
            maps = model.forward_features(inputs)  # type: ignore[operator]
        with torch.enable_grad():
            maps.requires_grad_()
            logits = model.forward_head(maps.clone())  # type: ignore[operator]  # a copy: some heads start in place
            index = int(logits.argmax()) if label is None else labels.index(label)
            (gradient,) = torch.autograd.grad(logits[0, index], maps)
        heat = (gradient.mean((2, 3), keepdim=True) * maps.detach()).sum(1)[0].relu().float().cpu()
        heat = heat / heat.max() if heat.max() > 0 else heat
        probabilities = logits.detach().float().softmax(1)
        check_finite(model, probabilities)
        probability = probabilities[0, index].item()
    return Explanation(Prediction(labels[index], index, probability), heat, _overlay(model, as_pil(image), heat))


def _overlay(model: nn.Module, image: Image.Image, heat: torch.Tensor) -> Image.Image:
    """Paint the heat over the part of an image's central square that the trunk sees."""
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    upsample = getattr(model, "upsample", None)
    seen = config["crop_pct"] * (upsample.crop / upsample.resize if isinstance(upsample, Upsample) else 1.0)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    inner = max(1, round(side * seen))
    low = (side - inner) // 2
    mask = Image.fromarray(np.uint8(255 * _OPACITY * heat.numpy())).resize((inner, inner), Image.Resampling.BICUBIC)
    square.paste(_COLOUR, (low, low, low + inner, low + inner), mask)
    return square
