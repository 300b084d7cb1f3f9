"""Which epochs of a run have weights, and which have figures in history.parquet."""

import itertools
import re
from collections.abc import Iterable
from typing import Any

from ima_dist.rundir.directory import RunDir


def with_weights(run: RunDir) -> list[int]:
    """The epochs whose weights a run has, ascending; of one that ended early also the last, which has those of its
    best epoch."""
    found = (re.fullmatch(r"epoch=(\d+)", path.parent.name) for path in run.checkpoints_dir.glob("*/model.safetensors"))
    return sorted(int(match[1]) for match in found if match and int(match[1]))


def without_figures(run: RunDir, history: list[dict[str, Any]], epochs: int) -> list[int]:
    """The epochs that were trained and have no row in ``history``, which was lost. epochs: of the configuration."""
    weights, rows = with_weights(run), {row["epoch"] for row in history}
    if epochs > 1 and epochs in weights and (epochs - 1 not in weights or max(rows, default=0) == epochs - 1):
        weights.pop()  # a run that ended early: nothing was trained in this epoch
    return [epoch for epoch in weights if epoch not in rows]


def spans(epochs: Iterable[int]) -> str:
    """Ascending numbers as a text: "1 to 3, 5"."""
    parts = []
    # Numbers without a gap differ from their places by the same.
    for _, group in itertools.groupby(enumerate(epochs), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in group]
        parts.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}")
    return ", ".join(parts)


def lost_figures(run: RunDir, history: list[dict[str, Any]], epochs: int) -> str | None:
    """A sentence if figures of epochs are lost, without its full stop; None if all are there."""
    lost = without_figures(run, history, epochs)
    if not lost:
        return None
    which = f"epoch{'s' * (len(lost) > 1)} {spans(lost)}"
    return f"{run.history_path} has no figures of {which}, so no rule can select {'them' if len(lost) > 1 else 'it'}"
