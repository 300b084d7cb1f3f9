"""Performance by class: against scikit-learn, by hand, and how often intervals hold the truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support, roc_auc_score

from ima_dist.results.clustered import effective_samples, interval, share
from ima_dist.results.performance import CLEAN, Performance, _calibration, auc_and_influence, measure
from ima_dist.results.statistics import t_quantile, wilson_interval

ABOUT = {"attack": CLEAN, "epoch": 1, "noise": 0.0, "protocol": ""}


def scored(seed: int, n: int, classes: int, digits: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels of uneven classes, and probabilities that know something of them; with few digits, some are equal."""
    rng = np.random.default_rng(seed)
    label = rng.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    logits = rng.standard_normal((n, classes)).round(digits) + 1.0 * np.eye(classes)[label]
    return label, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 4])
def test_values_are_those_of_scikit_learn(classes):
    label, probability = scored(0, 300, classes, digits=9)
    prediction = probability.argmax(1)
    found = measure(label, prediction, probability, classes=classes, **ABOUT)
    precision, recall, _, support = precision_recall_fscore_support(label, prediction)
    assert [row.precision for row in found.classes] == pytest.approx(precision.tolist())
    assert [row.recall for row in found.classes] == pytest.approx(recall.tolist())
    assert [row.support for row in found.classes] == support.tolist()
    assert found.accuracy == pytest.approx((label == prediction).mean())
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(label, prediction))
    scores = probability[:, 1] if classes == 2 else probability
    assert found.auc == pytest.approx(roc_auc_score(label, scores, multi_class="ovr"))
    for row in found.classes:
        assert row.auc == pytest.approx(roc_auc_score(label == row.label, probability[:, row.label]))
        assert row.recall_interval == pytest.approx(wilson_interval(row.recall, row.support))
        assert row.precision_interval == pytest.approx(wilson_interval(row.precision, row.predicted))
    # What summary.json holds is the same, rounded.
    again = Performance.from_json(json.loads(json.dumps(found.to_json())))
    assert again.balanced_accuracy == pytest.approx(found.balanced_accuracy, abs=1e-6)
    assert again.to_json() == found.to_json()


def test_probabilities_that_float32_has_rounded_to_1_keep_their_order():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 2000)
    logit = 40 * rng.standard_normal(2000) + 40 * (2 * label - 1)
    probability = np.stack([1 / (1 + np.exp(logit)), 1 / (1 + np.exp(-logit))], 1).astype(np.float32)
    assert (probability[:, 1] == 1).sum() > 100
    found = measure(label, probability.argmax(1), probability, classes=2, **ABOUT)
    assert found.auc == pytest.approx(roc_auc_score(label, logit), abs=1e-4)
    assert found.classes[0].auc == pytest.approx(found.classes[1].auc, abs=1e-12)
    assert abs(roc_auc_score(label, probability[:, 1].astype(np.float64)) - found.auc) > 1e-3


def test_the_variance_of_the_area_is_delongs():
    """Against the definition in DeLong et al. 1988: every pair, and sample variances."""
    label, probability = scored(1, 120, 2)
    score, positive = probability[:, 1], label == 1
    high, low = score[positive], score[~positive]
    pairs = (high[:, None] > low) + 0.5 * (high[:, None] == low)
    variance = pairs.mean(1).var() / len(high) + pairs.mean(0).var() / len(low)
    area, influence = auc_and_influence(score, positive)
    assert area == pytest.approx(pairs.mean())
    assert (influence**2).sum() == pytest.approx(variance)
    assert influence.sum() == pytest.approx(0, abs=1e-12)


def test_calibration_by_hand():
    # Confidences .95 (right, right, wrong) in the last bin, .62 (wrong) in that from 9/15 to 10/15.
    probability = np.array([[0.95, 0.05], [0.05, 0.95], [0.95, 0.05], [0.62, 0.38]])
    label = np.array([0, 1, 1, 1])
    found = measure(label, probability.argmax(1), probability, classes=2, **ABOUT)
    assert [(b.samples, b.confidence, b.accuracy) for b in found.reliability] == [
        (1, pytest.approx(0.62), 0.0),
        (3, pytest.approx(0.95), pytest.approx(2 / 3)),
    ]
    assert found.ece == pytest.approx(0.25 * 0.62 + 0.75 * (0.95 - 2 / 3))
    sure = np.eye(2)[label]  # 0 and 1 themselves lie in the first and the last bin
    found = measure(label, label, sure, classes=2, **ABOUT)
    assert (found.ece, (found.ece_interval or (1, 0))[0]) == (0, 0)
    assert Performance.from_json({k: v for k, v in found.to_json().items() if k != "ece_interval"}).ece_interval is None


