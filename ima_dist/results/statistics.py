"""Confidence intervals and tests of shares; intervals are 95 % ones unless another ``error`` is given."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from ima_dist.rundir.curves import Point, Row

ERROR = 0.05  # the probability that an interval misses the truth


def wilson_interval(
    share: float, samples: float, error: float = ERROR, groups: int | None = None
) -> tuple[float, float]:
    """Wilson score interval of a share observed on ``samples`` samples (Wilson 1927); (0, 1) for no samples.

    For samples that come in ``groups``, ``samples`` is their effective number (``clustered.effective_samples``), and
    Student's t with groups - 1 degrees of freedom takes the place of the normal distribution (Korn and Graubard 1998).
    """
    if samples <= 0 or (groups is not None and groups < 2):
        return 0.0, 1.0
    z = NormalDist().inv_cdf(1 - error / 2) if groups is None else t_quantile(groups - 1, error)
    scale = 1 + z**2 / samples
    centre = (share + z**2 / (2 * samples)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))
    return centre - half, centre + half


def interval_of(point: Point) -> tuple[float, float]:
    """95 % interval of a point's accuracy, which has one: Wilson's, clustered by group where groups are known."""
    return wilson_interval(point.share, point.effective, groups=point.groups)


def with_intervals(row: Row) -> tuple[list[float], list[float], list[float], list[float]]:
    """Noise levels in ascending order, and for each the accuracy and the ends of its 95 % interval."""
    levels = sorted(row)
    bounds = [interval_of(row[x]) for x in levels]
    return levels, [row[x].share for x in levels], [low for low, _ in bounds], [high for _, high in bounds]


def exact_interval(successes: int, trials: int, error: float = ERROR) -> tuple[float, float]:
    """Exact interval of a share (Clopper and Pearson 1934): it holds 1/2 if and only if the two-sided sign test does
    not reject at ``error``."""
    from scipy.special import betaincinv

    low = float(betaincinv(successes, trials - successes + 1, error / 2)) if successes else 0.0
    high = float(betaincinv(successes + 1, trials - successes, 1 - error / 2)) if successes < trials else 1.0
    return low, high


def t_quantile(freedom: float, error: float = ERROR) -> float:
    """The value that |t| exceeds with probability ``error``, for Student's t with ``freedom`` degrees of freedom."""
    from scipy.special import stdtrit  # SciPy takes a second to import, and a run of its own needs only intervals

    return float(stdtrit(freedom, 1 - error / 2))


def f_exceeds(ratio: float, freedom: int, other: int) -> float:
    """The probability that Fisher's F with ``freedom`` and ``other`` degrees of freedom exceeds ``ratio``."""
    from scipy.special import fdtrc

    return float(fdtrc(freedom, other, ratio))


def sign_test(successes: int, trials: int) -> float:
    """Probability of at least ``successes`` in ``trials`` if each is as likely as not (one-sided sign test)."""
    from scipy.special import bdtrc

    return float(bdtrc(successes - 1, trials, 0.5)) if successes else 1.0


def area_under_curve(levels: Sequence[float], accuracies: Sequence[float]) -> float:
    """Area under accuracy against noise (trapezoids) divided by the range of the levels: 0 to 1.

    ``levels`` ascend. A single level gives its accuracy. Raises ValueError if the two do not match.
    """
    if not levels or len(levels) != len(accuracies) or list(levels) != sorted(set(levels)):
        raise ValueError(f"levels must ascend and have one accuracy each, got {levels} and {accuracies}")
    if len(levels) == 1:
        return accuracies[0]
    return float(np.trapezoid(accuracies, levels)) / (levels[-1] - levels[0])
