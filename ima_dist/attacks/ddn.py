"""DDN: decoupled direction and norm."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ima_dist.attacks import common
from ima_dist.core import norms


@dataclass(frozen=True)
class DDNResult:
    """Result of ``ddn``.

    Attributes:
        x: (B, ...) the nearest misclassified point, cut to ``max_norm``; the clean sample where none was found.
        found: (B,) bool, a misclassified point was found, which may be the clean sample.
        correct: (B,) bool, the clean sample is classified correctly.
        evaluations: forward passes spent, in samples.
    """

    x: Tensor
    found: Tensor
    correct: Tensor
    evaluations: int


def ddn(
    model: common.Network,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 20,
    gamma: float = 0.05,
    init_norm: float = 1.0,
    max_norm: float | None = None,
    box: common.Box = None,
) -> DDNResult:
    """L2 perturbations that are small and misclassified (Rony et al., CVPR 2019, algorithm 1).

    From δ = 0: a step of length α along the unit gradient of the cross-entropy; δ is then scaled to the norm
    ε, which has shrunk by the factor 1 − ``gamma`` if the point before the step was misclassified and grown by
    1 + ``gamma`` if not; then cut to the box. α falls from 1 to 0.01 along a cosine. ``steps`` points are tried,
    starting with x; the shortest perturbation that was misclassified is the result.

    Ours: nothing is rounded to 256 levels, and a zero gradient stays zero, where the authors' code draws a
    random direction.

    Args:
        model: maps (B, ...) to logits (B, C); attacked in evaluation mode, restored afterwards.
        x, y: clean samples (B, ...) and true labels (B,).
        gamma, init_norm: relative change of ε in a step, and the first ε.
        max_norm: longer perturbations are scaled down to it, which may leave them correctly classified.
        box: (low, high) of valid inputs, or None.

    Raises:
        ValueError: shapes that do not fit.
    """
    common.check_batch(x, y, init_norm, "l2")
    with torch.no_grad(), common.attack_mode(model):
        delta, best = torch.zeros_like(x), torch.zeros_like(x)
        shortest = torch.full(y.shape, math.inf, dtype=x.dtype, device=x.device)
        eps = torch.full_like(shortest, init_norm)
        # A norm beyond the distance to the farthest corner of the box would be useless.
        farthest = shortest.clone() if box is None else norms.length(torch.maximum(x - box[0], box[1] - x), "l2")
        correct = torch.ones_like(y, dtype=torch.bool)
        for step in range(steps):
            logits, gradient = common.logits_and_gradient(model, x + delta, y, common.cross_entropy)
            wrong = common.misclassified(logits, y)
            if step == 0:
                correct = ~wrong
            size = norms.length(delta, "l2")
            better = wrong & (size < shortest)
            shortest = torch.where(better, size, shortest)
            best = torch.where(norms.per_sample(better, x), delta, best)

            alpha = 0.01 + 0.99 * (1 + math.cos(math.pi * (step + 1) / steps)) / 2
            delta = delta + alpha * norms.ascent(gradient, "l2")
            eps = torch.minimum(torch.where(wrong, (1 - gamma) * eps, (1 + gamma) * eps), farthest)
            size = norms.length(delta, "l2").clamp_min(torch.finfo(x.dtype).tiny)
            delta = delta * norms.per_sample(eps / size, x)
            if box is not None:
                delta = (x + delta).clamp(*box) - x
        adv = x + best if max_norm is None else norms.clip(x + best, x, max_norm, "l2", box)
    return DDNResult(adv, shortest.isfinite(), correct, steps * len(x))
