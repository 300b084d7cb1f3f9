"""Whether training approaches the equilibrium state (paper, section 2.3 and appendix G.2).

There the noisy samples of two classes i and j have the same density on the boundary B_ij between them:
q_i(x) = q_j(x). A density is a number of samples times a distribution, and the two are looked at one by
one: ``count_i`` against ``count_j``, and ``mixing`` for the distributions.

What is gathered is what decides the margins: the boundary points from which they are proposed. With
``margin_update=epoch`` these are found by the pass after the epoch, all with the same weights; with
``online`` in the training steps, each with the weights before its step. Either way one more forward pass
in evaluation mode, the mode in which a point was found, gives the probabilities there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ima_dist.attacks.common import attack_mode, cross_entropy
from ima_dist.core import distributed
from ima_dist.data.choosing import choose_balanced
from ima_dist.methods import Attacked, Batch

# Neighbours of a point: few, so that they are near it, but enough to make the share of one class a number.
NEIGHBOURS = 5
# Fewer points on either side tell nothing about a distribution.
_FEWEST = 2 * NEIGHBOURS
# Points kept of a class, and numbers kept in all: 64 MiB of float32.
_PER_CLASS = 1000
_NUMBERS = 1 << 24
# The hash that chooses the panel; other streams choose subsets and the validation set.
_STREAM = 4


class Equilibrium:
    """Sums over the noisy samples of an unfinished epoch by pair of classes, and some of their points.

    A noisy sample of true class i lies on B_ij, where j is the most probable other class there. Points are
    kept of a panel: up to 1000 training samples of each class, chosen once by a hash of their index, so that
    neither the number of workers nor an interruption changes them. Every panel sample has a slot of its own;
    so workers' points are joined by a sum, and nothing waits for the device before the epoch ends.

    Args:
        labels: (N,) of the training set. classes: their number C. shape: of one sample.
        dtype, device: of the points; the sums are float64.
    """

    def __init__(
        self,
        labels: Tensor,
        classes: int,
        shape: tuple[int, ...],
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        size = math.prod(shape)
        quota = min(_PER_CLASS, _NUMBERS // (classes * size))
        panel = choose_balanced(labels.cpu(), [quota] * classes, seed, _STREAM)
        self.classes = classes
        self.labels = labels.cpu()[panel]
        # The last row takes what is not of the panel.
        self._slots = torch.full((len(labels),), len(panel), device=device)
        self._slots[panel.to(device)] = torch.arange(len(panel), device=device)
        self._others = torch.zeros(len(panel) + 1, dtype=torch.int64, device=device)
        self._points = torch.zeros(len(panel) + 1, size, dtype=dtype, device=device)
        # By true class and other class: count, P_i − P_j with i < j, its absolute value, cross-entropy.
        self._sums = torch.zeros(4, classes, classes, dtype=torch.float64, device=device)

    def add(self, network: nn.Module, batch: Batch, attacked: Attacked) -> None:
        """Take in the noisy samples of a batch; no sample comes twice in an epoch."""
        x, rows = attacked.noisy, attacked.noisy_of
        if not len(rows):
            return
        y = batch.y[rows]
        with torch.no_grad(), attack_mode(network):
            logits = network(x).double()
        probability = logits.softmax(1)
        own = probability.gather(1, y[:, None])[:, 0]
        highest, other = probability.scatter(1, y[:, None], -1.0).max(1)
        difference = torch.where(y < other, own - highest, highest - own)
        values = torch.stack([torch.ones_like(own), difference, difference.abs(), cross_entropy(logits, y)])
        self._sums.view(4, -1).index_add_(1, y * self.classes + other, values)
        slots = self._slots[batch.indices[rows]]
        self._others[slots] = other + 1
        self._points[slots] = x.detach().flatten(1).to(self._points.dtype)

    def clear(self) -> None:
        """Begin an epoch."""
        for tensor in (self._sums, self._others, self._points):
            tensor.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """What all workers have gathered; all of them call it together.

        sums: (4, C, C); others: (P,) for each panel sample 1 + the other class, or 0 if it has no point;
        points: (P, D).
        """
        mine = {"sums": self._sums, "others": self._others[:-1], "points": self._points[:-1]}
        return {name: distributed.all_reduce(tensor.clone()) for name, tensor in mine.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a ``state_dict``, by however many workers. Worker 0 takes it; the others hold nothing yet."""
        if distributed.rank() == 0:
            self._sums.copy_(state["sums"])
            self._others[:-1] = state["others"].to(self._others)
            self._points[:-1] = state["points"].to(self._points)

    def rows(self, epoch: int) -> list[dict[str, Any]]:
        """Rows of equilibrium.parquet for the epoch, on worker 0 ([] elsewhere); all workers call it together.

        A row for each pair i < j on whose boundary a noisy sample lies. ``_i`` and ``_j`` tell the true class:
        count: noisy samples; difference: their mean P_i − P_j; loss: their mean cross-entropy (L₂ by pair and
        side, eqs. 4 to 6); points: how many of them ``mixing`` has seen. abs_difference: mean |P_i − P_j| of
        both sides. mixing, mixing_sd: see ``mixing``. None where there is nothing to take a mean of.
        """
        state = self.state_dict()
        if distributed.rank() != 0:
            return []
        sums, others = state["sums"].cpu(), state["others"].cpu() - 1
        counts = sums[0]
        rows = []
        for i, j in (counts + counts.T).triu(1).nonzero().tolist():
            sides = (i, j), (j, i)
            n_i, n_j = (float(counts[side]) for side in sides)
            difference, loss = ([_mean(sums[k][s], counts[s]) for s in sides] for k in (1, 3))
            of_i, of_j = ((self.labels == own) & (others == other) for own, other in sides)
            chosen = (of_i | of_j).nonzero()[:, 0].to(state["points"].device)
            mixed = mixing(state["points"][chosen], of_i.to(chosen.device)[chosen])
            rows.append(
                {
                    "epoch": epoch,
                    "class_i": i,
                    "class_j": j,
                    "count_i": int(n_i),
                    "count_j": int(n_j),
                    "difference_i": difference[0],
                    "difference_j": difference[1],
                    "abs_difference": float(sums[2, i, j] + sums[2, j, i]) / (n_i + n_j),
                    "loss_i": loss[0],
                    "loss_j": loss[1],
                    "points_i": int(of_i.sum()),
                    "points_j": int(of_j.sum()),
                    "mixing": mixed[0] if mixed else None,
                    "mixing_sd": mixed[1] if mixed else None,
                }
            )
        return rows


