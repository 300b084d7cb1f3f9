"""Intervals of shares whose samples may come in groups: several images of one patient are not independent.

A statistic between 0 and 1 comes with the influence of each sample on it: its deviation from the truth is their sum, to
first order. Summed within groups, the squares of the influences give the variance, and the variance an effective
number of samples: that of independent samples whose share would vary as much. Wilson's interval of that number stays
within 0 and 1, and has a width at 0 and 1 too (Korn and Graubard, Survey Methodology 24, 1998).
"""

import numpy as np

from ima_dist.results.statistics import wilson_interval

Interval = tuple[float, float]
Codes = np.ndarray  # (N,) of whole numbers: equal for samples of one group


def effective_samples(value: float, influence: np.ndarray, groups: Codes | None, fallback: float) -> float:
    """How many independent samples say as much about ``value`` as these do.

    influence: (N,) of each sample. groups: (N,), or None if every sample counts as its own. fallback: the number if the
    influences do not tell, because ``value`` is 0 or 1; with groups at most the number of those that matter.
    """
    variance = float((influence**2).sum())
    if groups is not None:
        _, place = np.unique(groups, return_inverse=True)
        sums = np.bincount(place, influence)
        fallback = min(fallback, len(sums))
        # Groups cannot say more than their samples would if they were independent.
        variance = max(variance, float((sums**2).sum()) * len(sums) / max(len(sums) - 1, 1))
    return value * (1 - value) / variance if variance > 0 and 0 < value < 1 else fallback


def interval(value: float, influence: np.ndarray, groups: Codes | None, fallback: float) -> Interval:
    """95 % interval of ``value``, within 0 and 1; the arguments are those of ``effective_samples``."""
    count = None if groups is None else len(np.unique(groups))
    low, high = wilson_interval(value, effective_samples(value, influence, groups, fallback), groups=count)
    return max(low, 0.0), min(high, 1.0)


def share(hit: np.ndarray, among: np.ndarray, groups: Codes | None = None) -> tuple[float | None, Interval | None]:
    """The share of the samples ``among`` (N,) bool that are a ``hit`` (N,) bool, and its interval; None without any."""
    count = int(among.sum())
    if not count:
        return None, None
    own = hit[among]
    value = float(own.mean())
    return value, interval(value, (own - value) / count, None if groups is None else groups[among], count)
