"""Random crop, flip and cutout of a batch, by tensor operations on the images' own device."""

import torch


def augment(images: torch.Tensor, pad: int, flip: bool, cutout: int) -> torch.Tensor:
    """Crop, flip and cut out (DeVries and Taylor 2017) each image at random.

    Args:
        images: (N, H, W, 3) uint8.
        pad: largest shift in pixels in each direction; edges are reflected.
        flip: mirror half of the images.
        cutout: side in pixels of a square inside the image that is filled with its mean colour; 0 for none.
    """
    count, height, width, _ = images.shape
    device = images.device

    def indices(size: int) -> torch.Tensor:  # of rows or columns, (N, size), reflected at the edges
        index = torch.arange(size, device=device) + torch.randint(-pad, pad + 1, (count, 1), device=device)
        return (size - 1) - ((size - 1) - index.abs()).abs()

    rows, columns = indices(height), indices(width)
    if flip:
        columns = torch.where(torch.rand(count, 1, device=device) < 0.5, columns.flip(1), columns)
    images = images[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if cutout:
        low = [torch.randint(size - cutout + 1, (count, 1), device=device) for size in (height, width)]
        inside = [
            (torch.arange(size, device=device) - first).div(cutout, rounding_mode="floor") == 0
            for size, first in zip((height, width), low, strict=True)
        ]
        square = (inside[0][:, :, None] & inside[1][:, None, :])[..., None]
        images = torch.where(square, images.float().mean((1, 2), keepdim=True).round().byte(), images)
    return images
