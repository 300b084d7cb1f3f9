"""The strictest reading of a PGD attack: whatever broke a sample, at whatever step, counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ima_dist import norms
from ima_dist.attacks.common import (
    Box,
    Network,
    attack_mode,
    check_batch,
    logits_and_gradient,
    misclassified,
    resolve_loss,
)


def worst(
    model: Network,
    x: Tensor,
    y: Tensor,
    levels: Sequence[float],
    *,
    norm: str,
    steps: int = 100,
    step_scale: float = 4.0,
    losses: Sequence[str] = ("ce", "margin"),
    start: Callable[[float], Tensor] | None = None,
    box: Box = None,
) -> tuple[Tensor, Tensor]:
    """Predictions under the worst of all iterates, losses and smaller radii.

    PGD (eq. 1) is run for each radius in ascending order and each loss. The clean sample and every
    iterate count; a sample that is broken leaves the batch and stays broken at larger radii. With two
    classes "ce" is left out beside "margin", whose steps are the same.

    Args:
        model, x, y, norm, steps, step_scale, box: as for ``pgd``.
        levels: radii in ascending order.
        start: gives ξ (B, ...) for a radius; by default drawn uniformly from the ball.

    Returns:
        predictions: (len(levels), B) int64, the wrong label found or the true one.
        evaluations: () int64, forward passes spent, in samples.

    Raises:
        ValueError: levels not ascending, an unknown norm or loss, or shapes that do not fit.
    """
    check_batch(x, y, 0.0, norm)
    if list(levels) != sorted(levels):
        raise ValueError(f"levels must ascend, got {list(levels)}")
    predictions = torch.empty(len(levels), len(x), dtype=torch.int64, device=x.device)
    with torch.no_grad(), attack_mode(model):
        logits = model(x)
        predicted = logits.argmax(1)
        if logits.shape[1] == 2 and {"ce", "margin"} <= set(losses):
            # With two classes the gradient of ce is that of margin times a positive number, so both take the
            # same steps; only, ce's can underflow to zero.
            losses = [name for name in losses if name != "ce"]
        spent = len(x)
        for number, eps in enumerate(levels):
            if eps > 0:
                xi = norms.random_start(x, eps, norm) if start is None else start(eps)
                for name in losses:
                    rows = (predicted == y).nonzero()[:, 0]
                    balls = norms.Balls(x, eps, norm, box).select(rows)
                    now = balls.clip(x[rows] + xi[rows])
                    spent += _break(model, y, rows, now, balls, predicted, steps, step_scale, name)
            predictions[number] = predicted
    return predictions, torch.tensor(spent)


def _break(
    model: Network,
    y: Tensor,
    rows: Tensor,
    now: Tensor,
    balls: norms.Balls,
    predicted: Tensor,
    steps: int,
    step_scale: float,
    loss: str,
) -> int:
    """Attack the samples ``rows`` from ``now``; write wrong labels to ``predicted``. Returns evaluations."""
    objective = resolve_loss(loss)
    w_y = y[rows]
    spent = 0
    for i in range(steps + 1):
        if not len(rows):
            break
        if i < steps:
            logits, gradient = logits_and_gradient(model, now, w_y, objective)
        else:
            logits, gradient = model(now), now
        spent += len(rows)
        wrong = misclassified(logits, w_y)
        gone = wrong.nonzero()[:, 0]
        if len(gone):
            predicted[rows[gone]] = logits[gone].argmax(1)
        if i == steps:
            break
        if len(gone):
            left = (~wrong).nonzero()[:, 0]
            rows, w_y, balls = rows[left], w_y[left], balls.select(left)
            now, gradient = now[left], gradient[left]
        now = balls.step(now, gradient, step_scale / steps)
    return spent
