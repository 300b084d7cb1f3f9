"""Each sample's distance to the boundary, as FMN finds it from several starts."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ima_dist.attacks import shapes
from ima_dist.attacks.common import Box, Network, attack_mode, check_batch, predicted
from ima_dist.attacks.fmn import MinimalResult, fmn
from ima_dist.attacks.worst import Search
from ima_dist.core import norms

#: Starts of the search; the most halvings of the segment to the point found.
STARTS, BISECTIONS = 9, 6


def minimal(
    model: Network,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    steps: int = 20,
    starts: int = STARTS,
    start: Callable[[int], Tensor] | None = None,
    aimless: bool = True,
    enough: float = 0.0,
    box: Box = None,
) -> MinimalResult:
    """The nearest misclassified points that FMN (``attacks.fmn``) finds from several starts.

    The starts are x; with more than two classes x again with the aim at each of the three nearest rival classes (two of
    three classes); then points on opposite sides of x, x + ξ and x − ξ, for as many as are left. Boundaries that lie
    behind others are only found from such points.

    Args:
        model: maps (B, ...) to logits (B, C); attacked in evaluation mode, restored afterwards.
        x, y: samples (B, ...) and true labels (B,). A sample that is misclassified has the distance 0.
        norm: "linf" or "l2".
        steps: of FMN from each start.
        starts: at most so many; with 0 only x itself is classified.
        start: gives ξ (B, ...), pair by pair, counted from 0; without it there are no such starts.
        aimless: with more than two classes also search from x without an aim, at whichever class is strongest there.
        enough: a sample that is broken within this distance is left alone from then on.
        box: (low, high) of valid inputs, or None.

    Raises:
        ValueError: an unknown norm, or shapes that do not fit.
    """
    check_batch(x, y, 0.0, norm)
    with torch.no_grad(), attack_mode(model):
        nearest = _Nearest(model, x, y, norm, box, steps, enough)
        begun = int(starts > 0 and (aimless or nearest.classes == 2))
        if begun:
            nearest.search()
        aims: tuple[Tensor, ...] = ()
        if nearest.classes > 2 and starts > 1:
            search = Search(model, x, y, norm)
            # Only of the samples left: it takes a gradient for each of nine classes.
            aims = search.nearest(nearest.left()).unbind(1)[: starts - begun]
            nearest.spent += search.spent
        for aim in aims:
            nearest.search(rival=aim)
        if start is not None:
            left = starts - begun - len(aims)
            for number in range(-(-left // 2)):
                xi = start(number)
                for begin in (xi, -xi)[: left - 2 * number]:
                    nearest.search(start=begin)
    return MinimalResult(nearest.point, nearest.distance, nearest.label, int(nearest.spent))


class _Nearest:
    """The nearest ``point`` found, its ``distance`` and ``label``, (B, ...), (B,), (B,), and the passes ``spent``."""

    def __init__(self, model: Network, x: Tensor, y: Tensor, norm: str, box: Box, steps: int, enough: float) -> None:
        self.model, self.x, self.y, self.norm, self.box = model, x, y, norm, box
        self.steps, self.enough = steps, enough
        logits = shapes.passed(model, x)
        self.point, self.label, self.classes = x, predicted(logits), logits.shape[1]
        self.spent: int | Tensor = len(x)
        self.distance = torch.where(self.label == y, math.inf, 0.0).to(x.dtype)

    def left(self) -> Tensor:
        """The samples (K,) int64 whose distance is still sought."""
        return (self.distance > self.enough).nonzero()[:, 0]

    def search(self, rival: Tensor | None = None, start: Tensor | None = None) -> None:
        """Run FMN for the samples left, towards ``rival`` (B,), from x + ``start`` (B, ...)."""
        rows = self.left()
        if not len(rows):  # some networks cannot take an empty batch
            return
        found = fmn(
            self.model,
            self.x[rows],
            self.y[rows],
            norm=self.norm,
            steps=self.steps,
            bisections=min(BISECTIONS, self.steps),
            rival=None if rival is None else rival[rows],
            start=None if start is None else start[rows],
            box=self.box,
        )
        self.spent += found.evaluations
        better = found.distance < self.distance[rows]
        self.label[rows] = torch.where(better, found.predicted, self.label[rows])
        self.distance[rows] = torch.where(better, found.distance, self.distance[rows])
        closer = torch.where(norms.per_sample(better, self.x), found.x, self.point[rows])
        self.point = self.point.index_copy(0, rows, closer)
