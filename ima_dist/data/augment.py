"""Random changes of training images, keyed by (seed, epoch, index of the sample), on the device.

A sample looks the same throughout an epoch: its margin is estimated on the image that was trained on.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ima_dist.config.augmentations import Step, steps_of
from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.references import resolve_reference
from ima_dist.core.noise import Phase, derived, sample_keys, uniform
from ima_dist.data.pipeline import Streamed
from ima_dist.data.types import Box, DataSet

# CIFAR-10: largest shift of a crop in pixels; missing pixels are mirrored, as in the MMA paper's published code.
PADDING = 4
#: (x (B, *shape) on the device, indices (B,), seed, epoch) -> (B, *shape).
Augmentation = Callable[[Tensor, Tensor, int, int], Tensor]


def augmentation(option: str | None, data: DataSet) -> Augmentation | None:
    """What ``--data.augment`` does to the training samples; without the option what the data set asks for, if any.

    Raises ConfigError if the samples are not of the kind that it takes, or if a function of the user's does not exist.
    """
    steps = None if option is None else steps_of(option)
    if option is None:
        return augment if data.augment else None
    if steps is None:
        return partial(_by_function, resolve_reference(option, "data.augment"), data.box)
    for step in steps:
        _check_shape(step, data.train.shape)
    return partial(_by_steps, steps, data.box) if steps else None


def check_augmentation(option: str, data: DataSet, dtype: torch.dtype) -> None:
    """Try the option on a few training samples, in the precision of the run. Raises ConfigError if it fails."""
    change = augmentation(option, data)
    if change is None:
        return
    indices = torch.arange(min(3, len(data.train)))
    x, _ = Streamed(data.train, "cpu", dtype, data.box).batch(indices)
    given = x.clone()
    try:
        found = change(x, indices, 0, 0)
        again = torch.cat([change(given[i : i + 1].clone(), indices[i : i + 1], 0, 0) for i in indices.tolist()])
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--data.augment {option} failed, correct it: {first_line(error)}.") from error
    problem = None
    if not torch.equal(x, given):
        problem = "changes the samples that it is given: let it return new ones"
    elif not found.isfinite().all():
        problem = "returns NaN or infinite values"
    elif not torch.allclose(found, again, atol=1e-4 * max(float(x.abs().max()), 1e-30)):
        problem = (
            "does something else to a sample alone, or when it is called again: draw random numbers only from the "
            "keys, one for each sample"
        )
    if problem:
        raise ConfigError(f"--data.augment {option} {problem}.")


def augment(x: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
    """CIFAR-10's "standard data augmentation" (appendix D.2): shifted by up to 4 pixels in each direction, edges
    mirrored, and flipped half of the time.

    The shift and flip of an image depend only on (seed, epoch, its index). Forces no sync.

    Args:
        x: (B, C, H, W), H and W above 4.
        indices: (B,) int64 global sample indices, on the device of x.

    Returns:
        (B, C, H, W), a new tensor.
    """
    shift_down, shift_right, flip = uniform(
        sample_keys(seed, epoch, Phase.AUGMENT, indices), (3,), torch.float64
    ).unbind(1)
    return _picked(x, _shifts(shift_down, PADDING), _shifts(shift_right, PADDING), flip < 0.5)


# ---- what --data.augment names -------------------------------------------------------------------------


def _by_function(
    function: Callable[[Tensor, Tensor], Tensor], box: Box, x: Tensor, indices: Tensor, seed: int, epoch: int
) -> Tensor:
    found = function(x, sample_keys(seed, epoch, Phase.AUGMENT, indices))
    if not isinstance(found, Tensor) or (found.shape, found.dtype, found.device) != (x.shape, x.dtype, x.device):
        kind = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"The function of --data.augment must return samples like those it is given, {x.dtype} {tuple(x.shape)} "
            f"on {x.device}, not {kind}."
        )
    return _clipped(found, box)


def _by_steps(steps: tuple[Step, ...], box: Box, x: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
    keys = sample_keys(seed, epoch, Phase.AUGMENT, indices)
    for number, (name, amount) in enumerate(steps):
        u = uniform(derived(keys, number), (2,), torch.float64)
        x = _STEPS[name](x, u, amount or 0.0)
    return _clipped(x, box)


def _clipped(x: Tensor, box: Box) -> Tensor:
    """Inside the box, where attacks start."""
    return x if box is None else x.clamp(*box)


def _check_shape(step: Step, shape: tuple[int, ...]) -> None:
    images = len(shape) == 3
    if images and shape[2] <= 4 < shape[0]:
        raise ConfigError(
            f"--data.augment {step.name} needs images with the channels first, and a sample is {shape}: let your "
            "loader transpose them to (channels, height, width)."
        )
    if not images:
        raise ConfigError(
            f"--data.augment {step.name} needs images (channels, height, width), and a sample is {shape}: give a "
            "function of your own, pkg.module:function."
        )
    if step.name == "crop" and step.amount is not None and min(shape[1:]) <= step.amount:
        raise ConfigError(f"--data.augment crop:{step.amount:g} needs images of more pixels than {shape} has.")


# ---- the steps: x (B, C, H, W), two uniform numbers u (B, 2) for each image, and the amount --------------


def _crop(x: Tensor, u: Tensor, amount: float) -> Tensor:
    return _picked(x, _shifts(u[:, 0], int(amount)), _shifts(u[:, 1], int(amount)), None)


def _flip(x: Tensor, u: Tensor, amount: float) -> Tensor:
    return torch.where(_each(u[:, 0] < 0.5), x.flip(3), x)


def _vflip(x: Tensor, u: Tensor, amount: float) -> Tensor:
    return torch.where(_each(u[:, 0] < 0.5), x.flip(2), x)


def _rotate(x: Tensor, u: Tensor, amount: float) -> Tensor:
    height, width = x.shape[2:]
    angle = ((2 * u[:, 0] - 1) * math.radians(amount)).to(x.dtype)[:, None, None]
    down = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] - (height - 1) / 2
    right = torch.arange(width, device=x.device, dtype=x.dtype)[None, :] - (width - 1) / 2
    # In pixels, so that images that are not square are not sheared; grid_sample counts from -1 to 1 in each direction.
    columns = (angle.cos() * right - angle.sin() * down) / (width / 2)
    rows = (angle.sin() * right + angle.cos() * down) / (height / 2)
    grid = torch.stack([columns, rows], -1)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _brightness(x: Tensor, u: Tensor, amount: float) -> Tensor:
    return x * _factor(x, u, amount)


def _contrast(x: Tensor, u: Tensor, amount: float) -> Tensor:
    mean = x.flatten(1).mean(1)[:, None, None, None]
    return mean + (x - mean) * _factor(x, u, amount)


_STEPS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "crop": _crop,
    "flip": _flip,
    "vflip": _vflip,
    "rotate": _rotate,
    "brightness": _brightness,
    "contrast": _contrast,
}


def _factor(x: Tensor, u: Tensor, amount: float) -> Tensor:
    """From 1 - amount to 1 + amount, for each image."""
    return _each(1 + (2 * u[:, 0] - 1) * amount).to(x.dtype)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _picked(x: Tensor, down: Tensor, right: Tensor, flipped: Tensor | None) -> Tensor:
    """The images x (B, C, H, W) shifted by whole pixels (B, 1), edges mirrored; and flipped (B,) bool."""
    count, channels, height, width = x.shape
    rows = _mirrored(down + torch.arange(height, device=x.device), height)
    columns = _mirrored(right + torch.arange(width, device=x.device), width)
    if flipped is not None:
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, height * width)
    return x.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view_as(x)


def _shifts(u: Tensor, most: int) -> Tensor:
    """(B,) in [0, 1) -> (B, 1) whole numbers from -most to most, equally often."""
    return (u * (2 * most + 1)).long()[:, None] - most


def _mirrored(positions: Tensor, size: int) -> Tensor:
    """Positions beyond 0 .. size - 1 reflected at the outermost pixels, which are not repeated."""
    return size - 1 - (size - 1 - positions.abs()).abs()
