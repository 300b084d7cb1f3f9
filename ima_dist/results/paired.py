"""Two networks on the same test samples: where only one of them is right, and whether that may be chance."""

from dataclasses import dataclass

import numpy as np

from ima_dist.results.choice import Interval, Share, difference_interval
from ima_dist.results.seeds import Network, by_sample
from ima_dist.results.statistics import ERROR, sign_test
from ima_dist.rundir.curves import Row


@dataclass(frozen=True)
class Paired:
    """One network less another, at one noise level on the same samples.

    first, second: accuracies. only_first, only_second: samples that only one classifies correctly, or groups of
    samples, where they are known, in which it does better. p: of McNemar's exact test that both are equally good.
    interval: of the difference of the accuracies.
    """

    samples: int
    first: float
    second: float
    only_first: int
    only_second: int
    p: float
    interval: Interval

    @property
    def differ(self) -> bool:
        low, high = self.interval
        return not low <= 0 <= high


def compare_on_samples(
    first: tuple[Network, Row], second: tuple[Network, Row], noise: float, comparisons: int = 1
) -> Paired | None:
    """None unless both rows are of the same samples and have this noise level, with outcomes that agree with them.

    comparisons: so many are made at once; the interval is wider, so that all of them hold together (Bonferroni).
    """
    mine, theirs = by_sample(*first), by_sample(*second)
    if mine is None or theirs is None or mine[0] != theirs[0]:
        return None
    (key, right), (_, other) = mine, theirs
    if noise not in right or noise not in other:
        return None
    a, b = right[noise].astype(float), other[noise].astype(float)
    only_first, only_second = int(np.count_nonzero(a > b)), int(np.count_nonzero(a < b))
    points = [pair[1][noise] for pair in (first, second)]
    shares = [
        Share((point.share,), point.effective, {key: values}, point.groups)
        for point, values in zip(points, (a, b), strict=True)
    ]
    interval = difference_interval(shares[0], shares[1], error=ERROR / comparisons)
    # Two-sided: either may be the better one.
    p = min(1.0, 2 * sign_test(max(only_first, only_second), only_first + only_second))
    return Paired(points[0].samples, points[0].share, points[1].share, only_first, only_second, p, interval)
