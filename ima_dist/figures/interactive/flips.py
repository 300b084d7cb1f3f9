"""At which noise level test samples are misclassified."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ima_dist.figures.interactive.style import COLOURS, SYMBOLS, axis, colour, faint, figure, text
from ima_dist.rundir.curves import format_noise

_SURVIVES = "never"
_MOST_POINTS = 4000


def _places(levels: np.ndarray) -> list[str]:
    return [*map(format_noise, levels.tolist()), _SURVIVES]


def lost_figure(lost: np.ndarray, label: np.ndarray, levels: np.ndarray, names: Sequence[str]) -> go.Figure:
    """Samples by the level at which they are lost, stacked by class. lost, label: (N,). names: of the classes."""
    bins = [*levels.tolist(), np.inf]
    traces = []
    for i, number in enumerate(np.unique(label).tolist()):
        own = lost[label == number]
        counts = [int((own == level).sum()) for level in bins]
        traces.append(go.Bar(x=_places(levels), y=counts, name=text(names[number]), marker={"color": _shade(i)}))
    return figure(
        traces,
        height=360,
        barmode="stack",
        xaxis=axis("smallest noise level ε at which a sample is misclassified", type="category"),
        yaxis=axis("test samples", rangemode="tozero"),
    )


def _shade(i: int) -> str:
    """Past the last colour they repeat, fainter."""
    return colour(i) if i < len(COLOURS) else faint(colour(i), 0.45)


def confidence_figure(
    confidence: np.ndarray, lost: np.ndarray, label: np.ndarray, levels: np.ndarray, names: Sequence[str]
) -> go.Figure:
    """How sure the network is without noise against the level at which a sample is lost; a point for each sample.

    confidence, lost, label: (N,). Points of one level are spread a little, so that they do not hide one another.
    """
    bins = {level: place for place, level in enumerate([*levels.tolist(), np.inf])}
    spread = ((np.arange(len(lost)) * 0.618034) % 1 - 0.5) * 0.5
    x = np.array([bins[level] for level in lost.tolist()]) + spread
    traces = []
    for i, number in enumerate(np.unique(label).tolist()):
        own = np.flatnonzero(label == number)[:_MOST_POINTS]
        marker = {"size": 5, "color": colour(i), "symbol": SYMBOLS[i % len(SYMBOLS)], "opacity": 0.7}
        traces.append(go.Scatter(x=x[own], y=confidence[own], mode="markers", name=text(names[number]), marker=marker))
    ticks = {"tickvals": list(range(len(bins))), "ticktext": _places(levels)}
    return figure(
        traces,
        height=380,
        xaxis=axis("smallest noise level ε at which a sample is misclassified", **ticks),
        yaxis=axis("margin of probability, without noise", range=[-1.05, 1.05]),
    )
