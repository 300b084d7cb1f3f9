"""The strictest reading of a PGD attack: a sample counts as broken if any step broke it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ima_dist.attacks.common import (
    Box,
    Network,
    attack_mode,
    check_batch,
    logits_and_gradient,
    misclassified,
    resolve_loss,
)
from ima_dist.core import norms


# More than 60 lines because of its description; the work is done in ``_break`` and ``_nearest``.
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
    rivals: int = 3,
    start: Callable[[float], Tensor] | None = None,
    box: Box = None,
) -> tuple[Tensor, Tensor]:
    """Predictions under the worst of all iterates, losses and smaller radii.

    PGD (eq. 1) runs for each radius in ascending order and each loss. The clean sample and every iterate count;
    a sample that is broken leaves the batch and stays broken at larger radii. With two classes "ce" takes the same
    steps as "margin" and is left out.

    The samples left are then attacked towards their nearest rival classes one by one, with a share of the steps
    each, from two opposite starts, because the margin loss pursues whichever class is strongest at the moment and
    can lead away from a nearer one. These steps shrink from half the radius towards zero, because steps of one size
    circle around a narrow region. docs/log.md compares ``worst`` with AutoAttack.

    Args:
        model, x, y, norm, steps, step_scale, box: as for ``pgd``.
        levels: radii in ascending order.
        rivals: classes to aim at, nearest first by the linearised distance at x (Moosavi-Dezfooli et al. 2016,
            DeepFool); with two classes there is none.
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
        predicted, classes, spent = logits.argmax(1), logits.shape[1], len(x)
        if classes == 2 and {"ce", "margin"} <= set(losses):
            # The gradient of ce is that of margin times a positive number, which can underflow to zero.
            losses = [name for name in losses if name != "ce"]
        rivals = min(rivals, classes - 1) if classes > 2 else 0
        aims: Tensor | None = None
        for number, eps in enumerate(levels):
            if eps > 0:
                xi = norms.random_start(x, eps, norm) if start is None else start(eps)
                balls = norms.Balls(x, eps, norm, box)
                for name in losses:
                    rows = (predicted == y).nonzero()[:, 0]
                    even = [step_scale / steps] * steps
                    spent += _break(model, y, None, rows, x + xi, balls, predicted, even, name)
                if rivals and aims is None:
                    rows = (predicted == y).nonzero()[:, 0]
                    aims = torch.zeros(len(x), rivals, dtype=torch.int64, device=x.device)
                    if len(rows):  # some networks cannot take an empty batch
                        aims[rows] = _nearest(model, x[rows], y[rows], rivals, norm)
                    spent += _candidates(classes) * len(rows)
                for begin, k in itertools.product((x + xi, x - xi), range(rivals)):
                    assert aims is not None
                    rows = (predicted == y).nonzero()[:, 0]
                    sizes = _shrinking(round(steps / rivals))
                    spent += _break(model, y, aims[:, k], rows, begin, balls, predicted, sizes, "margin")
            predictions[number] = predicted
    return predictions, torch.tensor(spent)


def _shrinking(steps: int) -> list[float]:
    """Step sizes that fall evenly from half the radius towards zero, in units of the radius."""
    steps = max(1, steps)
    return [0.5 * (1 - i / steps) for i in range(steps)]


def _candidates(classes: int) -> int:
    """Rival classes whose distance is estimated."""
    return min(9, classes - 1)


def _nearest(model: Network, x: Tensor, y: Tensor, rivals: int, norm: str) -> Tensor:
    """(B, rivals): of the nine rival classes with the largest logits, those with the smallest linearised distance."""
    logits = model(x)
    candidates = logits.scatter(1, y[:, None], float("-inf")).topk(_candidates(logits.shape[1]), dim=1).indices
    distances = []
    for rival in candidates.unbind(1):
        logits, gradient = logits_and_gradient(model, x, y, _towards(rival))
        size = gradient.flatten(1).norm(1 if norm == "linf" else 2, dim=1)  # the dual norm
        distances.append(-_towards(rival)(logits, y) / size.clamp_min(torch.finfo(x.dtype).tiny))
    order = torch.stack(distances, 1).argsort(1)[:, :rivals]
    return candidates.gather(1, order)


def _towards(rival: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Logit of the class ``rival`` (B,) minus the true one."""

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return logits.gather(1, rival[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]

    return loss


def _break(
    model: Network,
    y: Tensor,
    rival: Tensor | None,
    rows: Tensor,
    begin: Tensor,
    balls: norms.Balls,
    predicted: Tensor,
    sizes: Sequence[float],
    loss: str,
) -> int:
    """Attack the samples ``rows`` from ``begin``, with ``loss`` or towards ``rival`` (B,).

    sizes: of the steps, in units of the radius. Writes wrong labels to ``predicted``; returns the evaluations spent.
    """
    balls = balls.select(rows)
    now, w_y = balls.clip(begin[rows]), y[rows]
    spent = 0
    for i in range(len(sizes) + 1):
        if not len(rows):
            break
        if i < len(sizes):
            objective = resolve_loss(loss if rival is None else _towards(rival[rows]))
            logits, gradient = logits_and_gradient(model, now, w_y, objective)
        else:
            logits, gradient = model(now), now
        spent += len(rows)
        wrong = misclassified(logits, w_y)
        gone = wrong.nonzero()[:, 0]
        if len(gone):
            predicted[rows[gone]] = logits[gone].argmax(1)
        if i == len(sizes):
            break
        if len(gone):
            left = (~wrong).nonzero()[:, 0]
            rows, w_y, balls = rows[left], w_y[left], balls.select(left)
            now, gradient = now[left], gradient[left]
        now = balls.step(now, gradient, sizes[i])
    return spent
