"""FMN: fast minimum-norm attack."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ima_dist.attacks.common import (
    Box,
    Network,
    attack_mode,
    check_batch,
    logits_and_gradient,
    margin_loss,
    predicted,
    towards,
)
from ima_dist.core import norms

# Relative change of the radius, and a step's length in radii, at the first step and towards the last.
_GAMMA, _ALPHA = (0.3, 0.01), (0.5, 0.02)
# Beyond the linearised distance, so that a straight boundary is crossed and not only reached.
_BEYOND = 1.05


@dataclass(frozen=True)
class MinimalResult:
    """Result of ``fmn``.

    Attributes:
        x: (B, ...) the nearest misclassified point found; the clean sample where none was found.
        distance: (B,) from the clean sample to it; infinite where none was found.
        predicted: (B,) int64, the network's answer there; the true label where none was found.
        evaluations: forward passes spent, in samples.
    """

    x: Tensor
    distance: Tensor
    predicted: Tensor
    evaluations: int


def fmn(
    model: Network,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    steps: int = 30,
    bisections: int = 6,
    rival: Tensor | None = None,
    start: Tensor | None = None,
    box: Box = None,
) -> MinimalResult:
    """Small perturbations that are misclassified (Pintor et al., NeurIPS 2021, algorithm 1, FMN).

    Each step goes along the gradient of the margin loss and is projected into a ball around x, whose radius follows the
    boundary: as long as no misclassified point is known, it is the linearised distance to the boundary; then it shrinks
    below that of the nearest one after a misclassified point, and grows after one that is not. Both changes and the
    length of the steps fall along a cosine. At last the segment from x to the nearest point is halved ``bisections``
    times.

    Ours: a step is a share of the radius and goes along h of eq. 1, in place of a step of fixed length along the unit
    gradient, so that it does not depend on the units of the data; the gradient leaves out what would lead out of the
    box; the halving; the start.

    Args:
        model: maps (B, ...) to logits (B, C); attacked in evaluation mode, restored afterwards.
        x, y: clean samples (B, ...), all classified correctly, and true labels (B,).
        norm: "linf" or "l2".
        steps: points that are tried, starting with x + ``start``.
        rival: (B,) int64, classes to aim at; by default each step aims at the strongest wrong class there. Any wrong
            class counts.
        start: (B, ...), by default 0. Starts on several sides of x find boundaries that lie behind others.
        box: (low, high) of valid inputs, or None.

    Raises:
        ValueError: an unknown norm, or shapes that do not fit.
    """
    # Long: one loop whose state is a dozen tensors.
    check_batch(x, y, 0.0, norm, start)
    loss = margin_loss if rival is None else towards(rival)
    tiny, wide = torch.finfo(x.dtype).tiny, torch.finfo(x.dtype).max
    with torch.no_grad(), attack_mode(model):
        point = x if start is None else norms.clip(x + start, x, wide, norm, box)
        nearest, label = x, y
        shortest = torch.full(y.shape, math.inf, dtype=x.dtype, device=x.device)
        radius = torch.zeros_like(shortest)

        def keep(answer: Tensor, size: Tensor) -> Tensor:
            nonlocal nearest, label, shortest
            wrong = answer != y
            better = wrong & (size < shortest)
            nearest = torch.where(norms.per_sample(better, x), point, nearest)
            label = torch.where(better, answer, label)
            shortest = torch.where(better, size, shortest)
            return wrong

        for step in range(steps):
            falling = (1 + math.cos(math.pi * step / steps)) / 2
            gamma, alpha = (last + (first - last) * falling for first, last in (_GAMMA, _ALPHA))
            logits, gradient = logits_and_gradient(model, point, y, loss)
            if box is not None:
                gradient = _within(gradient, point, box)
            size = norms.length(point - x, norm)
            wrong = keep(predicted(logits), size)
            slope = norms.length(gradient, "l2") if norm == "l2" else gradient.flatten(1).abs().sum(1)
            linear = size - (_BEYOND * loss(logits, y) / slope.clamp_min(tiny)).nan_to_num(0.0, wide, -wide)
            shrunk = torch.minimum(radius, shortest) * (1 - gamma)
            grown = torch.minimum(radius * (1 + gamma), shortest * (1 - gamma / 2))
            # A start that is misclassified already has no radius to shrink from.
            shrunk = torch.where(radius > 0, shrunk, shortest * (1 - gamma))
            radius = torch.where(shortest.isfinite(), torch.where(wrong, shrunk, grown), linear)
            radius = radius.clamp_max(_reach(x, norm, box))
            moved = point + norms.per_sample(alpha * radius, x) * norms.ascent(gradient, norm)
            point = norms.clip(moved, x, radius, norm, box)
        keep(predicted(model(point)), norms.length(point - x, norm))

        far, low, high = nearest - x, torch.zeros_like(shortest), torch.ones_like(shortest)
        for _ in range(bisections):
            middle = (low + high) / 2
            point = x + norms.per_sample(middle, x) * far
            wrong = keep(predicted(model(point)), norms.length(point - x, norm))
            low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    return MinimalResult(nearest, shortest, label, (steps + 1 + bisections) * len(x))


def _within(gradient: Tensor, point: Tensor, box: tuple[float, float]) -> Tensor:
    """The gradient (B, ...) without what would lead out of the box: it is of no use, and no part of the slope.

    With it the linearised distance is too short, and the search stops just before the boundary.
    """
    blocked = ((point <= box[0]) & (gradient < 0)) | ((point >= box[1]) & (gradient > 0))
    return gradient.masked_fill(blocked, 0.0)


def _reach(x: Tensor, norm: str, box: Box) -> float:
    """The largest distance of two points in the box."""
    if box is None:
        return torch.finfo(x.dtype).max
    return (box[1] - box[0]) * (1.0 if norm == "linf" else x[:1].numel() ** 0.5)
