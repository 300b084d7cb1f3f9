"""PGD that runs all its steps, and then looks for the decision boundary on the way to where it has ended."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ima_dist.attacks import shapes
from ima_dist.attacks.bpgd import BoundaryResult, check_side, narrowed
from ima_dist.attacks.common import (
    Box,
    Loss,
    Network,
    attack_mode,
    check_batch,
    cross_entropy,
    logits_and_gradient,
    misclassified,
    resolve_loss,
    soft_margin_loss,
)
from ima_dist.attacks.counting import counting_only
from ima_dist.attacks.pgd import Objective
from ima_dist.core import norms


@dataclass(frozen=True)
class LastResult(BoundaryResult):
    """Result of ``bpgd_last``.

    Attributes:
        noisy: (B, ...) as ``x``, but for correctly classified samples that have not crossed: where a bisection from the
            clean sample to the last iterate ends that meets no misclassified point.
    """

    noisy: Tensor


def bpgd_last(
    model: Network,
    x: Tensor,
    y: Tensor,
    eps: Tensor | float,
    *,
    norm: str,
    steps: int = 20,
    bisections: int = 10,
    step_scale: float = 4.0,
    loss: Loss = "ce",
    start: Tensor | None = None,
    box: Box = None,
    boundary_side: str = "midpoint",
) -> LastResult:
    """Noisy samples near the decision boundary, as IMA's journal article and AME look for them.

    A sample has crossed if any of x₀ … x_steps of PGD is misclassified. The bracket that is halved goes from the clean
    sample to the last iterate x_steps, whether or not that is itself misclassified: the point found is then close to
    x_steps. Ma and Liang, Computer Methods and Programs in Biomedicine 240 (2023) and Neurocomputing 551 (2023).

    Every step is run for every correctly classified sample; misclassified ones are not attacked. x₀ is cut by the box
    only, since ``start`` may be longer than a very small ``eps``.

    Args:
        model, x, y, eps, norm, steps, bisections, step_scale, loss, start, box, boundary_side: as for ``bpgd``.

    Raises:
        ValueError: an unknown norm, loss or side, or shapes that do not fit.
    """
    check_batch(x, y, eps, norm, start)
    check_side(boundary_side)
    objective = resolve_loss(loss)
    with torch.no_grad(), attack_mode(model):
        correct = ~misclassified(shapes.passed(model, x), y) if len(x) else torch.zeros_like(y, dtype=torch.bool)
        xi = norms.random_start(x, eps, norm) if start is None else start
        now = x + xi if box is None else (x + xi).clamp(*box)
        sizes, balls = [step_scale / max(steps, 1)] * steps, norms.Balls(x, eps, norm, box)
        search = _all_kept if shapes.keeps_shape(model, x) else _correct_only
        return search(model, x, y, correct, now, balls, sizes, objective, bisections, boundary_side)


def _correct_only(
    model: Network,
    x: Tensor,
    y: Tensor,
    correct: Tensor,
    now: Tensor,
    balls: norms.Balls,
    sizes: Sequence[float],
    objective: Objective,
    bisections: int,
    side: str,
) -> LastResult:
    """``bpgd_last`` from x₀ = ``now`` (B, ...)."""
    rows, evaluations = correct.nonzero()[:, 0], len(x)
    result, noisy, crossed = x.clone(), x.clone(), torch.zeros_like(correct)
    if len(rows):
        clean, label, balls, now = x[rows], y[rows], balls.select(rows), now[rows]
        now, wrong = _steps(model, label, now, balls, sizes, objective)
        evaluations += (len(sizes) + 1) * len(rows)
        noisy[rows], crossed[rows] = now + _short(bisections, side) * (clean - now), wrong
        hit = wrong.nonzero()[:, 0]
        if len(hit):
            found = narrowed(model, label[hit], clean[hit], now[hit], bisections)[side]
            result[rows[hit]], noisy[rows[hit]] = found, found
            evaluations += bisections * len(hit)
    return LastResult(x=result, crossed=crossed, correct=correct, evaluations=evaluations, noisy=noisy)


def _steps(
    model: Network, y: Tensor, now: Tensor, balls: norms.Balls, sizes: Sequence[float], objective: Objective
) -> tuple[Tensor, Tensor]:
    """The last iterate from x₀ = ``now`` (B, ...), and which samples any iterate misclassifies, (B,) bool."""
    wrong = torch.zeros_like(y, dtype=torch.bool)
    for size in sizes:
        logits, gradient = logits_and_gradient(model, now, y, objective)
        wrong |= misclassified(logits, y)
        now = balls.step(now, gradient, size)
    return now, wrong | misclassified(model(now), y)


def _short(bisections: int, side: str) -> float:
    """The share of the way back to x that a bracket's side keeps after halvings that find nothing misclassified."""
    return {"inside": 2.0**-bisections, "midpoint": 2.0 ** -(bisections + 1), "outside": 0.0}[side]


def _all_kept(
    model: Network,
    x: Tensor,
    y: Tensor,
    correct: Tensor,
    now: Tensor,
    balls: norms.Balls,
    sizes: Sequence[float],
    objective: Objective,
    bisections: int,
    side: str,
) -> LastResult:
    """As ``_correct_only``, where samples without a result stay in the batch."""
    with counting_only(model, correct):
        now, wrong = _steps(model, y, now, balls, sizes, objective)
    crossed = wrong & correct
    with counting_only(model, crossed):
        found = narrowed(model, y, x, now, bisections)[side]
    here, of = norms.per_sample(crossed, x), norms.per_sample(correct, x)
    noisy = torch.where(here, found, torch.where(of, now + _short(bisections, side) * (x - now), x))
    spent = (len(sizes) + 1) * correct.sum() + bisections * crossed.sum()
    evaluations = len(x) + (spent if x.is_cuda else int(spent))
    return LastResult(torch.where(here, found, x), crossed, correct, evaluations, noisy)


def steepness(model: Network, x: Tensor, y: Tensor) -> Tensor:
    """The largest absolute entry of the gradient of each sample's cross-entropy with respect to x, (B, ...) -> (B,)."""
    if not len(x):
        return x.new_zeros(0)
    with torch.no_grad(), attack_mode(model):
        logits, gradient = logits_and_gradient(model, x, y, cross_entropy)
    # Those gradients lack each sample's probability of being in another class.
    return norms.length(gradient, "linf") * soft_margin_loss(logits, y).sigmoid().to(gradient)
