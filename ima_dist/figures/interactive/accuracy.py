"""Accuracy against noise level (Figs. 6 to 9 and 13)."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from ima_dist.figures.interactive.style import AXIS, colour, dash, faint, figure, symbol, text
from ima_dist.results.text import NORM_SIGN


@dataclass(frozen=True)
class Series:
    """One line. low, high: its 95 % interval at each level. paper: noise level -> the paper's accuracy, or {}."""

    name: str
    noise: list[float]
    accuracy: list[float]
    low: list[float]
    high: list[float]
    paper: dict[float, float]


def accuracy_figure(series: list[Series], norms: list[str]) -> go.Figure:
    """A line and its band for each series; the paper's row dotted with crosses."""
    traces = []
    for i, s in enumerate(series):
        traces.append(
            go.Scatter(
                x=[*s.noise, *reversed(s.noise)],
                y=[*s.high, *reversed(s.low)],
                mode="lines",
                fill="toself",
                fillcolor=faint(colour(i), 0.15),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=str(i),
                name=f"{text(s.name)}, 95 % interval",
            )
        )
        traces.append(
            go.Scatter(
                x=s.noise,
                y=s.accuracy,
                mode="lines+markers",
                name=text(s.name),
                legendgroup=str(i),
                line={"color": colour(i), "dash": dash(i)},
                marker={"symbol": symbol(i), "size": 8},
            )
        )
        if s.paper:
            levels = sorted(s.paper)
            traces.append(
                go.Scatter(
                    x=levels,
                    y=[s.paper[x] for x in levels],
                    mode="lines+markers",
                    name="the paper's, in the same colour",
                    showlegend=not any(earlier.paper for earlier in series[:i]),
                    legendgroup=str(i),
                    line={"color": colour(i), "dash": "dot", "width": 1.5},
                    marker={"symbol": "x-thin-open", "size": 7},
                )
            )
    unit = ", ".join(NORM_SIGN.get(n, n) for n in norms)
    return figure(
        traces,
        height=420 + 20 * len(series),
        xaxis={**AXIS, "title": {"text": f"noise level ({unit})"}},
        yaxis={**AXIS, "title": {"text": "accuracy on the test set"}, "range": [-0.02, 1.02]},
    )
