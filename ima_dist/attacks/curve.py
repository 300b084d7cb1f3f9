"""A whole curve of accuracy by radius, for little more than the price of one radius."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ima_dist.attacks.common import Box, Network, attack_mode, check_batch
from ima_dist.attacks.minimal import STARTS, minimal
from ima_dist.attacks.worst import Search
from ima_dist.core import norms

# FMN's share of the steps from each start.
FMN_SHARE = 1 / 5


@dataclass(frozen=True)
class CurveResult:
    """Result of ``worst_curve``.

    Attributes:
        predictions: (levels, B) int64, a wrong label that some point within the radius has, or the true one.
        implied: (levels, B) bool, not attacked: the sample has survived the strong attack at a larger radius.
        distance: (B,) the shortest distance at which the sample is known to be broken; infinite where there is none.
        evaluations: forward passes spent, in samples.
    """

    predictions: Tensor
    implied: Tensor
    distance: Tensor
    evaluations: int


def worst_curve(
    model: Network,
    x: Tensor,
    y: Tensor,
    levels: Sequence[float],
    *,
    norm: str,
    steps: int = 100,
    step_scale: float = 4.0,
    start: Callable[[float, int], Tensor] | None = None,
    box: Box = None,
) -> CurveResult:
    """Predictions at every radius under FMN from several starts and the iterates of ``worst``.

    FMN (``attacks.minimal``) first gives each sample an upper bound of its distance to the boundary, with a
    misclassified point as proof: from x, towards the three nearest rival classes, and from random points on opposite
    sides. Then the radii are tried from the largest to the smallest: a sample whose bound lies above the radius is
    attacked as by ``worst``. If it survives, it counts as right at all smaller radii too; if not, the next radius is
    tried. So most samples need one strong attack for the whole curve. A point that breaks a sample at a radius breaks
    it at all larger ones.

    Args:
        model, x, y, norm, steps, step_scale, box: as for ``pgd``.
        levels: radii in ascending order.
        start: gives ξ (B, ...) for a radius and the number of a start; by default drawn uniformly from the ball.

    Raises:
        ValueError: levels not ascending, an unknown norm, or shapes that do not fit.
    """
    check_batch(x, y, 0.0, norm)
    if list(levels) != sorted(levels):
        raise ValueError(f"levels must ascend, got {list(levels)}")
    positive = [eps for eps in levels if eps > 0]
    with torch.no_grad(), attack_mode(model):
        curve = _Curve(model, x, y, norm, box, start or (lambda eps, number: norms.random_start(x, eps, norm)))
        survived = torch.zeros_like(y, dtype=torch.bool)
        implied = {eps: torch.zeros_like(survived) for eps in levels}
        curve.bound(positive, max(1, round(FMN_SHARE * steps)))
        for eps in reversed(positive):
            open_ = curve.distance > eps
            implied[eps] = open_ & survived
            survived |= curve.attack((open_ & ~survived).nonzero()[:, 0], eps, steps, step_scale)
    predictions = torch.stack([torch.where(curve.distance <= eps, curve.label, y) for eps in levels])
    return CurveResult(predictions, torch.stack([implied[eps] for eps in levels]), curve.distance, int(curve.spent))


class _Curve:
    """The shortest ``distance`` (B,) at which each sample is broken, its ``label`` (B,) there, and passes ``spent``."""

    def __init__(
        self, model: Network, x: Tensor, y: Tensor, norm: str, box: Box, start: Callable[[float, int], Tensor]
    ) -> None:
        self.model, self.x, self.y, self.norm, self.box, self.start = model, x, y, norm, box, start

    def bound(self, levels: Sequence[float], steps: int) -> None:
        """Distances by FMN, for samples that are not known to be broken within the smallest of the positive radii."""
        settings: dict[str, Any] = {"norm": self.norm, "steps": steps, "box": self.box}
        if levels:
            settings |= {"enough": levels[0], "start": partial(self.start, levels[-1])}
        found = minimal(self.model, self.x, self.y, starts=STARTS if levels else 0, **settings)
        self.label, self.distance = found.predicted, found.distance
        self.spent: int | Tensor = found.evaluations

    def attack(self, rows: Tensor, eps: float, steps: int, step_scale: float) -> Tensor:
        """Attack the samples ``rows`` within the radius; returns which of all samples survived it, (B,) bool."""
        survived = torch.zeros_like(self.y, dtype=torch.bool)
        if len(rows):
            x, y = self.x[rows], self.y[rows]
            search = Search(self.model, x, y, self.norm)
            search.attack(self.start(eps, 0)[rows], norms.Balls(x, eps, self.norm, self.box), steps, step_scale)
            broken = search.predicted != y
            # Not where(broken, eps, inf), which is float32.
            self._keep(
                rows, torch.full_like(self.distance[rows], eps).masked_fill(~broken, torch.inf), search.predicted
            )
            self.spent += search.spent
            survived[rows] = ~broken
        return survived

    def _keep(self, rows: Tensor, distance: Tensor, label: Tensor) -> None:
        better = distance < self.distance[rows]
        self.label[rows] = torch.where(better, label, self.label[rows])
        self.distance[rows] = torch.where(better, distance, self.distance[rows])
