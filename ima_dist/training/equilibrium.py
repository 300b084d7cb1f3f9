"""How close training is to the equilibrium state (paper, section 2.3 and appendix G.2).

In that state the noisy samples of two classes i and j have the same density on the boundary B_ij between them:
q_i(x) = q_j(x). A density is a number of samples times a distribution, and the two are compared separately:
``count_i`` with ``count_j``, and the distributions by ``mixing``.

The points gathered are those that decide the margins: the boundary points from which margins are proposed. With
``margin_update=epoch`` the pass after the epoch finds them, all with the same weights; with ``online`` the training
steps do, each with the weights before its step. In both cases one more forward pass in evaluation mode, the mode in
which a point was found, gives the probabilities there.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ima_dist.attacks.common import attack_mode, cross_entropy
from ima_dist.core import distributed
from ima_dist.data.choosing import choose_balanced
from ima_dist.methods import Attacked, Batch

# Neighbours of a point: few, so that they are close to it, but enough to estimate the share of one class.
NEIGHBOURS = 5
# Fewer points on either side say nothing about a distribution.
_FEWEST = 2 * NEIGHBOURS
# Points kept per class, points in total, and numbers in total: 64 MiB of float32.
_PER_CLASS = 1000
_POINTS = 20_000
_NUMBERS = 1 << 24
# Pairs of classes in an epoch's rows: those with the most noisy samples. Up to 32 classes have no more.
PAIRS = 500
# Noisy samples whose sums by pair may wait.
_WAITING = 1 << 16
# Stream of the hash that chooses the panel; other streams choose subsets and the validation set.
_STREAM = 4


class Equilibrium:
    """Sums over the noisy samples of an unfinished epoch by pair of classes, and some of their points.

    A noisy sample of true class i lies on B_ij, where j is the most probable other class there. Points are kept for
    a panel: up to 1000 training samples per class and 20,000 in all, chosen once by a hash of their index, so that
    neither the number of workers nor an interruption changes them. Every panel sample has its own slot, so a sum joins
    the points of all workers, and nothing forces a sync before the epoch ends, unless there are very many points.

    Only pairs of classes that occur take memory and time, so the number of classes C has no bound. A pair is kept as
    the number i·C + j.

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
        quota = min(_PER_CLASS, _POINTS // classes, _NUMBERS // (classes * size))
        panel = choose_balanced(labels.cpu(), [quota] * classes, seed, _STREAM)
        self.classes = classes
        self.labels = labels.cpu()[panel]
        # The last row takes samples that are not in the panel.
        self._slots = torch.full((len(labels),), len(panel), device=device)
        self._slots[panel.to(device)] = torch.arange(len(panel), device=device)
        self._others = torch.zeros(len(panel) + 1, dtype=torch.int64, device=device)
        self._points = torch.zeros(len(panel) + 1, size, dtype=dtype, device=device)
        # True and other class, and (4, …): count, P_i − P_j with i < j, its absolute value, cross-entropy. First come
        # the sums by pair, then the samples that wait to be added.
        self._none = torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(4, 0, device=device).double()
        self._pairs, self._values = [self._none[0]], [self._none[1]]
        self._waiting = 0

    def add(self, network: nn.Module, batch: Batch, attacked: Attacked) -> None:
        """Add the noisy samples of a batch; no sample may be added twice in an epoch."""
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
        self._pairs.append(y * self.classes + other)
        self._values.append(values)
        self._waiting += len(y)
        if self._waiting > _WAITING:
            self._sums()
        slots = self._slots[batch.indices[rows]]
        self._others[slots] = other + 1
        self._points[slots] = x.detach().flatten(1).to(self._points.dtype)

    def _sums(self) -> tuple[Tensor, Tensor]:
        """The pairs that occur on this worker (K,), ascending, and their sums (4, K)."""
        pairs, place = torch.cat(self._pairs).unique(return_inverse=True)
        values = torch.cat(self._values, 1)
        sums = values.new_zeros(4, len(pairs)).index_add_(1, place, values)
        self._pairs, self._values, self._waiting = [pairs], [sums], 0
        return pairs, sums

    def clear(self) -> None:
        """Begin an epoch."""
        self._pairs, self._values, self._waiting = [self._none[0]], [self._none[1]], 0
        self._others.zero_()
        self._points.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """What all workers have gathered. Collective.

        pairs: (K,) ascending, i·C + j for true class i and other class j; sums: (4, K); others: (P,), 1 + the other
        class of each panel sample, or 0 if it has no point; points: (P, D).
        """
        found = distributed.gather_objects(tuple(tensor.cpu() for tensor in self._sums()))
        pairs, place = torch.cat([part[0] for part in found]).unique(return_inverse=True)
        values = torch.cat([part[1] for part in found], 1)
        state = {"pairs": pairs, "sums": values.new_zeros(4, len(pairs)).index_add_(1, place, values)}
        mine = {"others": self._others[:-1], "points": self._points[:-1]}
        return state | {name: distributed.all_reduce(tensor.clone()) for name, tensor in mine.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a ``state_dict`` on any number of workers: worker 0 takes it, the others start empty."""
        if distributed.rank() == 0:
            pairs, sums = state.get("pairs"), state["sums"]
            if pairs is None:  # of an earlier version, which had the sums (4, C, C) of all pairs
                sums = sums.reshape(4, -1)
                pairs = sums[0].nonzero()[:, 0]
                sums = sums[:, pairs]
            device = self._others.device
            self._pairs, self._values, self._waiting = [pairs.to(device)], [sums.to(device)], 0
            # An earlier version kept more points of more than 20 classes; those of this epoch are then incomplete.
            if state["points"].shape == self._points[:-1].shape:
                self._others[:-1] = state["others"].to(self._others)
                self._points[:-1] = state["points"].to(self._points)

    def rows(self, epoch: int) -> list[dict[str, Any]]:
        """Rows of equilibrium.parquet for the epoch on worker 0, [] on the others. Collective.

        One row per pair i < j on whose boundary a noisy sample lies, or for the ``PAIRS`` with the most of them.
        Columns ending in ``_i`` and ``_j`` are for samples of that true class: count, of noisy samples; difference,
        their mean P_i − P_j; loss, their mean cross-entropy (L₂ by pair and side, eqs. 4 to 6); points, how many of
        them ``mixing`` has used. abs_difference: mean |P_i − P_j| of both sides. mixing, mixing_sd: see ``mixing``.
        None for a mean of nothing.
        """
        state = self.state_dict()
        if distributed.rank() != 0:
            return []
        pairs, sums = _by_boundary(state["pairs"], state["sums"], self.classes)
        counts = sums[0].sum(0)
        if len(pairs) > PAIRS:
            chosen = counts.argsort(descending=True, stable=True)[:PAIRS].sort().values
            pairs, sums = pairs[chosen], sums[..., chosen]
        return [
            self._row(epoch, pair, both, points, side)
            for pair, both, (points, side) in zip(
                pairs.tolist(), sums.unbind(2), self._points_of(pairs, state), strict=True
            )
        ]

    def _points_of(self, pairs: Tensor, state: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of the pairs, ascending, the points (N, D) on its boundary and (N,) whether of its first class."""
        others = state["others"].cpu() - 1
        held = (others >= 0).nonzero()[:, 0]
        own, other = self.labels[held], others[held]
        boundary = torch.minimum(own, other) * self.classes + torch.maximum(own, other)
        # Sorted once, so that the points of a pair lie together, in the order of their slots.
        boundary, order = boundary.sort(stable=True)
        first, last = torch.searchsorted(boundary, pairs), torch.searchsorted(boundary, pairs, right=True)
        for start, stop in zip(first.tolist(), last.tolist(), strict=True):
            part = order[start:stop]
            slots = held[part].to(state["points"].device)
            yield state["points"][slots], (own[part] < other[part]).to(slots.device)

    def _row(self, epoch: int, pair: int, sums: Tensor, points: Tensor, side: Tensor) -> dict[str, Any]:
        """The row of one pair. sums: (4, 2), of each side. points: (N, D). side: (N,) bool."""
        (n_i, n_j), difference, absolute, loss = sums.tolist()
        mixed = mixing(points, side)
        return {
            "epoch": epoch,
            "class_i": pair // self.classes,
            "class_j": pair % self.classes,
            "count_i": int(n_i),
            "count_j": int(n_j),
            "difference_i": _mean(difference[0], n_i),
            "difference_j": _mean(difference[1], n_j),
            "abs_difference": sum(absolute) / (n_i + n_j),
            "loss_i": _mean(loss[0], n_i),
            "loss_j": _mean(loss[1], n_j),
            "points_i": int(side.sum()),
            "points_j": int((~side).sum()),
            "mixing": mixed[0] if mixed else None,
            "mixing_sd": mixed[1] if mixed else None,
        }


def _by_boundary(pairs: Tensor, sums: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The boundaries (B,) as i·C + j with i < j, ascending, and their sums (4, 2, B), of both sides."""
    own, other = pairs // classes, pairs % classes
    boundaries, place = (torch.minimum(own, other) * classes + torch.maximum(own, other)).unique(return_inverse=True)
    found = sums.new_zeros(4, 2, len(boundaries))
    found[:, (own > other).long(), place] = sums
    return boundaries, found


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None


def mixing(points: Tensor, side: Tensor, k: int = NEIGHBOURS) -> tuple[float, float] | None:
    """How well two samples of points are mixed: the nearest-neighbour two-sample statistic, scaled.

    The number of pairs (a point, one of its k nearest neighbours) whose ends lie on different sides, divided by the
    number expected if both sides have the same distribution: 1 in that case, whatever the numbers of points, 0 for
    sides that lie apart, and above 1 if points avoid their own side. Schilling, "Multivariate two-sample tests based
    on nearest neighbors", JASA 81 (1986); Henze, Annals of Statistics 16 (1988). It needs no density estimate, which
    would be meaningless for a few hundred points in several hundred dimensions.

    Args:
        points: (N, D). side: (N,) bool.

    Returns:
        The value, and its exact standard deviation under permutations of the sides of the given points; None if
        either side has fewer than 10 points.
    """
    n, total = int(side.sum()), len(side)
    m = total - n
    if min(n, m) < _FEWEST:
        return None
    # In float64, because cdist squares: points on a boundary may lie closer than float32 would resolve.
    distance = torch.cdist(points.double(), points.double()).fill_diagonal_(math.inf)
    neighbours = distance.topk(k, largest=False).indices
    across = int((side[neighbours] != side[:, None]).sum())
    # Moments over permutations: the probability that two edges cross depends on how many ends they share.
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