@pytest.mark.parametrize("same", [1, 4])
def test_the_interval_of_the_calibration_error_covers_it(same: int):
    rng = np.random.default_rng(0)

    def drawn(n: int, trust: float) -> tuple[np.ndarray, np.ndarray]:
        """What is right, and confidences, that are too sure unless trust is 1; ``same`` samples are alike."""
        logit = np.abs(rng.normal(1.5, 1.5, n // same))
        right = rng.random(n // same) < 1 / (1 + np.exp(-trust * logit))
        return np.repeat(right, same), np.repeat(1 / (1 + np.exp(-logit)), same)

    for trust in (1.0, 0.8, 0.3):
        truth, _, _ = _calibration(*drawn(400_000, trust), None)
        covered = 0
        for _ in range(60):
            value, (low, high), _ = _calibration(*drawn(400, trust), np.arange(400) // same)
            assert low <= value <= high
            covered += low - 0.005 <= truth <= high
        assert covered >= 54


def test_a_class_that_nothing_tells_of():
    label, prediction = np.array([0, 0, 1]), np.array([0, -1, 0])
    found = measure(label, prediction, None, classes=3, **ABOUT)
    assert found.balanced_accuracy == 0.25
    assert (found.auc, found.ece, found.reliability) == (None, None, ())
    assert [(row.recall, row.precision) for row in found.classes] == [(0.5, 0.5), (0.0, None), (None, None)]
    broken = np.full((3, 3), np.nan)
    assert measure(label, prediction, broken, classes=3, **ABOUT).auc is None
    many = measure(label, prediction, np.ones((3, 500)) / 500, classes=500, **ABOUT)
    assert (many.classes, many.auc, many.balanced_accuracy) == ((), None, 0.25)


def test_intervals_of_perfect_results_have_a_width():
    label = np.repeat([0, 1], [40, 10])
    found = measure(label, label, np.eye(2)[label], classes=2, **ABOUT)
    assert found.auc == found.balanced_accuracy == 1.0
    # With the smaller class's number: Birnbaum and Klose's bound on the variance of the area.
    assert found.auc_interval == pytest.approx(wilson_interval(1.0, 10))
    # Equal recalls of 40 and 10 samples vary as their mean does: 4 / (1/40 + 1/10) samples.
    assert found.balanced_accuracy_interval == pytest.approx(wilson_interval(1.0, 32))


def test_groups_by_hand():
    """Ten patients with four images each, which are all right or all wrong: as good as ten samples."""
    right, groups = np.repeat([True] * 7 + [False] * 3, 4), np.repeat(np.arange(10), 4)
    every = np.ones(40, dtype=bool)
    assert share(right, every)[1] == pytest.approx(wilson_interval(0.7, 40))
    count = effective_samples(0.7, (right - 0.7) / 40, groups, 40)
    assert count == pytest.approx(9)  # p (1 - p) / variance, whose divisor is G - 1
    z = t_quantile(9)
    low, high = share(right, every, groups)[1]
    middle = (0.7 + z**2 / 18) / (1 + z**2 / 9)
    assert (low + high) / 2 == pytest.approx(middle)
    # All right: as many samples as patients. Nobody's images can narrow an interval.
    assert share(every, every, groups)[1] == pytest.approx(wilson_interval(1.0, 10, groups=10))
    mixed = np.tile([True, True, True, False], 10)  # every patient has the same share
    assert effective_samples(0.75, (mixed - 0.75) / 40, groups, 40) == pytest.approx(40)
    alone = share(right, every, np.arange(40))[1]
    assert alone == pytest.approx(share(right, every)[1], abs=0.01)
    assert interval(0.7, np.zeros(4), np.zeros(4), 4) == (0.0, 1.0)  # one group


@pytest.mark.parametrize("clustered", [False, True])
def test_how_often_intervals_hold_the_truth(clustered):
    """60 patients with 1 to 12 images, whose scores resemble each other, and whose class is the patient's."""
    rng, trials, truth = np.random.default_rng(5), 400, {}
    hits = dict.fromkeys(("accuracy", "balanced_accuracy", "auc"), 0)

    def draw(patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        groups = np.repeat(np.arange(patients), rng.integers(1, 13, patients))
        label = (rng.random(patients) < 0.4).astype(int)[groups]
        score = (
            1.2 * (label - 0.5) + 1.0 * rng.standard_normal(patients)[groups] + 0.7 * rng.standard_normal(len(groups))
        )
        p = 1 / (1 + np.exp(-score))
        return label, np.stack([1 - p, p], 1), groups

    label, probability, _ = draw(200_000)
    whole = measure(label, probability.argmax(1), probability, classes=2, **ABOUT)
    truth = {name: getattr(whole, name) for name in hits}
    for _ in range(trials):
        label, probability, groups = draw(60)
        found = measure(
            label, probability.argmax(1), probability, classes=2, groups=groups if clustered else None, **ABOUT
        )
        for name in hits:
            low, high = getattr(found, f"{name}_interval")
            hits[name] += low <= truth[name] <= high
    if clustered:
        # Three standard errors of the simulation, and what a linear approximation costs with 24 positive patients.
        assert min(hits.values()) / trials >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / trials) - 0.01
    else:
        assert max(hits.values()) / trials < 0.85  # images of one patient are not independent
