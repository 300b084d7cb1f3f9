"""Two-class tasks: sensitivity, specificity, and the choice of a threshold."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ima_dist.results.statistics import wilson_interval
from ima_dist.results.text import aligned
from ima_dist.rundir.curves import format_noise, noise_key
from ima_dist.rundir.run import Run

_TARGETS = (0.90, 0.95, 0.99)


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


def binary_report(run: Run) -> str | None:
    """Sensitivity and specificity by noise level, and thresholds, for the terminal; None for other tasks."""
    if run.scores is None or run.outcomes is None:
        return None
    negative, positive = run.summary["class_names"]
    lines = [["attack", "noise", "sensitivity", "specificity"]]
    for row in sensitivity_by_noise(run.outcomes, run.config.epochs):
        shares = [_share(row["sensitivity"], row["positives"]), _share(row["specificity"], row["negatives"])]
        lines.append([row["attack"], format_noise(row["noise"]), *shares])
    title = f"Shares of the test samples of {positive} and of {negative} that are classified correctly under attack"
    parts = [title, *aligned(lines)]
    val, test = (_scores(run.scores, split) for split in ("validation", "test"))
    if all(set(label) == {0, 1} for _, label in (val, test)):
        lines = [["wanted sensitivity", "threshold", "sensitivity", "specificity"]]
        for target in (None, *_TARGETS):
            threshold = 0.5 if target is None else choose_threshold(*val, target)
            found, spared = rates(*test, threshold)
            ill = int(test[1].sum())
            shares = [_share(found, ill), _share(spared, len(test[1]) - ill)]
            lines.append(["(none)" if target is None else f"{target:.2f}", f"{threshold:.4f}", *shares])
        parts += [
            "",
            f"Threshold on the probability of {positive}, chosen on {len(val[1])} validation samples, and its result "
            "on clean test samples",
            *aligned(lines),
        ]
    return "\n".join(parts)


def _scores(table: pa.Table, split: str) -> tuple[np.ndarray, np.ndarray]:
    table = table.filter(pc.equal(table["split"], split))
    return table["probability"].to_numpy(), table["label"].to_numpy()


def _share(value: float | None, samples: int) -> str:
    if value is None:
        return "-"
    low, high = wilson_interval(value, samples)
    return f"{value:.4f} ({max(low, 0):.3f} to {min(high, 1):.3f})"
