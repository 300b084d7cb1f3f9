"""PGD that each sample leaves soon after it is misclassified."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ima_dist.attacks import common, shapes
from ima_dist.attacks.counting import counting_only
from ima_dist.core import norms


@dataclass(frozen=True)
class FriendlyResult:
    """Result of ``early_stopped_pgd``.

    Attributes:
        x: (B, ...) where each sample stopped.
        evaluations: forward passes spent, in samples.
    """

    x: Tensor
    evaluations: int | Tensor


def early_stopped_pgd(
    model: common.Network,
    x: Tensor,
    y: Tensor,
    eps: Tensor | float,
    *,
    norm: str,
    tau: int,
    steps: int = 20,
    step_scale: float = 4.0,
    start: Tensor | None = None,
    box: common.Box = None,
) -> FriendlyResult:
    """Friendly adversarial samples (Zhang et al., ICML 2020, algorithm 1: PGD-K-τ).

    A sample stops at the first misclassified iterate after ``tau`` earlier ones that were, counted one by one, or
    after all steps. It leaves the working batch there, so that PGD costs what is used.

    Args:
        model, x, y, eps, norm, steps, step_scale, start, box: as for ``pgd``; the loss is cross-entropy.
        tau: misclassified iterates from which a sample still takes a step; 0 stops on the far side of the boundary.

    Raises:
        ValueError: an unknown norm, or shapes that do not fit.
    """
    common.check_batch(x, y, eps, norm, start)
    with torch.no_grad(), common.attack_mode(model):
        xi = norms.random_start(x, eps, norm) if start is None else start
        balls = norms.Balls(x, eps, norm, box)
        now = balls.clip(x + xi)
        if shapes.keeps_shape(model, x):
            return _all_kept(model, now, y, balls, tau, steps, step_scale)
        result, rows, evaluations = now.clone(), torch.arange(len(x), device=x.device), 0
        left = torch.full_like(y, tau)
        for _ in range(steps):
            if not len(rows):
                break
            evaluations += len(rows)
            logits, gradient = common.logits_and_gradient(model, now, y[rows], common.cross_entropy)
            wrong = common.misclassified(logits, y[rows])
            # One sync per step, which saves whole passes.
            stay = (~wrong | (left > 0)).nonzero()[:, 0]
            left = left - wrong.to(left.dtype)
            if len(stay) < len(rows):
                rows, now, gradient, left = rows[stay], now[stay], gradient[stay], left[stay]
                balls = balls.select(stay)
            now = balls.step(now, gradient, step_scale / steps)
            result[rows] = now
    return FriendlyResult(result, evaluations)


def _all_kept(
    model: common.Network, now: Tensor, y: Tensor, balls: norms.Balls, tau: int, steps: int, step_scale: float
) -> FriendlyResult:
    """The steps of ``early_stopped_pgd`` from ``now`` (B, ...), where samples that have stopped stay in the batch."""
    left, moving = torch.full_like(y, tau), torch.ones_like(y, dtype=torch.bool)
    evaluations = torch.zeros_like(y[:1]).sum()
    for _ in range(steps):
        evaluations += moving.sum()
        with counting_only(model, moving):
            logits, gradient = common.logits_and_gradient(model, now, y, common.cross_entropy)
        wrong = common.misclassified(logits, y)
        moving = moving & (~wrong | (left > 0))
        left = left - wrong.to(left.dtype)
        now = torch.where(norms.per_sample(moving, now), balls.step(now, gradient, step_scale / steps), now)
    return FriendlyResult(now, evaluations if now.is_cuda else int(evaluations))
