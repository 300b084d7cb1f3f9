"""Choosing a model: areas, intervals, the Pareto set and what noise explains, against cases worked by hand."""

from __future__ import annotations

import math

import pytest

from ima_dist.config.errors import ConfigError
from ima_dist.results.choice import (
    Share,
    Spread,
    choose,
    differ,
    difference_interval,
    make_candidate,
    pareto_set,
    pooled_spread,
)
from ima_dist.results.statistics import area_under_curve, t_quantile


def test_area_under_the_curve_of_uneven_levels():
    # 0.1 * (1 + 0.8) / 2 + 0.3 * (0.8 + 0.2) / 2 = 0.09 + 0.15, over a range of 0.4
    assert area_under_curve([0.0, 0.1, 0.4], [1.0, 0.8, 0.2]) == pytest.approx(0.24 / 0.4)
    assert area_under_curve([0.2], [0.7]) == 0.7
    for levels, accuracies in (([0.1, 0.0], [1, 1]), ([], []), ([0.0, 0.1], [1.0])):
        with pytest.raises(ValueError, match="levels must ascend"):
            area_under_curve(levels, accuracies)


def test_pareto_set():
    points = [(0.9, 0.1), (0.8, 0.5), (0.8, 0.4), (0.7, 0.5), (0.1, 0.9), (0.8, 0.5)]
    assert pareto_set(points) == [0, 1, 4, 5]  # 2 and 3 are dominated by 1; 5 equals 1
    assert pareto_set([(1, 1, 0), (1, 0, 1), (1, 0, 0)]) == [0, 1]
    assert pareto_set([]) == []


def test_spread_over_seeds():
    share = Share((0.90, 0.92, 0.94), samples=1000)
    assert share.mean == pytest.approx(0.92)
    # The 97.5 % quantile of t with two degrees of freedom is 4.302653 in every table.
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert share.seed_interval == pytest.approx((0.92 - half, 0.92 + half), abs=1e-6)
    one = Share((0.9,), samples=1000)
    assert (one.seed_interval, pooled_spread([one, one])) == (None, None)
    # Squares 2 * 0.02**2 and 2 * 0.01**2 with 2 + 1 degrees of freedom; a single seed adds nothing.
    pooled = pooled_spread([share, Share((0.5, 0.52), 1000), one])
    assert pooled is not None
    assert (pooled.deviation, pooled.freedom) == (pytest.approx(math.sqrt(0.001 / 3)), 3)
    assert pooled.half_width(one) == pytest.approx(3.182446 * math.sqrt(0.001 / 3), abs=1e-6)
    assert t_quantile(1) == pytest.approx(12.7062, abs=1e-4)


def test_a_difference_that_sampling_explains():
    # Newcombe 1998, table II, cases (a), (b) and (c), method 10.
    for (x, m), (y, n), interval in (
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((6, 7), (2, 7), (0.0582, 0.8062)),
    ):
        shares = Share((x / m,), m), Share((y / n,), n)
        assert difference_interval(*shares) == pytest.approx(interval, abs=5e-5)
        assert differ(*shares)
    # 0.80 against 0.77 on 100 samples each: the intervals are ±0.08 wide.
    assert not differ(Share((0.80,), 100), Share((0.77,), 100))
    assert differ(Share((0.80,), 10000), Share((0.77,), 10000))


def test_a_difference_that_seeds_explain():
    # Means 0.80 and 0.70, standard error of the difference sqrt(2 * 0.1**2 / 2) = 0.1, two degrees of freedom:
    # the interval is ±0.43.
    wide = Share((0.73, 0.87), 100_000), Share((0.63, 0.77), 100_000)
    assert not differ(*wide)
    # The same means, standard error 0.001: ±0.0043.
    assert differ(Share((0.7993, 0.8007), 100_000), Share((0.6993, 0.7007), 100_000))
    # Without any spread the samples decide.
    assert differ(Share((0.8, 0.8), 10_000), Share((0.7, 0.7), 10_000))
    assert not differ(Share((0.8, 0.8), 10_000), Share((0.8, 0.8), 10_000))
    # One seed against two: one degree of freedom, 12.706 * 0.0141 * sqrt(1.5) = 0.22.
    assert not differ(Share((0.8,), 10_000), Share((0.7, 0.72), 10_000))
    assert differ(Share((0.8,), 10_000), Share((0.7,), 10_000))  # about these networks alone
    # What other candidates show of the spread makes the same difference count.
    narrow = Spread(deviation=0.01, freedom=10)
    assert differ(*wide, spread=narrow)  # 2.228 * 0.01 * 1 = 0.022
    assert not differ(*wide, spread=Spread(deviation=0.05, freedom=10))  # 0.11


def candidate(name: str, clean: float, robust: float, samples: int = 10_000, levels: tuple[float, ...] = ()):
    curve = {0.0: clean, 0.1: (clean + robust) / 2, 0.2: robust}
    return make_candidate(name, [curve, curve], samples, levels)


def test_the_choice():
    all_ = [
        candidate("frail", 0.99, 0.10),
        candidate("good", 0.95, 0.60),
        candidate("alike", 0.95, 0.599),
        candidate("worse", 0.94, 0.50),
        candidate("robust", 0.89, 0.80),
        candidate("borderline", 0.901, 0.2),
    ]
    found = choose(all_, min_clean=0.90)
    assert all_[1].area.mean == pytest.approx(0.775)
    assert (found.best, found.alike, found.uncertain) == (1, [2], [5])
    assert found.pareto == [0, 1, 4]
    assert choose(all_, min_clean=0.85).best == 4
    assert choose(all_, min_clean=0.999).best is None
    assert choose([], min_clean=0.5).best is None


def test_the_choice_at_named_levels():
    levels = (0.1, 0.2)
    one = make_candidate("one", [{0.0: 0.9, 0.1: 0.8, 0.2: 0.5, 0.3: 0.5}], 1000, levels)
    two = make_candidate("two", [{0.0: 0.9, 0.1: 0.9, 0.2: 0.5, 0.3: 0.0}], 1000, levels)
    three = make_candidate("three", [{0.0: 0.9, 0.1: 0.7, 0.2: 0.55, 0.3: 0.5}], 1000, levels)
    assert one.named is not None
    assert one.named.mean == pytest.approx(0.65)
    found = choose([one, two, three], 0.9, levels)
    assert (found.best, found.pareto) == (1, [1, 2])
    assert one.area.mean == pytest.approx(2 / 3)  # 0.1 * (0.85 + 0.65 + 0.5) / 0.3
    assert two.area.mean == pytest.approx(0.185 / 0.3)


def test_curves_that_do_not_fit_together():
    with pytest.raises(ConfigError, match="different noise levels"):
        make_candidate("a", [{0.0: 1.0, 0.1: 0.5}, {0.0: 1.0}], 10)
    with pytest.raises(ConfigError, match=r"no accuracy at noise 0.2: it has 0, 0.1"):
        make_candidate("a", [{0.0: 1.0, 0.1: 0.5}], 10, (0.2,))
    with pytest.raises(ConfigError, match="no accuracy at noise 0:"):
        make_candidate("a", [{0.1: 0.5}], 10)
