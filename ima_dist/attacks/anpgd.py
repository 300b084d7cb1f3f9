"""Adaptive-norm PGD: the shortest perturbation along the direction that PGD finds."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ima_dist.attacks.common import Box, Network, attack_mode, check_batch, soft_margin_loss
from ima_dist.attacks.pgd import pgd
from ima_dist.core import norms


@dataclass(frozen=True)
class NearestResult:
    """Result of ``anpgd``.

    Attributes:
        x: (B, ...) the point where the soft margin loss changes its sign along the direction of PGD.
        distance: (B,) from the clean sample, along that direction, before the box cuts it.
        crossed: (B,) bool, the loss was positive somewhere; if not, ``distance`` is close to ``max_eps``.
        evaluations: forward passes spent, in samples.
    """

    x: Tensor
    distance: Tensor
    crossed: Tensor
    evaluations: int


def anpgd(
    model: Network,
    x: Tensor,
    y: Tensor,
    eps: Tensor | float,
    *,
    norm: str,
    max_eps: float,
    steps: int = 20,
    bisections: int = 10,
    step_scale: float = 2.5,
    start: Tensor | None = None,
    box: Box = None,
) -> NearestResult:
    """Approximately shortest successful perturbations (Ding et al., ICLR 2020, algorithm 1, AN-PGD).

    PGD on the soft margin loss with radius ``eps``, a first guess, gives a direction δ/‖δ‖. Along it the
    zero of the loss is bracketed by [0, ‖δ‖] if PGD succeeded and by [‖δ‖, max_eps] if not; the bracket is
    halved ``bisections`` times, and its midpoint is the result, so that there is one for every sample.

    Args:
        model, x, y, norm, steps, step_scale, start, box: as for ``pgd``; every x classified correctly.
        eps: the first guess, a number or (B,), at most ``max_eps``.
        max_eps: where the search ends; this distance itself is not tried.

    Raises:
        ValueError: an unknown norm, or shapes that do not fit.
    """
    check_batch(x, y, eps, norm, start)
    with torch.no_grad(), attack_mode(model):
        adv = pgd(
            model, x, y, eps, norm=norm, steps=steps, step_scale=step_scale, loss=soft_margin_loss, start=start, box=box
        )
        delta = adv - x
        size = norms.length(delta, norm)
        unit = delta / norms.per_sample(size.clamp_min(torch.finfo(x.dtype).tiny), x)

        def at(distance: Tensor) -> Tensor:
            point = x + norms.per_sample(distance, x) * unit
            return point if box is None else point.clamp(*box)

        # Not ">= 0": a loss that is NaN counts as crossed.
        crossed = ~(soft_margin_loss(model(adv), y) < 0)
        inside = torch.where(crossed, torch.zeros_like(size), size)
        outside = torch.where(crossed, size, torch.full_like(size, max_eps))
        for _ in range(bisections):
            middle = (inside + outside) / 2
            wrong = ~(soft_margin_loss(model(at(middle)), y) < 0)
            inside, outside = torch.where(wrong, inside, middle), torch.where(wrong, middle, outside)
            crossed = crossed | wrong
        distance = (inside + outside) / 2
    return NearestResult(at(distance), distance, crossed, (steps + 1 + bisections) * len(x))
