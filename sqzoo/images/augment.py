"""Random crop, flip, cutout and colour jitter of a batch, by tensor operations on the images' own device."""

import math

import torch
import torch.nn.functional as F

_ASPECT = 4 / 3  # of a random resized crop's sides, at most, as usual
_SCALE = 0.75  # side of the result to the images'
_JITTER = 0.3  # largest change of brightness, contrast and saturation


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


def random_resized_crop(images: torch.Tensor, min_area: float, flip: bool) -> torch.Tensor:
    """Crop a random part of each image, resize it (Szegedy et al. 2015), and jitter brightness, contrast and colour.

    Args:
        images: (N, H, W, 3) uint8, square.
        min_area: smallest part of an image's area, in (0, 1].
        flip: mirror half of the images.

    Returns:
        Images of three quarters of the size, which takes half the time; in a part that is enlarged, objects then look
        about as large as in the whole image.
    """
    count, device, size = len(images), images.device, round(_SCALE * images.shape[1])

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(count, device=device).uniform_(low, high)

    side, aspect = uniform(min_area, 1).sqrt(), uniform(-math.log(_ASPECT), math.log(_ASPECT)).mul(0.5).exp()
    width, height = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = width * (torch.where(uniform(0, 1) < 0.5, -1, 1) if flip else 1)
    theta[:, 1, 1] = height
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    x = images.permute(0, 3, 1, 2).float()
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    bright, contrast, colour = (uniform(1 - _JITTER, 1 + _JITTER)[:, None, None, None] for _ in range(3))
    grey = x.mean(1, keepdim=True)
    x = grey + colour * (x - grey)
    mean = grey.mean((2, 3), keepdim=True)
    x = bright * (mean + contrast * (x - mean))
    return x.clamp(0, 255).round().byte().permute(0, 2, 3, 1)
