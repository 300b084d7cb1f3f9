"""Accuracy against noise level (Figs. 6 to 9 and 13)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ima_dist.figures.interactive.style import Look, axis, colour, dash, faint, figure, looks, text
from ima_dist.results.text import NORM_SIGN


@dataclass(frozen=True)
class Series:
    """One line. low, high: its 95 % interval at each level. paper: noise level -> the paper's accuracy, or {}.

    method: what decides on the colour.
    """

    name: str
    noise: list[float]
    accuracy: list[float]
    low: list[float]
    high: list[float]
    paper: dict[float, float]
    method: str = ""


def accuracy_figure(series: list[Series], norms: list[str]) -> go.Figure:
    """A line and its band for each series; the paper's row dotted with crosses."""
    traces = []
    first_paper = next((i for i, s in enumerate(series) if s.paper), None)
    for i, (s, look) in enumerate(zip(series, looks(s.method for s in series), strict=True)):
        traces += [_band(s, look), _line(s, look)]
        if s.paper:
            traces.append(_paper(s, look, in_legend=i == first_paper))
    unit = ", ".join(NORM_SIGN.get(n, n) for n in norms)
    return figure(
        traces,
        height=420 + 20 * len(series),
        xaxis=axis(f"noise level ε ({unit})"),
        yaxis=axis("accuracy on the test set", range=[-0.02, 1.02]),
    )


def certified_figure(curves: list[tuple[str, Any, Any]]) -> go.Figure:
    """Certified accuracy of smoothed classifiers by radius as steps: name, radii (M,), accuracy up to each (M,)."""
    traces = []
    for i, (name, radii, accuracy) in enumerate(curves):
        look = {"mode": "lines", "line": {"color": colour(i), "dash": dash(i), "shape": "vh"}}
        traces.append(go.Scatter(x=radii, y=accuracy, name=text(name), **look))
    return figure(
        traces,
        height=420 + 20 * len(curves),
        xaxis=axis(f"certified radius ({NORM_SIGN['l2']})"),
        yaxis=axis("certified accuracy of the smoothed classifier", range=[-0.02, 1.02]),
    )


def distance_figure(curves: list[tuple[str, Any, Any]], norms: list[str], drawn: Sequence[Look] = ()) -> go.Figure:
    """Accuracy by noise level as steps, from each sample's distance: name, levels (M,), accuracy from there on (M,).

    drawn: how each is drawn.
    """
    traces = []
    for (name, levels, accuracy), own in zip(curves, drawn or looks("" for _ in curves), strict=True):
        look = {"mode": "lines", "line": {"color": own.colour, "dash": own.dash, "shape": "hv"}}
        traces.append(go.Scatter(x=levels, y=accuracy, name=text(name), **look))
    unit = ", ".join(NORM_SIGN.get(n, n) for n in norms)
    return figure(
        traces,
        height=420 + 20 * len(curves),
        xaxis=axis(f"noise level ε ({unit})"),
        yaxis=axis("accuracy on the test set", range=[-0.02, 1.02]),
    )


def _band(s: Series, own: Look) -> go.Scatter:
    x, y = [*s.noise, *reversed(s.noise)], [*s.high, *reversed(s.low)]
    look = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": faint(own.colour, 0.15)}
    name = f"{text(s.name)}, 95 % interval"
    return go.Scatter(x=x, y=y, **look, name=name, hoverinfo="skip", showlegend=False, legendgroup=s.name)


def _line(s: Series, own: Look) -> go.Scatter:
    look = {"line": {"color": own.colour, "dash": own.dash}, "marker": {"symbol": own.symbol, "size": 8}}
    return go.Scatter(x=s.noise, y=s.accuracy, mode="lines+markers", name=text(s.name), legendgroup=s.name, **look)


def _paper(s: Series, own: Look, in_legend: bool) -> go.Scatter:
    line, marker = {"color": own.colour, "dash": "dot", "width": 1.5}, {"symbol": "x-thin-open", "size": 7}
    look = {"mode": "lines+markers", "line": line, "marker": marker}
    x, y = zip(*sorted(s.paper.items()), strict=True)
    name = "the paper's, in the same colour"
    return go.Scatter(x=x, y=y, name=name, showlegend=in_legend, legendgroup=s.name, **look)
