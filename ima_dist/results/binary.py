"""Two-class tasks: sensitivity, specificity, and the choice of a threshold."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ima_dist.results.clustered import Codes, Interval, share
from ima_dist.results.performance import CLEAN, shown
from ima_dist.results.statistics import wilson_interval
from ima_dist.results.text import aligned
from ima_dist.rundir.curves import attack_rows, format_noise, noise_key
from ima_dist.rundir.run import Run

_TARGETS = (0.90, 0.95, 0.99)
_NAMES = {"wanted", "threshold", "attack", "noise", "protocol", "positives", "negatives"} | {
    name + end for name in ("sensitivity", "specificity") for end in ("", "_interval")
}


def sensitivity_by_noise(outcomes: pa.Table, epoch: int) -> list[dict[str, Any]]:
    """One row per attack and noise level: "attack", "noise", "sensitivity", "specificity", "positives", "negatives".

    ``outcomes``: as in outcomes.parquet, for two classes of which 1 is the positive one. A share is None if the class
    has no sample. The rows are for the loss "both" and the network after ``epoch`` epochs.
    """
    chosen = outcomes.filter((pc.field("epoch") == epoch) & (pc.field("loss") == "both"))
    right: dict[tuple[str, float], tuple[list[bool], list[bool]]] = {}
    for row in chosen.select(["attack", "noise", "label", "prediction"]).to_pylist():
        by_label = right.setdefault((row["attack"], noise_key(row["noise"])), ([], []))
        by_label[row["label"]].append(row["label"] == row["prediction"])
    return [
        {
            "attack": attack,
            "noise": noise,
            "sensitivity": float(np.mean(ill)) if ill else None,
            "specificity": float(np.mean(well)) if well else None,
            "positives": len(ill),
            "negatives": len(well),
        }
        for (attack, noise), (well, ill) in sorted(right.items())
    ]


def rates(probability: np.ndarray, label: np.ndarray, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity if a probability of at least ``threshold`` counts as positive.

    ``probability``: (N,) of class 1; ``label``: (N,) of 0 or 1, both present.
    """
    called = probability >= threshold
    return float(called[label == 1].mean()), float(1 - called[label == 0].mean())


def choose_threshold(probability: np.ndarray, label: np.ndarray, sensitivity: float) -> float:
    """The highest threshold at which at least the share ``sensitivity`` of the positive samples is detected.

    Section 3.3: "one can tweak the classification threshold to increase the sensitivity to infection". Choose it on
    validation samples, and report the result on others.
    """
    positive = np.sort(probability[label == 1])
    missed = int(np.floor(len(positive) * (1 - sensitivity) + 1e-9))
    return float(positive[missed])


def thresholds(
    scores: pa.Table, probabilities: pa.Table | None = None, epoch: int = 0, groups: Codes | None = None
) -> list[dict[str, Any]]:
    """What summary.json says of thresholds on the probability of class 1, with which a sample is called positive.

    A row for each wanted sensitivity (None: the threshold 0.5), without noise ("clean") and under each attack and noise
    level whose probabilities are kept: "wanted", "threshold", "attack", "noise", "protocol", "sensitivity" and
    "specificity" with their 95 % intervals, "positives", "negatives". [] if a class has no validation or test sample.

    scores: as in scores.parquet; its validation samples choose the thresholds. probabilities: as in
    probabilities.parquet. epoch: of the network. groups: of the test set, if known.
    """
    val, test = (_scores(scores, split) for split in ("validation", "test"))
    if not all(set(label) == {0, 1} for _, label in (val, test)):
        return []
    clean = {"attack": CLEAN, "noise": 0.0, "protocol": ""}
    found = [(clean, *test, None if groups is None else groups)]
    if probabilities is not None:
        own = probabilities.filter((pc.field("epoch") == epoch) & (pc.field("attack") != CLEAN))
        keys = set(zip(*(own[name].to_pylist() for name in clean), strict=True))
        for attack, level, protocol in sorted(keys):
            here = own.filter(
                (pc.field("attack") == attack) & (pc.field("noise") == level) & (pc.field("protocol") == protocol)
            )
            codes = None if groups is None else groups[here["index"].to_numpy()]
            score = pc.list_element(here["probability"], 1).to_numpy()
            key = {"attack": attack, "noise": level, "protocol": protocol}
            found.append((key, score, here["label"].to_numpy(), codes))
    chosen = {target: 0.5 if target is None else choose_threshold(*val, target) for target in (None, *_TARGETS)}
    return [
        {"wanted": target, "threshold": threshold, **key, **_at(score, label, threshold, codes)}
        for key, score, label, codes in found
        for target, threshold in chosen.items()
    ]