def _mean(total: Tensor, count: Tensor) -> float | None:
    return float(total / count) if count else None


def mixing(points: Tensor, side: Tensor, k: int = NEIGHBOURS) -> tuple[float, float] | None:
    """How well two samples of points are mixed: the nearest-neighbour two-sample statistic, scaled.

    The number of pairs (a point, one of its k nearest neighbours) whose ends lie on different sides, divided
    by what is expected if both sides have one distribution: 1 then, whatever the numbers of points, and 0 for
    sides that lie apart. Above 1 the sides repel their own kind. Schilling, "Multivariate two-sample tests
    based on nearest neighbors", JASA 81 (1986); Henze, Annals of Statistics 16 (1988). It needs no estimate of
    a density, which has no meaning for a few hundred points in some hundred dimensions.

    Args:
        points: (N, D). side: (N,) bool.

    Returns:
        The value and its standard deviation under the null hypothesis, both for the given points and any
        permutation of the sides (exact); None if either side has fewer than 10 points.
    """
    n, total = int(side.sum()), len(side)
    m = total - n
    if min(n, m) < _FEWEST:
        return None
    # In float64, because cdist squares: points on a boundary may lie closer than float32 resolves then.
    distance = torch.cdist(points.double(), points.double()).fill_diagonal_(math.inf)
    neighbours = distance.topk(k, largest=False).indices
    across = int((side[neighbours] != side[:, None]).sum())
    # Moments over permutations: two edges cross with a probability that depends on how many ends they share.
    edges = total * k
    start = torch.arange(total, device=neighbours.device)[:, None]
    mutual = int(torch.isin(start * total + neighbours, neighbours * total + start).sum())
    degree = k + torch.bincount(neighbours.flatten(), minlength=total)
    both = edges + mutual
    one = int(degree.square().sum()) - 2 * both
    none = edges**2 - both - one
    cross = 2 * n * m / (total * (total - 1))
    cross_twice = 4 * n * (n - 1) * m * (m - 1) / (total * (total - 1) * (total - 2) * (total - 3))
    expected = edges * cross
    variance = both * cross + one * cross / 2 + none * cross_twice - expected**2
    return across / expected, math.sqrt(max(variance, 0.0)) / expected
