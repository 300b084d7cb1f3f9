"""Projected gradient descent."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ima_dist.attacks import common, shapes
from ima_dist.attacks.compiled import STEPS, Compiled
from ima_dist.attacks.counting import Counted
from ima_dist.core import norms

Objective = Callable[[Tensor, Tensor], Tensor]


def pgd(
    model: common.Network,
    x: Tensor,
    y: Tensor,
    eps: Tensor | float,
    *,
    norm: str,
    steps: int = 20,
    step_scale: float = 4.0,
    loss: common.Loss = "ce",
    start: Tensor | None = None,
    box: common.Box = None,
) -> Tensor:
    """The last iterate of PGD (paper, eq. 1; Madry et al. 2018).

    x₀ = clip(x + ξ), xᵢ = clip(xᵢ₋₁ + η·h(∇ₓJ)) with η = step_scale·ε/steps, sample by sample.

    Args:
        model: maps (B, ...) to logits (B, C); attacked in evaluation mode, restored afterwards.
        x, y: clean samples (B, ...) and true labels (B,).
        eps: radius of the ball, in the input's units: a number or (B,).
        norm: "linf" or "l2".
        loss: J: "ce", "margin" or a function (logits, y) -> (B,).
        start: ξ (B, ...); by default drawn uniformly from the ball.
        box: (low, high) of valid inputs, or None.

    Returns:
        (B, ...), within eps of x and inside the box. Every step is run for every sample.

    Raises:
        ValueError: an unknown norm or loss, or shapes that do not fit.
    """
    common.check_batch(x, y, eps, norm, start)
    objective = common.resolve_loss(loss)
    with torch.no_grad(), common.attack_mode(model):
        xi = norms.random_start(x, eps, norm) if start is None else start
        balls = norms.Balls(x, eps, norm, box)
        adv = balls.clip(x + xi)
        for point, _, _ in walk(model, adv, y, balls, [step_scale / max(steps, 1)] * steps, objective):
            adv = point
    return adv


def walk(
    model: common.Network, now: Tensor, y: Tensor, balls: norms.Balls, sizes: Sequence[float], objective: Objective
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Steps of PGD from ``now`` (B, ...), of ``sizes`` in units of the radius.

    Yields the point after each step (B, ...), and the logits (B, C) and raw gradient (B, ...) before it.
    """
    network = model.network if isinstance(model, Counted) else model
    program = network if isinstance(network, Compiled) and len(now) > 1 and shapes.keeps_shape(model, now) else None
    if objective not in (common.cross_entropy, common.soft_margin_loss):
        program = None
    taken = 0
    while taken < len(sizes):
        size, some = sizes[taken], sizes[taken : taken + STEPS]
        if program is not None and list(some) == [size] * STEPS:
            points, answers, gradients = program.steps(now, y, balls, size)
            if isinstance(model, Counted):
                for logits, gradient in zip(answers, gradients, strict=True):
                    model.tally.add_logits(logits, copy=False)
                    model.tally.add_gradient(gradient, copy=False)
            yield from zip(points, answers, gradients, strict=True)
            now, taken = points[-1], taken + STEPS
        else:
            logits, gradient = common.logits_and_raw_gradient(model, now, y, objective)
            now, taken = balls.step(now, common.finite(gradient), size), taken + 1
            yield now, logits, gradient


def pgd_until_wrong(
    model: common.Network,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    xi: Tensor,
    balls: norms.Balls,
    sizes: Sequence[float],
    objective: Callable[[Tensor], Objective],
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """PGD from x + ξ for the samples ``rows`` (K,) int64, which leave the batch as soon as they are misclassified.

    Yields, for each forward pass, the samples ``rows`` still in the batch, those of them that it has found
    misclassified (positions in ``rows``), the element of the sequence before this pass, its own element, and its
    logits. The sequence is x, x₀ …

    Args:
        x, y, balls: of all samples. xi: (K, ...) ξ of the ``rows``. sizes: of the steps, in units of the radius.
        objective: gives the loss for the samples ``rows``.
    """
    before, w_y, balls = x[rows], y[rows], balls.select(rows)
    now = balls.clip(before + xi)
    for size in (*sizes, None):
        if not len(rows):
            return
        if size is None:
            logits, gradient = model(now), now
        else:
            logits, gradient = common.logits_and_gradient(model, now, w_y, objective(rows))
        wrong = common.misclassified(logits, w_y)
        # One sync per step, which costs a launch gap and saves whole passes.
        gone = wrong.nonzero()[:, 0]
        yield rows, gone, before, now, logits
        if size is None:
            return
        if len(gone):
            left = (~wrong).nonzero()[:, 0]
            rows, w_y, balls = rows[left], w_y[left], balls.select(left)
            now, gradient = now[left], gradient[left]
        before, now = now, balls.step(now, gradient, size)
