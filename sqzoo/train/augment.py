"""Training images made different each time they are seen, at the data's own size (32 pixels for CIFAR-10)."""

from collections.abc import Sequence

import torch


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
        sizes = (height, width)
        hole = _rectangle(sizes, [torch.randint(size - cutout + 1, (count, 1)) for size in sizes], (cutout, cutout))
        images = torch.where(hole[..., None], images.float().mean((1, 2), keepdim=True).round().byte(), images)
    return images


def cutmix(images: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay a rectangle of another image over about `share` of (N, H, W, 3) images, at the place it has there.

    Return the images, which image each rectangle is of (N,), and the share of the area that it takes (N,). Any share is
    as likely as any other (Yun and others 2019).
    """
    count, *sizes, _ = images.shape
    others = torch.randperm(count)
    side = torch.rand(count, 1).sqrt() * (torch.rand(count, 1) < share)
    lengths = [(side * size).round().long() for size in sizes]
    lows = [(torch.rand(count, 1) * (size - length + 1)).long() for size, length in zip(sizes, lengths, strict=True)]
    taken = _rectangle(sizes, lows, lengths)
    return torch.where(taken[..., None], images[others], images), others, taken.float().mean((1, 2))


def _rectangle(
    sizes: Sequence[int], lows: Sequence[torch.Tensor], lengths: Sequence[int | torch.Tensor]
) -> torch.Tensor:
    """Return which pixels (N, H, W) lie in each image's rectangle, whose `lows` (N, 1) and `lengths` are by axis."""
    rows, columns = (
        (torch.arange(size) >= low) & (torch.arange(size) < low + length)
        for size, low, length in zip(sizes, lows, lengths, strict=True)
    )
    return rows[:, :, None] & columns[:, None, :]


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
