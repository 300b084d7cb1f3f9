"""Each sample's distance to the boundary, as FMN finds it from several starts."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

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
        enough: a sample that is broken within this distance is left alone by the next kind of starts: x, with an
            aim, from other points.
        box: (low, high) of valid inputs, or None.

    Raises:
        ValueError: an unknown norm, or shapes that do not fit.
    """
    check_batch(x, y, 0.0, norm)
    with torch.no_grad(), attack_mode(model):
        nearest = _Nearest(model, x, y, norm, box, steps, enough)
        begun = int(starts > 0 and (aimless or nearest.classes == 2))
        if begun:
            nearest.search([(None, None)])
        aims: tuple[Tensor, ...] = ()
        if nearest.classes > 2 and starts > 1:
            search = Search(model, x, y, norm)
            # Only of the samples left: it takes a gradient for each of nine classes.
            aims = search.nearest(nearest.left()).unbind(1)[: starts - begun]
            nearest.spent += search.spent
        nearest.search((aim, None) for aim in aims)
        if start is not None:
            nearest.search((None, xi) for xi in _opposite(start, starts - begun - len(aims)))
    return MinimalResult(nearest.point, nearest.distance, nearest.label, int(nearest.spent))


def _opposite(start: Callable[[int], Tensor], most: int) -> Iterator[Tensor]:
    """ξ, −ξ of each pair in turn, ``most`` of them."""
    for number in range(-(-most // 2)):
        xi = start(number)
        yield from (xi, -xi)[: most - 2 * number]


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

    def search(self, runs: Iterable[tuple[Tensor | None, Tensor | None]]) -> None:
        """Run FMN for the samples left, each time towards the first (B,) of a pair, from x + its second (B, ...).

        The pairs are alike in what they leave out. As many run at once as fit into a batch of B samples. Samples that
        are broken meanwhile stay to the end, so that results do not depend on how many run at once.
        """
        rows = self.left()
        if not len(rows):  # some networks cannot take an empty batch
            return
        runs = iter(runs)
        while some := list(islice(runs, max(1, len(self.x) // len(rows)))):
            rivals, starts = (
                [None if given is None else given[rows] for given in of] for of in zip(*some, strict=True)
            )
            found = fmn(
                self.model,
                self.x[rows.repeat(len(some))],
                self.y[rows.repeat(len(some))],
                norm=self.norm,
                steps=self.steps,
                bisections=min(BISECTIONS, self.steps),
                rival=_joined(rivals),
                start=_joined(starts),
                box=self.box,
            )
            self.spent += found.evaluations
            parts = (of.split(len(rows)) for of in (found.x, found.distance, found.predicted))
            for x, distance, label in zip(*parts, strict=True):
                better = distance < self.distance[rows]
                self.label[rows] = torch.where(better, label, self.label[rows])
                self.distance[rows] = torch.where(better, distance, self.distance[rows])
                closer = torch.where(norms.per_sample(better, self.x), x, self.point[rows])
                self.point = self.point.index_copy(0, rows, closer)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None
