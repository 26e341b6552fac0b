"""Training images made different each time they are seen, at the data's own size (32 pixels for CIFAR-10)."""

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