def _at(score: np.ndarray, label: np.ndarray, threshold: float, groups: Codes | None) -> dict[str, Any]:
    called = score >= threshold
    detected, detected_interval = share(called, label == 1, groups)
    spared, spared_interval = share(~called, label == 0, groups)
    return {
        "sensitivity": detected,
        "sensitivity_interval": detected_interval,
        "specificity": spared,
        "specificity_interval": spared_interval,
        "positives": int((label == 1).sum()),
        "negatives": int((label == 0).sum()),
    }


def shown_thresholds(run: Run) -> list[dict[str, Any]]:
    """The rows of ``thresholds`` that belong to what tables show.

    Of a run of an earlier version those without noise; a row that lacks values, in a file that was changed by hand, is
    passed over.
    """
    found = run.summary.get("thresholds")
    if not isinstance(found, list):
        return [] if run.scores is None else thresholds(run.scores)
    rows = attack_rows(run.points, run.config.epochs)
    known = {(CLEAN, ""), *((attack, point.protocol) for attack, row in rows.items() for point in row.values())}
    whole = [row for row in found if isinstance(row, dict) and row.keys() >= _NAMES]
    return [row for row in whole if (row["attack"], row["protocol"]) in known]


def binary_report(run: Run) -> str | None:
    """Sensitivity and specificity by noise level, and thresholds, for the terminal; None for other tasks."""
    if run.scores is None or run.outcomes is None:
        return None
    negative, positive = run.summary["class_names"]
    lines = [["attack", "noise", "sensitivity", "specificity"]]
    bounds = {
        (entry.attack, noise_key(entry.noise)): [row.recall_interval for row in entry.classes] for entry in shown(run)
    }
    for row in sensitivity_by_noise(run.outcomes, run.config.epochs):
        well, ill = bounds.get((row["attack"], row["noise"]), (None, None))
        shares = [
            _share(row["sensitivity"], row["positives"], ill),
            _share(row["specificity"], row["negatives"], well),
        ]
        lines.append([row["attack"], format_noise(row["noise"]), *shares])
    title = f"Shares of the test samples of {positive} and of {negative} that are classified correctly under attack"
    parts = [title, *aligned(lines)]
    clean = [row for row in shown_thresholds(run) if row["attack"] == CLEAN]
    if clean:
        lines = [["wanted sensitivity", "threshold", "sensitivity", "specificity"]]
        for row in clean:
            wanted = "(none)" if row["wanted"] is None else f"{row['wanted']:.2f}"
            shares = [
                _share(row[name], row[of], row[f"{name}_interval"])
                for name, of in (("sensitivity", "positives"), ("specificity", "negatives"))
            ]
            lines.append([wanted, f"{row['threshold']:.4f}", *shares])
        chosen_on = len(_scores(run.scores, "validation")[1])
        parts += [
            "",
            f"Threshold on the probability of {positive}, chosen on {chosen_on} validation samples, and its result on "
            "clean test samples",
            *aligned(lines),
        ]
    return "\n".join(parts)


def _scores(table: pa.Table, split: str) -> tuple[np.ndarray, np.ndarray]:
    table = table.filter(pc.equal(table["split"], split))
    return table["probability"].to_numpy(), table["label"].to_numpy()


def _share(value: float | None, samples: int, interval: Interval | None) -> str:
    """interval: by default Wilson's of so many independent samples."""
    if value is None:
        return "-"
    low, high = interval or wilson_interval(value, samples)
    return f"{value:.4f} ({max(low, 0):.3f} to {min(high, 1):.3f})"
