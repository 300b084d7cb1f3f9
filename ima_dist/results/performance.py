"""How good a network is class by class: what ``performance`` in summary.json holds, and how it is computed.

An entry is for the network after an epoch, on clean samples or under one attack at one noise level. Values are plain
numbers, rounded to six places.
"""

from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Strict

from ima_dist.results.clustered import Codes, Interval, interval, share
from ima_dist.rundir.curves import attack_rows, noise_key
from ima_dist.rundir.run import Run

CLEAN = "clean"
#: With more classes, neither probabilities nor a row for each class are kept.
MOST_CLASSES = 100
#: Bins of equal width in which confidences are compared with accuracies (Guo et al., ICML 2017).
BINS = 15

_Share = Annotated[float, Field(ge=0, le=1)]
_Bounds = Annotated[tuple[_Share, _Share], Strict(False)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)


class OfClass(_Entry):
    """One class against the rest. support: samples of the class. predicted: samples that are called it.

    A value is None if nothing tells it: a precision without predictions, an AUC without scores.
    """

    label: Annotated[int, Field(ge=0)]
    support: Annotated[int, Field(ge=0)]
    predicted: Annotated[int, Field(ge=0)]
    recall: _Share | None
    recall_interval: _Bounds | None
    precision: _Share | None
    precision_interval: _Bounds | None
    auc: _Share | None
    auc_interval: _Bounds | None


class Bin(_Entry):
    """Samples whose largest probability lies in one bin: how many, its mean, and the share that is right."""

    samples: Annotated[int, Field(ge=1)]
    confidence: _Share
    accuracy: _Share
    interval: _Bounds


class Performance(_Entry):
    """An entry of ``performance``.

    attack: "clean", the whole test set without noise, or an attack, for loss "both". protocol: as in ``Point``; empty
    for "clean". samples: how many; groups: from how many groups they come, None if that is not known.
    balanced_accuracy: mean recall of the classes that occur. auc: mean over the classes that occur, each against the
    rest; of two classes that of class 1. ece: mean distance between confidence and accuracy of a bin, weighted by its
    samples. auc, ece and reliability are None or empty without probabilities.
    """

    attack: str
    epoch: Annotated[int, Field(ge=1)]
    noise: Annotated[float, Field(ge=0)]
    protocol: str
    samples: Annotated[int, Field(ge=1)]
    groups: int | None
    accuracy: _Share
    accuracy_interval: _Bounds
    balanced_accuracy: _Share
    balanced_accuracy_interval: _Bounds
    auc: _Share | None
    auc_interval: _Bounds | None
    ece: _Share | None
    ece_interval: _Bounds | None = None  # which earlier versions did not have
    reliability: Annotated[tuple[Bin, ...], Strict(False)]
    classes: Annotated[tuple[OfClass, ...], Strict(False)]

    @property
    def key(self) -> tuple[str, int, str, float]:
        """What is replaced when it is measured again."""
        return self.attack, self.epoch, self.protocol, noise_key(self.noise)

    def to_json(self) -> dict[str, Any]:
        """The entry of summary.json."""
        return dict(_rounded(self.model_dump()))

    @classmethod
    def from_json(cls, entry: Any) -> Self:
        """Raises ValueError if ``entry`` is none."""
        return cls.model_validate(entry)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return round(value, 6) if isinstance(value, float) else value


# ---- what summary.json has


def entries(summary: dict[str, Any]) -> list[Performance]:
    """The entries of ``performance``; what is none, in a file that was changed by hand, is passed over."""
    found = []
    for entry in summary.get("performance") or []:
        try:
            found.append(Performance.from_json(entry))
        except ValueError:
            continue
    return found


