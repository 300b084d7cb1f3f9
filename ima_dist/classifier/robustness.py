"""What ``ima_dist.measure`` has found: accuracies under attack that show themselves."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from ima_dist.config.errors import ConfigError
from ima_dist.config.numbers import level
from ima_dist.results.statistics import wilson_interval, with_intervals
from ima_dist.results.table import robustness_table
from ima_dist.results.text import NORM_SIGN, accuracy
from ima_dist.rundir.curves import Point, Row, attack_rows, format_noise, levels_of, noise_key

if TYPE_CHECKING:
    import plotly.graph_objects as go

_COLUMNS = ("attack", "norm", "noise", "accuracy", "low95", "high95", "samples", "steps", "step_scale", "spsa_samples")


@dataclass(frozen=True, eq=False, repr=False)
class Robustness:
    """The accuracy of a network under attacks. It prints as a table, and shows itself as one in a notebook.

    Attributes:
        points: one per attack, loss and noise level, as the curves in summary.json.
        outcomes: a row per sample, attack, loss and noise level: index, attack, loss, norm, noise, label, prediction
            (−1 where the logits name no class), implied (not attacked at this level, as it has survived a larger one).
        doubts: sentences on why accuracies may be too high, or attacks have failed.
        samples: the number of samples.
    """

    points: tuple[Point, ...]
    outcomes: pd.DataFrame
    doubts: tuple[str, ...]
    samples: int

    def accuracy(self, attack: str, noise: float | str) -> float:
        """The share of the samples that are still classified correctly at a noise level, such as 0.03 or "8/255".

        Raises ConfigError if it was not measured.
        """
        row, eps = self._rows.get(attack, {}), level(noise)
        if not isinstance(eps, int | float) or noise_key(eps) not in row:
            known = ", ".join(f"{name} at {format_noise(known)}" for name, row in self._rows.items() for known in row)
            raise ConfigError(f"{attack} at noise {noise} was not measured, but {known or 'nothing'}.")
        return row[noise_key(eps)].share

    def to_pandas(self) -> pd.DataFrame:
        """A row per attack and noise level, with the 95 % interval of the accuracy (Wilson's) and the protocol."""
        rows = []
        for point in self._shown():
            low, high = wilson_interval(point.share, point.samples)
            rows.append({**point.model_dump(), "low95": low, "high95": high})
        whole = dict.fromkeys(("steps", "spsa_samples"), "Int64")
        return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(whole)

    def plot(self) -> go.Figure:
        """Accuracy by noise level, with 95 % intervals: a figure by Plotly, which a notebook shows."""
        from ima_dist.figures.interactive.accuracy import Series, accuracy_figure

        series = [Series(attack, *with_intervals(row), {}) for attack, row in self._rows.items()]
        return accuracy_figure(series, sorted({point.norm for point in self._shown()}))

    def __repr__(self) -> str:
        table = robustness_table(self.points, None, None, self.samples)
        return "\n".join([table.replace("on the test set ", ""), *(f"Doubtful: {text}" for text in self.doubts)])

    def _repr_html_(self) -> str:
        levels = levels_of(self._rows.values())
        norms = ", ".join(sorted({NORM_SIGN[point.norm] for point in self._shown()}))
        head = "".join(f"<th>{format_noise(level)}</th>" for level in levels)
        rows = "".join(
            f"<tr><th>{html.escape(attack)}</th>{''.join(_cell(row, level) for level in levels)}</tr>"
            for attack, row in self._rows.items()
        )
        doubts = "".join(f"<p><b>Doubtful:</b> {html.escape(text)}</p>" for text in self.doubts)
        return (
            f"<table><caption>Accuracy by noise level ({norms}) on {self.samples:,} samples, with 95 % intervals"
            f"</caption><thead><tr><th>noise</th>{head}</tr></thead><tbody>{rows}</tbody></table>{doubts}"
        )

    @property
    def _rows(self) -> dict[str, Row]:
        return attack_rows(self.points)

    def _shown(self) -> Iterator[Point]:
        return (row[level] for row in self._rows.values() for level in sorted(row))


def _cell(row: Row, level: float) -> str:
    if level not in row:
        return "<td>-</td>"
    low, high = wilson_interval(row[level].share, row[level].samples)
    return f"<td>{accuracy(row[level].accuracy)}<br><small>{low:.3f} to {high:.3f}</small></td>"
