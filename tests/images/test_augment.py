"""Random resized crops: parts of the image, its colours about kept, the size of the result."""

import torch

from sqzoo.images.augment import random_resized_crop


def test_random_resized_crops_are_parts_of_the_image() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(60, 180, 64).byte()
    images = ramp[None, None, :, None].expand(200, 64, 64, 3)  # brighter to the right
    crops = random_resized_crop(images, 0.25, True).float()
    assert crops.shape == (200, 48, 48, 3)
    across = crops.mean((1, 3))
    slope = across[:, -1] - across[:, 0]
    assert 60 < (slope < 0).sum() < 140  # half of them are mirrored
    assert (slope.abs().max() < 120 * 1.3**2 * 1.05) and (slope.abs().min() > 120 * 0.4 * 0.7**2)  # a part, jittered
    assert len(slope.round().unique()) > 50  # of different widths
    whole = random_resized_crop(images, 1.0, False).float().mean((1, 3))
    assert ((whole[:, -1] - whole[:, 0]) > 0).all()
