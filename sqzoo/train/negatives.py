"""Pictures of none of the classes among those that a network learns from: noise, to be answered by all classes alike.

So a network says of noise that it is none, as `unsure.py` reads its probabilities, by having learnt it and not by luck.
After outlier exposure (Hendrycks, Mazeika, Dietterich 2019), with noise for outliers.
"""

import torch
import torch.nn.functional as F

NONE = -100  # the label of a picture of no class, which cross-entropy ignores
_GRAINS = (1, 2, 4)  # pixels a side of the noise's squares


def with_noise(images: torch.Tensor, labels: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N, H, W, 3) uint8 images and labels (N,), of which about `share` are noise and `NONE`."""
    images, labels = images.clone(), labels.clone()
    height, width = images.shape[1:3]
    for i in torch.nonzero(torch.rand(len(images)) < share).flatten().tolist():
        grain = _GRAINS[int(torch.randint(len(_GRAINS), ()))]
        squares = torch.randint(256, (-(-height // grain), -(-width // grain), 3), dtype=torch.uint8)
        images[i] = squares.repeat_interleave(grain, 0).repeat_interleave(grain, 1)[:height, :width]
        labels[i] = NONE
    return images, labels


def wanted(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the probabilities (N, classes) that labels (N,) ask for; those of `NONE` are all alike."""
    return torch.where((labels == NONE)[:, None], 1 / classes, F.one_hot(labels.clamp(min=0), classes).float())
