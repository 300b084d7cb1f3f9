"""Choosing a model: shares with their uncertainty, the Pareto set, and tests of whether two candidates differ.

A share (clean or robust accuracy, or the area under accuracy against noise) is uncertain for two reasons. The test
set is a sample: this part is binomial, the same for all seeds, and known from one run. Training is random: this part
shows only in the spread over seeds. Two candidates differ only if neither part explains the difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

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
    def sample_interval(self) -> tuple[float, float]:
        """95 % Wilson interval for the sampling of the test set.

        Seeds may share a test set, so more seeds do not make it larger. A mean over noise levels varies from sample
        to sample at most as much as a single share of the same size, so the interval also holds for areas.
        """
        return wilson_interval(self.mean, self.samples)

    @property
    def seed_interval(self) -> tuple[float, float] | None:
        """95 % t interval of the mean over this share's own seeds; None for a single seed."""
        spread = pooled_spread([self])
        return None if spread is None else (self.mean - spread.half_width(self), self.mean + spread.half_width(self))


def pareto_set(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates; larger is better, and equal points are all kept.

    ``points``: such as (clean, robust). A point dominates another if it is nowhere smaller and somewhere larger.
    """

    def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
        return tuple(a) != tuple(b) and all(x >= y for x, y in zip(a, b, strict=True))

    return [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


@dataclass(frozen=True)
class Spread:
    """Standard deviation over seeds, and its degrees of freedom."""

    deviation: float
    freedom: int

    def half_width(self, share: Share) -> float:
        """Half the 95 % t interval of the share's mean over seeds."""
        return t_quantile(self.freedom) * self.deviation / math.sqrt(len(share.values))


def pooled_spread(shares: Sequence[Share]) -> Spread | None:
    """The spread over seeds pooled over all ``shares``; None if none of them has two seeds.

    With two or three seeds each, a share's own deviation is nearly worthless. Pooling assumes that seeds matter
    equally to all shares: one that is less stable than the others gets too narrow an interval.
    """
    freedom = sum(len(share.values) - 1 for share in shares)
    if not freedom:
        return None
    squares = sum((value - share.mean) ** 2 for share in shares for value in share.values)
    return Spread(math.sqrt(squares / freedom), freedom)


def differ(a: Share, b: Share, spread: Spread | None = None) -> bool:
    """True if two shares differ by more than the test sampling and the spread over seeds explain (95 % each).

    Test sampling: ``difference_interval``, as if each had its own test set, which is conservative if they share one.
    Seeds: a t interval of the difference with ``spread``, by default that of the two. If no seed is repeated the
    spread is unknown, and the answer holds only for these networks.
    """
    low, high = difference_interval(a, b)
    spread = spread or pooled_spread([a, b])
    if spread is None:
        return not low <= 0 <= high
    half = t_quantile(spread.freedom) * spread.deviation * math.sqrt(1 / len(a.values) + 1 / len(b.values))
    return not low <= 0 <= high and abs(a.mean - b.mean) > half


def difference_interval(a: Share, b: Share) -> tuple[float, float]:
    """95 % interval of a - b for the sampling of the test set (Newcombe 1998, method 10)."""
    (low_a, high_a), (low_b, high_b) = a.sample_interval, b.sample_interval
    difference = a.mean - b.mean
    below, above = math.hypot(a.mean - low_a, high_b - b.mean), math.hypot(high_a - a.mean, b.mean - low_b)
    return difference - below, difference + above


@dataclass(frozen=True)
class Candidate:
    """A model to choose from, measured with one attack.

    clean: accuracy without noise. robust: accuracy at each noise level above 0. area: under accuracy against noise,
    over all levels. named: mean accuracy over the levels that the user named, or None.
    """

    name: str
    clean: Share
    robust: dict[float, Share]
    area: Share
    named: Share | None = None

    @property
    def score(self) -> Share:
        """The share that the choice maximises: accuracy at the named noise levels, or the area under the curve."""
        return self.named or self.area


def make_candidate(
    name: str, curves: Sequence[dict[float, float]], samples: int, levels: Sequence[float] = ()
) -> Candidate:
    """A candidate from one curve per seed, noise level -> accuracy.

    ``samples``: test samples behind each accuracy. ``levels``: the noise levels that the user named. Raises
    ConfigError if the curves differ in their levels, or lack 0 or a named level.
    """
    have = sorted(curves[0])
    if any(sorted(curve) != have for curve in curves):
        raise ConfigError(f"The runs of {name} were attacked at different noise levels: evaluate all at the same.")
    missing = [level for level in (0.0, *levels) if level not in curves[0]]
    if missing:
        there = ", ".join(f"{level:g}" for level in have)
        raise ConfigError(f"{name} has no accuracy at noise {missing[0]:g}: it has {there}.")

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
    """Indices of candidates.

    pareto: not dominated. best: the choice; None if no candidate is accurate enough. alike: accurate enough, and equal
    to the choice within noise. uncertain: accurate enough on average, but with an interval that reaches below what
    was asked for. clean_spread, score_spread: over seeds, pooled.
    """

    pareto: list[int]
    best: int | None
    alike: list[int]
    uncertain: list[int]
    clean_spread: Spread | None
    score_spread: Spread | None


def choose(candidates: Sequence[Candidate], min_clean: float, levels: Sequence[float] = ()) -> Choice:
    """Choose the highest score among the candidates with a mean clean accuracy of at least ``min_clean``.

    Of equal scores, the one with the higher clean accuracy. The Pareto set is over clean accuracy and the accuracy at
    each of ``levels``, or the area under the curve if none is given.
    """
    points = [(c.clean.mean, *([c.robust[x].mean for x in levels] or [c.area.mean])) for c in candidates]
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
