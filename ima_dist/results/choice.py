"""Choosing a model: shares with their uncertainty, the Pareto set, and tests of whether two candidates differ.

A share (clean or robust accuracy, or the area under accuracy against noise) is uncertain for two reasons. The test
set is a sample: this part is the same for all seeds. Training is random: this part shows only in the spread over
seeds. Both go into one interval, whose squared half width is the sum of the squares of the two parts (the method of
variance estimates recovery: Zou and Donner, Statistics in Medicine 27, 2008).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import numpy as np

from ima_dist.results.statistics import (
    ERROR,
    area_under_curve,
    exact_interval,
    f_exceeds,
    t_quantile,
    wilson_interval,
)

Interval = tuple[float, float]
# Test set -> (N,) sum over the runs of what each of its samples adds to a share.
Samples = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Share:
    """A share between 0 and 1, measured once for each seed on ``samples`` test samples.

    by_sample: test set -> (N,) for each of its samples its value, between 0 and 1, summed over the seeds that were
    measured on that set and divided by the number of all seeds; None if that is not known. groups: how many groups the
    samples come in, if that is known; ``samples`` is then their effective number, and ``by_sample`` has a value for
    each group (``seeds.by_sample``).
    """

    values: tuple[float, ...]
    samples: float
    by_sample: Samples | None = None
    groups: int | None = None

    @cached_property
    def mean(self) -> float:
        return fmean(self.values)

    @cached_property
    def squares(self) -> float:
        """Sum over the seeds of the squared distances from the mean."""
        return sum((value - self.mean) ** 2 for value in self.values)

    def sample_interval(self, error: float = ERROR) -> Interval:
        """Wilson interval for the sampling of the test set.

        Seeds may share a test set, so more seeds do not make it larger. A mean over noise levels varies from sample
        to sample at most as much as a single share of the same size, so the interval also holds for areas.
        """
        return wilson_interval(self.mean, self.samples, error, self.groups)

    def interval(self, spread: "Spread | None" = None) -> Interval:
        """95 % interval for both sources; without ``spread`` for the sampling only."""
        low, high = self.sample_interval()
        if spread is None:
            return low, high
        half = spread.half_width(self)
        return self.mean - math.hypot(self.mean - low, half), self.mean + math.hypot(high - self.mean, half)


def pareto_set(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates; larger is better, and equal points are all kept.

    ``points``: such as (clean, robust). A point dominates another if it is nowhere smaller and somewhere larger.
    """

    def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
        return tuple(a) != tuple(b) and all(x >= y for x, y in zip(a, b, strict=True))

    return [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


# How often, with equal spreads, a ratio as large must come by chance for the spreads to be pooled.
_BY_CHANCE = 0.5


@dataclass(frozen=True)
class Spread:
    """Standard deviation over seeds, and its degrees of freedom."""

    deviation: float
    freedom: int

    def half_width(self, *shares: Share, error: float = ERROR) -> float:
        """Half the t interval of a share's mean over seeds, or of the difference between the means of two."""
        variance = sum(1 / len(share.values) for share in shares)
        return t_quantile(self.freedom, error) * self.deviation * math.sqrt(variance)


def pooled_spread(shares: Sequence[Share]) -> Spread | None:
    """The spread over seeds pooled over all ``shares``; None if none of them has two seeds."""
    freedom = sum(len(share.values) - 1 for share in shares)
    if not freedom:
        return None
    return Spread(math.sqrt(sum(share.squares for share in shares) / freedom), freedom)


def spread_of(own: Sequence[Share], others: Sequence[Share]) -> Spread | None:
    """The spread over seeds of the shares ``own``, pooled with that of ``others``, which are compared beside them.

    With two or three seeds each, a share's own deviation is nearly worthless. But if theirs is larger than that of
    the others, more than every second time by chance (F test), only theirs counts: a test at 5 % would seldom notice
    with so few seeds, and candidates whose spreads differ by a factor of 2 or 3 would "differ" in up to 16 % of cases.
    """
    mine, rest = pooled_spread(own), pooled_spread(others)
    if mine is not None and rest is not None:
        ratio = mine.deviation**2 / rest.deviation**2 if rest.deviation else math.inf
        if mine.deviation and f_exceeds(ratio, mine.freedom, rest.freedom) < _BY_CHANCE:
            return mine
    return pooled_spread([*own, *others])


def differ(a: Share, b: Share, spread: Spread | None = None, error: float = ERROR) -> bool:
    """True if two shares differ by more than both sources explain: in a share ``error`` of the cases by chance.

    See ``difference_interval``.
    """
    low, high = difference_interval(a, b, spread, error)
    return not low <= 0 <= high


def difference_interval(a: Share, b: Share, spread: Spread | None = None, error: float = ERROR) -> Interval:
    """The interval of a - b that misses the truth with probability ``error``.

    Test sampling: paired by sample where both were measured on the same samples, else Newcombe's interval. Seeds: a
    t interval with ``spread``, by default that of the two. If no seed is repeated the spread is unknown, and the
    interval is that of these networks. The spread over seeds also holds a part of the sampling, which thus counts
    twice: the interval is on the safe side.
    """
    below, above = _paired(a, b, error) or _newcombe(a, b, error)
    spread = spread or pooled_spread([a, b])
    seeds = spread.half_width(a, b, error=error) if spread else 0.0
    difference = a.mean - b.mean
    return difference - math.hypot(below, seeds), difference + math.hypot(above, seeds)


def sample_difference(a: Share, b: Share, error: float = ERROR) -> Interval | None:
    """The interval of a - b for these networks alone; None if they were not measured on the same samples."""
    if (found := _paired(a, b, error)) is None:
        return None
    below, above = found
    return a.mean - b.mean - below, a.mean - b.mean + above


def _newcombe(a: Share, b: Share, error: float) -> Interval:
    """Distances from a - b to the ends of its interval for two test sets (Newcombe 1998, method 10)."""
    (low_a, high_a), (low_b, high_b) = a.sample_interval(error), b.sample_interval(error)
    return math.hypot(a.mean - low_a, high_b - b.mean), math.hypot(high_a - a.mean, b.mean - low_b)


# With fewer samples on which two networks differ, a t interval rejects equality too often.
FEW_DIFFERENCES = 25


def _paired(a: Share, b: Share, error: float) -> Interval | None:
    """The same from the difference on each sample; None unless both were measured on the same samples.

    With fewer than ``FEW_DIFFERENCES`` samples that differ, the interval reaches as far as the exact one given their
    number, too, so that it holds 0 wherever the sign test (McNemar's, exact) does not reject.
    """
    if a.by_sample is None or b.by_sample is None or not a.by_sample.keys() & b.by_sample.keys():
        return None
    nothing = np.zeros(1)
    keys = sorted(a.by_sample.keys() | b.by_sample.keys())
    values = [a.by_sample.get(key, nothing) - b.by_sample.get(key, nothing) for key in keys]
    fewest = min(v.size for v in values)
    if fewest < 2:
        return None
    half = t_quantile(fewest - 1, error) * math.sqrt(sum(float(v.var(ddof=1)) / v.size for v in values))
    differing = sum(int(np.count_nonzero(v)) for v in values)
    if not 0 < differing < FEW_DIFFERENCES:
        return half, half
    low, high = exact_interval(sum(int((v > 0).sum()) for v in values), differing, error)
    size, mean = (sum(float(part.mean()) for part in parts) for parts in (map(np.abs, values), values))
    return max(half, mean - size * (2 * low - 1)), max(half, size * (2 * high - 1) - mean)


@dataclass(frozen=True, eq=False)
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


# A test set, and noise level -> (N,) whether each of its samples is classified correctly.
BySample = tuple[str, dict[float, np.ndarray]]
# One run: noise level -> accuracy, and the samples behind it if they are known.
Measured = tuple[dict[float, float], BySample | None]


def make_candidate(
    name: str, runs: Sequence[Measured], samples: float, levels: Sequence[float] = (), groups: int | None = None
) -> Candidate:
    """A candidate from one run per seed, all at the same noise levels, 0 among them.

    ``samples``: test samples behind each accuracy. ``groups``: as in ``Share``. ``levels``: the noise levels that the
    user named.
    """
    have = sorted(runs[0][0])

    def share(weights: dict[float, float], compared: bool = False) -> Share:
        values = tuple(sum(weight * curve[x] for x, weight in weights.items()) for curve, _ in runs)
        return Share(values, samples, _by_sample(runs, weights) if compared else None, groups)

    return Candidate(
        name,
        clean=share({0.0: 1.0}),
        robust={level: share({level: 1.0}) for level in have if level > 0},
        area=share(_weights(have), compared=not levels),
        named=share({level: 1 / len(levels) for level in levels}, compared=True) if levels else None,
    )


def _weights(levels: list[float]) -> dict[float, float]:
    """What the accuracy at each level adds to the area under the curve, which is linear in them."""
    return {x: area_under_curve(levels, [float(y == x) for y in levels]) for x in levels}


def _by_sample(runs: Sequence[Measured], weights: dict[float, float]) -> Samples | None:
    found: dict[str, np.ndarray] = {}
    for _, samples in runs:
        if samples is None:
            return None
        key, right = samples
        own = np.sum([weight / len(runs) * right[x] for x, weight in weights.items()], axis=0)
        found[key] = found[key] + own if key in found else own
    return found


@dataclass(frozen=True)
class Choice:
    """Indices of candidates.

    pareto: not dominated. best: the choice; None if no candidate is accurate enough. differences: accurate enough ->
    the interval of its score less the choice's. uncertain: accurate enough on average, but with an interval that
    reaches below what was asked for. clean_spreads, score_spreads: of each candidate, over seeds. on_samples: as
    ``differences``, for the sampling of the test set alone; None if they were not measured on the same samples.
    """

    pareto: list[int]
    best: int | None
    differences: dict[int, Interval]
    uncertain: list[int]
    clean_spreads: list[Spread | None]
    score_spreads: list[Spread | None]
    on_samples: dict[int, Interval | None] = field(default_factory=dict)

    @property
    def alike(self) -> list[int]:
        """Accurate enough, and equal to the choice within noise."""
        return [i for i, (low, high) in self.differences.items() if low <= 0 <= high]


def choose(candidates: Sequence[Candidate], min_clean: float, levels: Sequence[float] = ()) -> Choice:
    """Choose the highest score among the candidates with a mean clean accuracy of at least ``min_clean``.

    Of equal scores, the one with the higher clean accuracy. The best of many is partly the luckiest, and any two may
    be the best and its rival: of K candidates K(K − 1)/2 pairs share the error of 5 % (Bonferroni), so that in 95 %
    of the cases no candidate that equals the best differs from it. The Pareto set is over clean accuracy and the
    accuracy at each of ``levels``, or at every level above 0 if none is given.
    """
    points = [(c.clean.mean, *(c.robust[x].mean for x in levels or c.robust)) for c in candidates]
    cleans, scores = [c.clean for c in candidates], [c.score for c in candidates]
    clean, score = ([spread_of([s], _without(own, i)) for i, s in enumerate(own)] for own in (cleans, scores))
    able = [i for i, share in enumerate(cleans) if share.mean >= min_clean]
    if not able:
        return Choice(pareto_set(points), None, {}, [], clean, score)
    best = max(able, key=lambda i: (scores[i].mean, cleans[i].mean))
    error = ERROR / max(1, len(able) * (len(able) - 1) // 2)
    differences, on_samples = {}, {}
    for i in able:
        if i != best:
            on_samples[i] = sample_difference(scores[i], scores[best], error)
            spread = spread_of([scores[i], scores[best]], _without(scores, i, best))
            differences[i] = difference_interval(scores[i], scores[best], spread, error)
    uncertain = [i for i in able if cleans[i].interval(clean[i])[0] < min_clean]
    return Choice(pareto_set(points), best, differences, uncertain, clean, score, on_samples)


def _without(shares: Sequence[Share], *places: int) -> list[Share]:
    return [share for i, share in enumerate(shares) if i not in places]
