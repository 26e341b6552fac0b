"""Training images made different each time they are seen, at the data's own size (32 pixels for CIFAR-10)."""

import torch
from torchvision.transforms import InterpolationMode, v2


def augment(images: torch.Tensor, pad: int, flip: bool, cutout: int = 0) -> torch.Tensor:
    """Shift (N, H, W, 3) uint8 images by up to `pad` pixels (edges reflected), mirror half, cut out a square each.

    The square has `cutout` pixels a side, lies wholly inside and becomes the image's mean colour.
    """
    count, height, width, _ = images.shape
    rows = torch.arange(height).repeat(count, 1) + torch.randint(-pad, pad + 1, (count, 1))
    columns = torch.arange(width).repeat(count, 1) + torch.randint(-pad, pad + 1, (count, 1))
    rows, columns = _reflect(rows, height), _reflect(columns, width)
    if flip:
        columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    images = images[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if cutout:
        top, left = (torch.randint(size - cutout + 1, (count, 1)) for size in (height, width))
        in_rows, in_columns = (
            (p >= low) & (p < low + cutout) for p, low in ((torch.arange(height), top), (torch.arange(width), left))
        )
        hole = in_rows[:, :, None, None] & in_columns[:, None, :, None]
        images = torch.where(hole, images.float().mean((1, 2), keepdim=True).round().byte(), images)
    return images


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def trivial_augment(images: torch.Tensor, own: slice, mean: tuple[float, float, float]) -> torch.Tensor:
    """Change the images `own` of (N, H, W, 3) uint8 by torchvision's TrivialAugmentWide; leave the others.

    Each image has one operation of one strength (Müller, Hutter 2021); `mean`, the data's colour in [0, 1], fills what
    lay outside. The random numbers are drawn for all N images, so each is changed alike whichever process it is of.
    """
    change = v2.TrivialAugmentWide(
        interpolation=InterpolationMode.BILINEAR, fill=[round(255 * colour) for colour in mean]
    )
    seeds = torch.randint(2**31, (len(images),)).tolist()[own]
    with torch.random.fork_rng(devices=[]):
        for i, seed in enumerate(seeds, own.start):
            torch.default_generator.manual_seed(seed)
            images[i] = change(images[i].permute(2, 0, 1)).permute(1, 2, 0)
    return images
