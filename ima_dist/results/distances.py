"""Each sample's distance to the nearest misclassified point, as ``--attack minimal`` finds it."""

from typing import Any

import numpy as np
import pyarrow.compute as pc

from ima_dist.results.text import NORM_SIGN
from ima_dist.rundir.run import Run

ATTACK = "minimal"

Array = np.ndarray[Any, np.dtype[np.float64]]


def distances(run: Run, epoch: int) -> Array | None:
    """Ascending distances (N,) of the test samples, in the run's norm and units of the data; None without any.

    0 for samples that are misclassified without noise; infinite where no misclassified point was found.
    """
    table = run.outcomes
    if table is None or "distance" not in table.column_names:
        return None
    own = table.filter((pc.field("attack") == ATTACK) & (pc.field("epoch") == epoch) & pc.field("distance").is_valid())
    if not own.num_rows:
        return None
    # The same at every noise level.
    return np.sort(own.filter(pc.field("noise") == own["noise"][0].as_py())["distance"].to_numpy())


def curve(found: Array) -> tuple[Array, Array]:
    """Noise levels (M,) at which the accuracy falls, beginning with 0, and the accuracy (M,) from each of them on."""
    levels = np.unique(np.concatenate([[0.0], found[np.isfinite(found)]]))
    return levels, 1 - np.searchsorted(found, levels, side="right") / len(found)


def describe(run: Run, epoch: int) -> str | None:
    """A sentence for the terminal; None unless the run was attacked with ``minimal``."""
    found = distances(run, epoch)
    if found is None:
        return None
    # The nearest rank: a mean of a number and infinity would say nothing.
    quarters = np.quantile(found, [0.25, 0.5, 0.75], method="inverted_cdf")
    names = ("a quarter", "half", "three quarters")
    within = [f"{name} within {q:.4g}" for name, q in zip(names, quarters, strict=True) if np.isfinite(q)]
    parts = [f"{', '.join(within)} ({NORM_SIGN[run.config.norm]})"] if within else []
    lost = int(np.isinf(found).sum())
    parts += [f"no misclassified point was found for {lost:,}"] if lost else []
    return f"Distances of {len(found):,} samples to the nearest misclassified point: {'; '.join(parts)}."
