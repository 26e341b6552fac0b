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


def cutmix(images: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay a rectangle of another image over about `share` of (N, H, W, 3) images, at the place it has there.

    Return the images, which image each rectangle is of (N,), and the share of the area that it takes (N,). Any share is
    as likely as any other (Yun and others 2019).
    """
    count, height, width, _ = images.shape
    others = torch.randperm(count)
    side = torch.rand(count, 1).sqrt() * (torch.rand(count, 1) < share)
    inside = []
    for size in (height, width):
        length = (side * size).round().long()
        low = (torch.rand(count, 1) * (size - length + 1)).long()
        inside.append((torch.arange(size) >= low) & (torch.arange(size) < low + length))
    taken = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(taken[..., None], images[others], images), others, taken.float().mean((1, 2))


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