def shown(run: Run, epoch: int | None = None) -> list[Performance]:
    """The entries that belong to what tables show: without noise first, then by attack and noise level.

    ``epoch``: of the network, by default the last one.
    """
    epoch = run.config.epochs if epoch is None else epoch
    known = {entry.key: entry for entry in entries(run.summary)}
    keys = [(CLEAN, epoch, "", 0.0)]
    for attack, row in attack_rows(run.points, epoch).items():
        keys += [(attack, epoch, row[level].protocol, level) for level in sorted(row)]
    return [known[key] for key in keys if key in known]


def clean_of(run: Run, epoch: int | None = None) -> Performance | None:
    """The entry without noise, if there is one."""
    return next((entry for entry in shown(run, epoch) if entry.attack == CLEAN), None)


# ---- how it is computed


def measure(
    label: np.ndarray,
    prediction: np.ndarray,
    probability: np.ndarray | None = None,
    *,
    classes: int,
    groups: Codes | None = None,
    **about: Any,
) -> Performance:
    """The performance on N samples.

    label: (N,), classes from 0. prediction: (N,); -1 is wrong for every class. probability: (N, C), or None; if one is
    not finite, none counts. groups: (N,). about: the entry's attack, epoch, noise and protocol.
    """
    if probability is not None and (classes > MOST_CLASSES or not np.isfinite(probability).all()):
        probability = None
    right = label == prediction
    accuracy, bounds = share(right, np.ones(len(label), dtype=bool), groups)
    assert accuracy is not None
    assert bounds is not None
    rows, (auc, auc_bounds) = _by_class(label, prediction, probability, classes, groups)
    calibration: tuple[float | None, Interval | None, tuple[Bin, ...]] = (None, None, ())
    if probability is not None:
        calibration = _calibration(right, probability.max(1), groups)
    ece, ece_bounds, bins = calibration
    balanced, balanced_bounds = _balanced(label, right, classes, groups)
    return Performance(
        samples=len(label),
        groups=None if groups is None else len(np.unique(groups)),
        accuracy=accuracy,
        accuracy_interval=bounds,
        balanced_accuracy=balanced,
        balanced_accuracy_interval=balanced_bounds,
        auc=auc,
        auc_interval=auc_bounds,
        ece=ece,
        ece_interval=ece_bounds,
        reliability=bins,
        classes=rows if classes <= MOST_CLASSES else (),
        **about,
    )


def _balanced(label: np.ndarray, right: np.ndarray, classes: int, groups: Codes | None) -> tuple[float, Interval]:
    sizes = np.bincount(label, minlength=classes)
    there = sizes > 0
    recalls = np.bincount(label, right, minlength=classes) / np.maximum(sizes, 1)
    value = float(recalls[there].mean())
    influence = (right - recalls[label]) / (there.sum() * sizes[label])
    # Of classes that are all right or all wrong: the variance if each had the same share.
    return value, interval(value, influence, groups, float(there.sum() ** 2 / (1 / sizes[there]).sum()))


def _by_class(
    label: np.ndarray, prediction: np.ndarray, probability: np.ndarray | None, classes: int, groups: Codes | None
) -> tuple[tuple[OfClass, ...], tuple[float | None, Interval | None]]:
    """A row for each class, and the mean of their AUCs with its interval."""
    rows, aucs, influences, sizes = [], [], [], []
    for c in range(classes):
        own, called = label == c, prediction == c
        recall, recall_bounds = share(called, own, groups)
        precision, precision_bounds = share(own, called, groups)
        auc, bounds = None, None
        fewest = int(min(own.sum(), (~own).sum()))
        if probability is not None and fewest:
            auc, influence = auc_and_influence(_odds(probability, c), own)
            bounds = interval(auc, influence, groups, fewest)
            if classes > 2 or c == 1:  # that of the other one of two classes is the same
                aucs.append(auc)
                influences.append(influence)
                sizes.append(fewest)
        rows.append(
            OfClass(
                label=c,
                support=int(own.sum()),
                predicted=int(called.sum()),
                recall=recall,
                recall_interval=recall_bounds,
                precision=precision,
                precision_interval=precision_bounds,
                auc=auc,
                auc_interval=bounds,
            )
        )
    if not aucs:
        return tuple(rows), (None, None)
    mean = float(np.mean(aucs))
    return tuple(rows), (mean, interval(mean, np.mean(influences, axis=0), groups, min(sizes)))


