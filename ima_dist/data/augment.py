"""Random crop and flip of CIFAR-10's training images (appendix D.2: "standard data augmentation")."""

import torch
from torch import Tensor

from ima_dist.core.noise import Phase, sample_keys, uniform

# Largest shift of a crop in pixels; missing pixels are mirrored, as in the MMA paper's published code.
PADDING = 4


def augment(x: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
    """Each image shifted by up to 4 pixels in each direction, edges mirrored, and flipped half of the time.

    The shift and flip of an image depend only on (seed, epoch, its index), so a sample looks the same throughout an
    epoch: its margin is estimated on the image that was trained on. Forces no sync.

    Args:
        x: (B, C, H, W), H and W above 4.
        indices: (B,) int64 global sample indices, on the device of x.

    Returns:
        (B, C, H, W), a new tensor.
    """
    count, channels, height, width = x.shape
    shift_down, shift_right, flip = uniform(
        sample_keys(seed, epoch, Phase.AUGMENT, indices), (3,), torch.float64
    ).unbind(1)
    rows = _mirrored(_shifts(shift_down) + torch.arange(height, device=x.device), height)
    columns = _mirrored(_shifts(shift_right) + torch.arange(width, device=x.device), width)
    columns = torch.where(flip[:, None] < 0.5, columns.flip(1), columns)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, height * width)
    return x.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view_as(x)


def _shifts(u: Tensor) -> Tensor:
    """(B,) in [0, 1) -> (B, 1) whole numbers from -4 to 4, equally often."""
    return (u * (2 * PADDING + 1)).long()[:, None] - PADDING


def _mirrored(positions: Tensor, size: int) -> Tensor:
    """Positions beyond 0 .. size - 1 reflected at the outermost pixels, which are not repeated."""
    return size - 1 - (size - 1 - positions.abs()).abs()
