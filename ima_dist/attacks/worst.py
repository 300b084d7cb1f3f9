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
    iterate count; a sample that is broken leaves the batch and stays broken at larger radii.

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
        predicted = model(x).argmax(1)
        spent = len(x)
        for number, eps in enumerate(levels):
            if eps > 0:
                xi = norms.random_start(x, eps, norm) if start is None else start(eps)
                for name in losses:
                    rows = (predicted == y).nonzero()[:, 0]
                    spent += _break(model, x, y, xi, rows, predicted, eps, norm, steps, step_scale, name, box)
            predictions[number] = predicted
    return predictions, torch.tensor(spent)


def _break(
    model: Network,
    x: Tensor,
    y: Tensor,
    xi: Tensor,
    rows: Tensor,
    predicted: Tensor,
    eps: float,
    norm: str,
    steps: int,
    step_scale: float,
    loss: str,
    box: Box,
) -> int:
    """Attack the samples ``rows``; write wrong labels into ``predicted``. Returns evaluations spent."""
    objective = resolve_loss(loss)
    eta = step_scale * eps / steps
    w_x, w_y = x[rows], y[rows]
    now = norms.clip(w_x + xi[rows], w_x, eps, norm, box)
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
        gone, left = wrong.nonzero()[:, 0], (~wrong).nonzero()[:, 0]
        if len(gone):
            predicted[rows[gone]] = logits.argmax(1)[gone]
            rows, w_x, w_y, now, gradient = rows[left], w_x[left], w_y[left], now[left], gradient[left]
        if i < steps:
            now = norms.clip(now + eta * norms.ascent(gradient, norm), w_x, eps, norm, box)
    return spent
