"""A whole curve of accuracy by radius, for little more than the price of one radius."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ima_dist.attacks.common import Box, Network, attack_mode, check_batch, predicted
from ima_dist.attacks.fmn import fmn
from ima_dist.attacks.worst import Search
from ima_dist.core import norms

# FMN's share of the steps from each start, and its starts.
FMN_SHARE, FMN_STARTS = 1 / 5, 9


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

    FMN (``attacks.fmn``) first gives each sample an upper bound of its distance to the boundary, with a misclassified
    point as proof: from x, towards the three nearest rival classes, and from random points on opposite sides. Then
    the radii are tried from the largest to the smallest: a sample whose bound lies above the radius is attacked as by
    ``worst``. If it survives, it counts as right at all smaller radii too; if not, the next radius is tried. So most
    samples need one strong attack for the whole curve. A point that breaks a sample at a radius breaks it at all larger
    ones.

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
        if positive:
            curve.bound(positive[0], positive[-1], max(1, round(FMN_SHARE * steps)))
        for eps in reversed(positive):
            open_ = curve.distance > eps
            implied[eps] = open_ & survived
            survived |= curve.attack((open_ & ~survived).nonzero()[:, 0], eps, steps, step_scale)
    predictions = torch.stack([torch.where(curve.distance <= eps, curve.label, y) for eps in levels])
    return CurveResult(predictions, torch.stack([implied[eps] for eps in levels]), curve.distance, curve.spent)


class _Curve:
    """The shortest ``distance`` (B,) at which each sample is broken, its ``label`` (B,) there, and passes ``spent``."""

    def __init__(
        self, model: Network, x: Tensor, y: Tensor, norm: str, box: Box, start: Callable[[float, int], Tensor]
    ) -> None:
        self.model, self.x, self.y, self.norm, self.box, self.start = model, x, y, norm, box, start
        logits = model(x)
        self.label, self.spent, self.classes = predicted(logits), len(x), logits.shape[1]
        self.distance = torch.where(self.label == y, torch.inf, 0.0).to(x.dtype)

    def bound(self, smallest: float, largest: float, steps: int) -> None:
        """Run FMN for samples whose distance matters: those not known to be broken within the ``smallest`` radius."""
        self._minimal(smallest, steps)
        aims: tuple[Tensor, ...] = ()
        if self.classes > 2:
            # Only of the samples left: it takes a gradient for each of nine classes.
            search = Search(self.model, self.x, self.y, self.norm)
            aims = search.nearest(self._left(smallest)).unbind(1)
            self.spent += search.spent
        for aim in aims:
            self._minimal(smallest, steps, rival=aim)
        left = FMN_STARTS - 1 - len(aims)
        for number in range(-(-left // 2)):
            xi = self.start(largest, number)
            for begin in (xi, -xi)[: left - 2 * number]:
                self._minimal(smallest, steps, start=begin)

    def _left(self, smallest: float) -> Tensor:
        return (self.distance > smallest).nonzero()[:, 0]

    def _minimal(self, smallest: float, steps: int, rival: Tensor | None = None, start: Tensor | None = None) -> None:
        rows = self._left(smallest)
        if not len(rows):
            return
        found = fmn(
            self.model,
            self.x[rows],
            self.y[rows],
            norm=self.norm,
            steps=steps,
            bisections=min(6, steps),
            rival=None if rival is None else rival[rows],
            start=None if start is None else start[rows],
            box=self.box,
        )
        self._keep(rows, found.distance, found.predicted)
        self.spent += found.evaluations

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
