"""Summary of the audit of a run's margins (paper, Fig. 9 right: MMA over-estimates them)."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ima_dist.results.statistics import wilson_interval

# A margin is over-estimated if it exceeds the audited distance by more than this share of the distance.
TOLERANCE = 0.05


class AuditSummary(NamedTuple):
    """Over correctly classified samples; lengths in the run's norm and units of the data.

    over: share whose margin exceeds the audited distance by more than TOLERANCE. mean_excess: mean of
    margin − distance over these, 0 if there are none. median_ratio: of margin / distance.
    mean_distance: of distances capped at the largest margin.
    """

    samples: int
    correct: int
    over: float
    mean_excess: float
    median_ratio: float
    mean_margin: float
    mean_distance: float


def summarise(table: pa.Table, eps_max: float) -> AuditSummary:
    """``table``: as in audit.parquet. The mean distance is of distances capped at ``eps_max`` or the largest margin.

    Raises ValueError if no sample is classified correctly.
    """
    correct = table["correct"].to_numpy()
    if not correct.any():
        raise ValueError("no sample is classified correctly")
    margin, distance = table["margin"].to_numpy()[correct], table["distance"].to_numpy()[correct]
    over = margin > (1 + TOLERANCE) * distance
    return AuditSummary(
        samples=table.num_rows,
        correct=int(correct.sum()),
        over=float(over.mean()),
        mean_excess=float((margin - distance)[over].mean()) if over.any() else 0.0,
        median_ratio=float(np.median(margin / distance)),
        mean_margin=float(margin.mean()),
        mean_distance=float(np.minimum(distance, max(eps_max, margin.max())).mean()),
    )


def audit_text(summary: AuditSummary, epoch: int) -> str:
    """The summary as text for the terminal."""
    low, high = wilson_interval(summary.over, summary.correct)
    return "\n".join(
        [
            f"Margins of {summary.correct} correctly classified training samples (of {summary.samples} drawn) after "
            f"epoch {epoch}, against the distance at which a minimal-norm attack"
            " crosses the boundary:",
            f"  over-estimated by more than {TOLERANCE:.0%}: {summary.over:.1%} of them (95 % interval "
            f"{max(low, 0):.1%} to {min(high, 1):.1%}), by {summary.mean_excess:.4g} on average",
            f"  mean margin {summary.mean_margin:.4g}, mean distance {summary.mean_distance:.4g} (capped like margins)",
            f"  median of margin / distance: {summary.median_ratio:.3f}",
            "The distance is an upper bound: the true boundary may be closer.",
        ]
    )
