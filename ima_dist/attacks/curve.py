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
    sides. Then each sample is attacked as by ``worst`` within the largest radius below its bound. If it survives, it
    counts as right at all smaller radii too; if not, the next radius is tried. So most samples need one strong attack
    for the whole curve. A point that breaks a sample at a radius breaks it at all larger ones.

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
        curve.bound(positive, max(1, round(FMN_SHARE * steps)))
        survived = curve.attack(positive, steps, step_scale)
    predictions = torch.stack([torch.where(curve.distance <= eps, curve.label, y) for eps in levels])
    implied = torch.stack([(survived > eps) & (eps > 0) for eps in levels])
    return CurveResult(predictions, implied, curve.distance, int(curve.spent))


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

    def attack(self, levels: Sequence[float], steps: int, step_scale: float) -> Tensor:
        """Attack every sample within the largest radius below its distance, until it survives; (B,) where it did, or 0.

        All samples are attacked together, each within its own radius, because small batches are dear.
        """
        radii = torch.tensor(levels, dtype=self.distance.dtype, device=self.x.device)
        survived = torch.zeros_like(self.distance)
        while True:
            smaller = (self.distance[:, None] > radii).sum(1)
            rows = ((smaller > 0) & (survived == 0)).nonzero()[:, 0]
            if not len(rows):
                return survived
            which = smaller[rows] - 1
            eps, x, y = radii[which], self.x[rows], self.y[rows]
            search = Search(self.model, x, y, self.norm, most=len(self.x))
            search.attack(
                self._starts(levels, which, rows), norms.Balls(x, eps, self.norm, self.box), steps, step_scale
            )
            self.spent += search.spent
            broken = search.predicted != y
            self.label[rows] = torch.where(broken, search.predicted, self.label[rows])
            self.distance[rows] = torch.where(broken, eps, self.distance[rows])
            survived[rows] = eps.masked_fill(broken, 0.0)

    def _starts(self, levels: Sequence[float], which: Tensor, rows: Tensor) -> Tensor:
        """ξ (K, ...) of the samples ``rows``, each for the radius number ``which`` (K,)."""
        xi = torch.empty_like(self.x[rows])
        for number in which.unique().tolist():
            here = which == number
            xi[here] = self.start(levels[number], 0)[rows[here]]
        return xi
