"""Choosing a model: areas, intervals, the Pareto set and what noise explains, against cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from ima_dist.results.choice import (
    Share,
    Spread,
    choose,
    differ,
    difference_interval,
    make_candidate,
    pareto_set,
    pooled_spread,
    spread_of,
)
from ima_dist.results.statistics import area_under_curve, t_quantile, wilson_interval


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
    own = pooled_spread([share])
    assert own is not None
    assert own.half_width(share) == pytest.approx(half, abs=1e-6)
    # One interval for both sources: the squares of the halves add up.
    low, high = wilson_interval(0.92, 1000)
    both = 0.92 - math.hypot(0.92 - low, half), 0.92 + math.hypot(high - 0.92, half)
    assert share.interval(own) == pytest.approx(both, abs=1e-6)
    assert share.interval() == pytest.approx((low, high))
    one = Share((0.9,), samples=1000)
    assert pooled_spread([one, one]) is None
    # Squares 2 * 0.02**2 and 2 * 0.01**2 with 2 + 1 degrees of freedom; a single seed adds nothing.
    pooled = pooled_spread([share, Share((0.5, 0.52), 1000), one])
    assert pooled is not None
    assert (pooled.deviation, pooled.freedom) == (pytest.approx(math.sqrt(0.001 / 3)), 3)
    assert pooled.half_width(one) == pytest.approx(3.182446 * math.sqrt(0.001 / 3), abs=1e-6)
    assert t_quantile(1) == pytest.approx(12.7062, abs=1e-4)
    assert t_quantile(5, error=0.01) == pytest.approx(4.0321, abs=1e-4)


def test_a_spread_that_stands_out_is_not_pooled():
    calm = [Share((0.80, 0.81), 1000) for _ in range(6)]  # squares 0.00005 each
    wild, loud = Share((0.7, 0.9), 1000), Share((0.80, 0.83), 1000)
    # F(1, 6) of 0.02 / 0.00005 is 400, of 0.00045 / 0.00005 it is 9; half of the time it is above 0.51.
    assert spread_of([wild], calm) == pooled_spread([wild])
    assert spread_of([loud], calm) == pooled_spread([loud])
    quiet = Share((0.80, 0.806), 1000)  # F is 0.36
    assert spread_of([quiet], calm) == pooled_spread([quiet, *calm])
    # Less spread than the others, no spread, or a single seed: pooled.
    assert spread_of(calm[:1], [wild]) == pooled_spread([calm[0], wild])
    assert spread_of([Share((0.8, 0.8), 9)], calm) == pooled_spread([Share((0.8, 0.8), 9), *calm])
    assert spread_of([Share((0.8,), 9)], calm) == pooled_spread(calm)
    assert spread_of([Share((0.8,), 9)], []) is None


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


def test_both_sources_are_in_one_interval():
    # Of the samples 1.96 * sqrt(2 * 0.8 * 0.2 / 400) = 0.0554 (Newcombe: 0.0556), of the seeds 0.05 by this spread.
    a, b = Share((0.8, 0.8), 400), Share((0.73, 0.73), 400)
    spread = Spread(deviation=0.05 / t_quantile(10), freedom=10)
    below, above = (abs(end - 0.07) for end in difference_interval(a, b, spread))
    alone = [abs(end - 0.07) for end in difference_interval(a, b, Spread(0.0, 10))]
    assert (below, above) == pytest.approx(tuple(math.hypot(x, 0.05) for x in alone))
    # Neither explains the difference, but both together do.
    assert min(alone) < 0.07
    assert not differ(a, b, spread)


def test_paired_by_sample_by_hand():
    # Of 100 samples a alone has 8 and b alone has 2: differences with the mean 0.06 and variance 0.0964 * 100 / 99.
    only = np.r_[np.ones(8), -np.ones(2), np.zeros(90)]
    right = np.r_[np.ones(8), np.zeros(2), np.ones(60), np.zeros(30)]
    a, b = (Share((float(y.mean()),), 100, {"test": y}) for y in (right, right - only))
    half = t_quantile(99) * math.sqrt((0.1 - 0.06**2) / 99)
    # With so few that differ, the exact interval of 8 in 10 (0.4439 to 0.9748 in every table) reaches further down.
    assert difference_interval(a, b) == pytest.approx((0.1 * (2 * 0.4439 - 1), 0.06 + half), abs=2e-5)
    # Without pairing, or on other samples, the interval is wider.
    for other in (Share(b.values, 100), Share(b.values, 100, {"others": right - only})):
        low, high = difference_interval(a, other)
        assert high - low > 1.5 * 2 * half
    # Two seeds, each with test samples of its own: the variances add up.
    many = np.tile(only, 3)
    halves = {"one": many[::2] / 2, "two": many[1::2] / 2}
    c, d = Share((0.56, 0.56), 150, halves), Share((0.5, 0.5), 150, {key: 0 * y for key, y in halves.items()})
    variance = sum(y.var(ddof=1) / 150 for y in halves.values())
    low, high = difference_interval(c, d)
    assert high - low == pytest.approx(2 * t_quantile(149) * math.sqrt(variance))
    # What two networks agree on says that they are equal, however few samples there are.
    assert not differ(a, a)


@pytest.mark.parametrize("only_a", range(0, 13))
def test_few_differences_are_judged_by_the_exact_sign_test(only_a):
    """The t interval alone says that two networks differ from 4 : 0 on, in 1000 samples."""
    n, base = 12 if only_a > 6 else 6, np.ones(1000)
    b = base.copy()
    b[:only_a] = 0
    a = base.copy()
    a[only_a:n] = 0
    shares = [Share((float(y.mean()),), 1000, {"test": y}) for y in (a, b)]
    assert differ(*shares) == (binomtest(min(only_a, n), n).pvalue < 0.05)
    low, high = difference_interval(*shares)
    mirrored = difference_interval(*reversed(shares))
    assert (low, high) == pytest.approx((-mirrored[1], -mirrored[0]))
    # Two seeds on the same samples, and two test sets, count in the same way.
    doubled = [Share(s.values * 2, 1000, {"one": y / 2, "two": y / 2}) for s, y in zip(shares, (a, b), strict=True)]
    assert differ(*doubled) == (binomtest(2 * min(only_a, n), 2 * n).pvalue < 0.05)


def test_rare_differences_are_no_finding():
    """1 % of the samples differ, as often in favour of either network."""
    rng, trials = np.random.default_rng(4), 1000
    wrong = 0
    for _ in range(trials):
        sign = rng.choice([-1, 0, 1], 500, p=[0.005, 0.99, 0.005])
        a, b = np.maximum(sign, 0) + 0.0, np.maximum(-sign, 0) + 0.0
        wrong += differ(*(Share((float(y.mean()),), 500, {"test": y}) for y in (a, b)))
    assert wrong / trials <= 0.05


# ---- how often equal candidates are said to differ: networks that classify by a latent value of each sample


def network(rng: np.random.Generator, difficulty: np.ndarray, mean: float, seed_deviation: float) -> np.ndarray:
    own = 0.7 * rng.standard_normal(len(difficulty)) + seed_deviation * rng.standard_normal()
    return difficulty + own + mean > 0


def simulated(rng, count, *, seeds, samples, deviations=(0.0,), shift=0.0, paired=True, sets=1):
    """Candidates of which the first is better by ``shift``; deviations: over seeds, in turn."""
    tests = [rng.standard_normal(samples) for _ in range(sets)]
    found = []
    for k in range(count):
        runs = []
        for seed in range(seeds):
            own = tests[seed % sets] if paired else rng.standard_normal(samples)
            mean, deviation = 0.5 + shift * (k == 0), deviations[k % len(deviations)]
            right = network(rng, own, mean, deviation)
            name = f"set {seed % sets}" if paired else f"set {k}-{seed}"
            runs.append(({0.0: float(right.mean())}, (name, {0.0: right})))
        found.append(make_candidate(f"{k}", runs, samples))
    return found


SETTINGS = {
    "one seed each, paired": (2, {"seeds": 1, "samples": 300}),
    "one seed each, unpaired": (2, {"seeds": 1, "samples": 300, "paired": False}),
    "three seeds, both sources": (2, {"seeds": 3, "samples": 400, "deviations": (0.08,)}),
    "three seeds, mostly the seeds": (2, {"seeds": 3, "samples": 2000, "deviations": (0.15,)}),
    "five seeds, unpaired": (2, {"seeds": 5, "samples": 400, "deviations": (0.08,), "paired": False}),
    "three seeds, a test set each": (2, {"seeds": 3, "samples": 400, "deviations": (0.1,), "sets": 3}),
    "best of 12, one seed": (12, {"seeds": 1, "samples": 300}),
    "best of 12, three seeds": (12, {"seeds": 3, "samples": 400, "deviations": (0.15,)}),
    "best of 10, two seeds, two of them unstable": (
        10,
        {"seeds": 2, "samples": 2000, "deviations": (0.3, 0.3, *[0.1] * 8)},
    ),
    "best of 12, one of them unstable": (12, {"seeds": 3, "samples": 400, "deviations": (0.4, *[0.05] * 11)}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_equal_candidates_differ_in_at_most_five_of_a_hundred_cases(setting):
    rng, (count, options) = np.random.default_rng(1), SETTINGS[setting]
    trials = 1000 if count == 2 else 250
    wrong = 0
    for _ in range(trials):
        found = choose(simulated(rng, count, **options), 0.0)
        wrong += len(found.alike) < count - 1
    # Three standard errors of the simulation.
    assert wrong / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    if options["seeds"] == 1 and count == 2:
        assert wrong / trials >= 0.05 - 3 * math.sqrt(0.05 * 0.95 / trials)  # nor is it wider than it needs to be


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, {"seeds": 1, "samples": 1000, "shift": 0.2}),
        (2, {"seeds": 3, "samples": 1000, "shift": 0.3, "deviations": (0.05,)}),
        (12, {"seeds": 5, "samples": 1000, "shift": 0.5, "deviations": (0.05,)}),
    ],
)
def test_a_real_difference_is_found(count, options):
    rng = np.random.default_rng(2)
    found = [choose(simulated(rng, count, **options), 0.0) for _ in range(60)]
    assert sum(choice.best == 0 and not choice.alike for choice in found) >= 48


def test_pairing_finds_what_separate_test_sets_cannot():
    rng = np.random.default_rng(3)
    found = np.zeros(2)
    for _ in range(100):
        one, two = (c.area for c in simulated(rng, 2, seeds=1, samples=1000, shift=0.15))
        found += differ(one, two), differ(Share(one.values, 1000), Share(two.values, 1000))
    assert found[0] > 1.5 * found[1]
    assert found[0] > 70


def candidate(name: str, clean: float, robust: float, samples: int = 10_000, levels: tuple[float, ...] = ()):
    curve = {0.0: clean, 0.1: (clean + robust) / 2, 0.2: robust}
    return make_candidate(name, [(curve, None), (curve, None)], samples, levels)


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
    def make(name, curve):
        return make_candidate(name, [(curve, None)], 1000, (0.1, 0.2))

    one = make("one", {0.0: 0.9, 0.1: 0.8, 0.2: 0.5, 0.3: 0.5})
    two = make("two", {0.0: 0.9, 0.1: 0.9, 0.2: 0.5, 0.3: 0.0})
    three = make("three", {0.0: 0.9, 0.1: 0.7, 0.2: 0.55, 0.3: 0.5})
    assert one.named is not None
    assert one.named.mean == pytest.approx(0.65)
    found = choose([one, two, three], 0.9, (0.1, 0.2))
    assert (found.best, found.pareto) == (1, [1, 2])
    assert one.area.mean == pytest.approx(2 / 3)  # 0.1 * (0.85 + 0.65 + 0.5) / 0.3
    assert two.area.mean == pytest.approx(0.185 / 0.3)
    # Without names every level counts: no average may hide the one at 0.3.
    assert choose([one, two, three], 0.9).pareto == [0, 1, 2]


def test_each_sample_has_its_part_of_the_score():
    right = {0.0: np.array([True, True, True]), 0.1: np.array([True, True, False]), 0.4: np.array([True, False, False])}
    run = ({x: float(y.mean()) for x, y in right.items()}, ("test", right))
    found = make_candidate("one", [run, run], 3)
    assert found.area.by_sample is not None
    # Alive up to the end, to 0.1, and to 0: areas 1, (0.1 + 0.15) / 0.4, and 0.05 / 0.4.
    assert found.area.by_sample["test"].tolist() == pytest.approx([1, 0.625, 0.125])
    assert found.area.values == pytest.approx([1.75 / 3] * 2)
    named = make_candidate("one", [run], 3, (0.1, 0.4)).score
    assert named.by_sample is not None
    assert named.by_sample["test"].tolist() == pytest.approx([1, 0.5, 0])
    assert make_candidate("one", [run, (run[0], None)], 3).area.by_sample is None