def _odds(probability: np.ndarray, c: int) -> np.ndarray:
    """The odds of a class (N,), in the order of its probability, but where float32 has rounded that to 1."""
    exact = probability.astype(np.float64)
    with np.errstate(divide="ignore"):
        return exact[:, c] / np.delete(exact, c, axis=1).sum(1)


def auc_and_influence(score: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """Area under the ROC curve, and the influence of each sample on it (N,).

    score: (N,); positive: (N,) bool, both kinds present. The area is the share of pairs in which the positive sample
    has the higher score, ties counting half. A sample's part of it, less the area, divided by the number of its kind,
    is its influence: the sum of the squares is the variance of DeLong et al. (Biometrics 44, 1988), and summed within
    groups that of Obuchowski (Biometrics 53, 1997), but for the corrections of small numbers.
    """
    high, low = np.sort(score[positive]), np.sort(score[~positive])
    part = np.empty(len(score))
    for own, others, sign in ((positive, low, 1), (~positive, high, -1)):
        below = (np.searchsorted(others, score[own], "left") + np.searchsorted(others, score[own], "right")) / 2
        part[own] = below / len(others) if sign > 0 else 1 - below / len(others)
    area = float(part[positive].mean())
    return area, (part - area) / np.where(positive, len(high), len(low))


def _calibration(
    right: np.ndarray, confidence: np.ndarray, groups: Codes | None
) -> tuple[float, Interval, tuple[Bin, ...]]:
    """Expected calibration error, its interval, and its bins: of equal width, each with its upper end; empty ones are
    left out."""
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins, error = [], 0.0
    for number in np.unique(place).tolist():
        own = place == number
        accuracy, bounds = share(right, own, groups)
        assert accuracy is not None
        assert bounds is not None
        mean = min(float(confidence[own].mean(dtype=np.float64)), 1.0)
        bins.append(Bin(samples=int(own.sum()), confidence=mean, accuracy=accuracy, interval=bounds))
        error += own.mean() * abs(accuracy - mean)
    return float(error), _ece_interval(float(error), right, confidence, place, groups), tuple(bins)


def _ece_interval(
    value: float, right: np.ndarray, confidence: np.ndarray, place: np.ndarray, groups: Codes | None
) -> Interval:
    """95 % interval of the expected calibration error ``value``, of samples in the bins ``place`` (N,).

    In few samples the error is too large, as every bin's difference counts whatever its sign: that of a calibrated
    network is never 0. So the lower end also lies below ``value`` by as much as chance adds: the sum over the bins of
    the absolute values of normal variables, of which 97.5 % lie below their mean and 1.96 standard deviations.
    """
    count, exact = len(right), confidence.astype(np.float64)
    difference = right - exact
    sums, sizes = np.bincount(place, difference, BINS), np.bincount(place, minlength=BINS)
    low, high = interval(value, (np.sign(sums)[place] * difference - value) / count, groups, count)
    deviation = difference - (sums / np.maximum(sizes, 1))[place]
    own = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    # Those of one bin and group together.
    pairs, which = np.unique(place * count + own, return_inverse=True)
    together = np.bincount(pairs // count, np.bincount(which, deviation) ** 2, BINS)
    # Few samples of a bin may deviate little by chance; if the network is calibrated, it is known by how much.
    variance = np.maximum(together, np.bincount(place, exact * (1 - exact), BINS)) / count**2
    chance = np.sqrt(2 / np.pi * variance).sum() + 1.96 * np.sqrt((1 - 2 / np.pi) * variance.sum())
    return max(0.0, min(low, value - float(chance))), high
