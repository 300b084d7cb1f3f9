"""Which model to ship: shares with their uncertainty, the Pareto set, and whether two candidates differ at all.

A share (clean or robust accuracy, or the area under accuracy against noise) is uncertain for two reasons. The
test set is a sample: that is binomial, the same for all seeds, and known from one run. Training is random: that
shows in the spread over seeds alone. Two candidates count as different only if neither explains the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ima_dist.config.errors import ConfigError
from ima_dist.results.statistics import area_under_curve, t_quantile, wilson_interval


@dataclass(frozen=True)
class Share:
    """A share between 0 and 1, measured once for each seed on ``samples`` test samples."""

    values: tuple[float, ...]
    samples: int

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (n - 1); None for a single one, which says nothing about it."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def sample_interval(self) -> tuple[float, float]:
        """95 % Wilson interval for the test set being a sample.

        Seeds may share one test set, so that more of them do not make it larger. A mean over noise levels varies
        from sample to sample at most as much as a share of the same size does, so the interval holds for areas too.
        """
        return wilson_interval(self.mean, self.samples)

    @property
    def seed_interval(self) -> tuple[float, float] | None:
        """95 % t interval of the mean over this share's own seeds; None for a single one."""
        spread = pooled_spread([self])
        return None if spread is None else (self.mean - spread.half_width(self), self.mean + spread.half_width(self))


def pareto_set(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other one dominates: nowhere smaller, and larger somewhere.

    ``points``: one sequence each, such as (clean, robust), larger is better. Equal points are all kept.
    """

    def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
        return tuple(a) != tuple(b) and all(x >= y for x, y in zip(a, b, strict=True))

    return [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


@dataclass(frozen=True)
class Spread:
    """Standard deviation over seeds, and the degrees of freedom that it rests on."""

    deviation: float
    freedom: int

    def half_width(self, share: Share) -> float:
        """Half the 95 % t interval of the share's mean over seeds."""
        return t_quantile(self.freedom) * self.deviation / math.sqrt(len(share.values))


def pooled_spread(shares: Sequence[Share]) -> Spread | None:
    """The spread over seeds that all ``shares`` have in common; None if none of them has two seeds.

    With two or three seeds each, a share's own deviation says next to nothing. This assumes that seeds matter
    equally to all: one that is less stable than the others gets an interval that is too narrow.
    """
    freedom = sum(len(share.values) - 1 for share in shares)
    if not freedom:
        return None
    squares = sum((value - share.mean) ** 2 for share in shares for value in share.values)
    return Spread(math.sqrt(squares / freedom), freedom)


def differ(a: Share, b: Share, spread: Spread | None = None) -> bool:
    """Whether two shares differ by more than test sampling, and the spread over seeds, explain (95 % each).

    Test sampling: ``difference_interval``, as if the two had test sets of their own; on a shared one it is on the
    safe side. Seeds: a t interval of the difference with the ``spread``, by default that of the two. Where no seed is
    repeated the spread stays unknown, and the answer is about these networks alone.
    """
    low, high = difference_interval(a, b)
    spread = spread or pooled_spread([a, b])
    if spread is None:
        return not low <= 0 <= high
    half = t_quantile(spread.freedom) * spread.deviation * math.sqrt(1 / len(a.values) + 1 / len(b.values))
    return not low <= 0 <= high and abs(a.mean - b.mean) > half


def difference_interval(a: Share, b: Share) -> tuple[float, float]:
    """95 % interval of a - b for the test samples (Newcombe 1998, method 10)."""
    (low_a, high_a), (low_b, high_b) = a.sample_interval, b.sample_interval
    difference = a.mean - b.mean
    low = difference - math.hypot(a.mean - low_a, high_b - b.mean)
    high = difference + math.hypot(high_a - a.mean, b.mean - low_b)
    return low, high


@dataclass(frozen=True)
class Candidate:
    """A model that could be shipped, measured with one attack.

    name: what tells it from the others. clean: accuracy without noise. robust: accuracy at each noise level
    above 0. area: under accuracy against noise, all levels. named: mean accuracy over the levels that the user
    has named, or None.
    """

    name: str
    clean: Share
    robust: dict[float, Share]
    area: Share
    named: Share | None = None

    @property
    def score(self) -> Share:
        """What the choice maximises: accuracy at the named noise levels, or the area under the curve."""
        return self.named or self.area


def make_candidate(
    name: str, curves: Sequence[dict[float, float]], samples: int, levels: Sequence[float] = ()
) -> Candidate:
    """A candidate from the curve of each seed, noise level -> accuracy, all with the same levels, 0 among them.

    ``samples``: test samples behind each accuracy. ``levels``: the noise levels that are named.
    Raises ConfigError if the curves differ in their levels, or lack a named one or 0.
    """
    have = sorted(curves[0])
    if any(sorted(curve) != have for curve in curves):
        raise ConfigError(f"The runs of {name} were attacked at different noise levels: evaluate them alike.")
    missing = [level for level in (0.0, *levels) if level not in curves[0]]
    if missing:
        raise ConfigError(
            f"{name} has no accuracy at noise {missing[0]:g}: it has {', '.join(f'{x:g}' for x in have)}."
        )

    def share(of: list[float]) -> Share:
        return Share(tuple(of), samples)

    return Candidate(
        name,
        clean=share([curve[0.0] for curve in curves]),
        robust={level: share([curve[level] for curve in curves]) for level in have if level > 0},
        area=share([area_under_curve(have, [curve[level] for level in have]) for curve in curves]),
        named=share([fmean(curve[level] for level in levels) for curve in curves]) if levels else None,
    )


@dataclass(frozen=True)
class Choice:
    """Indices of candidates. pareto: not dominated. best: the choice, None if none is accurate enough.
    alike: accurate enough and not different from it beyond noise. uncertain: accurate enough on average, but with
    an interval that reaches below what was asked for. clean_spread, score_spread: over seeds, pooled.
    """

    pareto: list[int]
    best: int | None
    alike: list[int]
    uncertain: list[int]
    clean_spread: Spread | None
    score_spread: Spread | None


def choose(candidates: Sequence[Candidate], min_clean: float, levels: Sequence[float] = ()) -> Choice:
    """The candidate of the highest score among those with a mean clean accuracy of at least ``min_clean``.

    Equal scores: the higher clean accuracy. The Pareto set is taken in clean accuracy and the accuracy at every
    one of ``levels``, or the area under the curve if there is none.
    """
    points = [(c.clean.mean, *(c.robust[x].mean for x in levels)) if levels else (c.clean.mean, c.area.mean)
              for c in candidates]  # fmt: skip
    clean, score = pooled_spread([c.clean for c in candidates]), pooled_spread([c.score for c in candidates])
    able = [i for i, c in enumerate(candidates) if c.clean.mean >= min_clean]
    if not able:
        return Choice(pareto_set(points), None, [], [], clean, score)
    best = max(able, key=lambda i: (candidates[i].score.mean, candidates[i].clean.mean))
    alike = [i for i in able if i != best and not differ(candidates[i].score, candidates[best].score, score)]
    uncertain = [i for i in able if _low(candidates[i].clean, clean) < min_clean]
    return Choice(pareto_set(points), best, alike, uncertain, clean, score)


def _low(share: Share, spread: Spread | None) -> float:
    return min(share.sample_interval[0], share.mean - spread.half_width(share) if spread else 1.0)
