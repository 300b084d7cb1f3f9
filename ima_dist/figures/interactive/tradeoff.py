"""Clean against robust accuracy, and the options behind them."""

import itertools
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ima_dist.figures.interactive.style import COLOURS, SYMBOLS, axis, figure, text

Interval = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """A model: two accuracies with their 95 % intervals. group: models of one colour and symbol, say of one method."""

    name: str
    group: str
    clean: float
    clean_interval: Interval
    robust: float
    robust_interval: Interval


def tradeoff_figure(points: list[Point], pareto: list[int], what: str) -> go.Figure:
    """One point per model. pareto: indices of the points that a line joins, the front. what: title of the y axis."""
    front = sorted(pareto, key=lambda i: (points[i].clean, -points[i].robust))
    x, y = [points[i].clean for i in front], [points[i].robust for i in front]
    line, ring = {"color": "#111", "width": 1, "shape": "vh"}, {"symbol": "circle-open", "size": 17, "color": "#111"}
    joined = {"mode": "lines+markers", "line": line, "marker": ring, "hoverinfo": "skip"}
    traces = [go.Scatter(x=x, y=y, name="Pareto front", **joined)]
    for i, group in enumerate(dict.fromkeys(p.group for p in points)):
        own = [p for p in points if p.group == group]
        x, y = [p.clean for p in own], [p.robust for p in own]
        traces.append(
            go.Scatter(
                x=x,
                y=y,
                error_x=_bars(x, [p.clean_interval for p in own]),
                error_y=_bars(y, [p.robust_interval for p in own]),
                mode="markers",
                name=text(group),
                text=[text(p.name) for p in own],
                hovertemplate="%{text}<br>clean accuracy %{x:.4f}<br>robust accuracy %{y:.4f}<extra></extra>",
                marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 9, "color": COLOURS[i % len(COLOURS)]},
            )
        )
    return figure(traces, height=520, xaxis=axis("clean accuracy"), yaxis=axis(text(what)))


def parallel_figure(columns: dict[str, list[float | str | None]], colour_by: str) -> go.Figure:
    """Parallel coordinates: one axis per column, one line per row. Numbers are placed by size, texts in their order."""
    dimensions: list[dict[str, object]] = []
    for name, values in columns.items():
        if all(isinstance(v, int | float) for v in values):
            dimensions.append({"label": text(name), "values": values})
        else:
            names = sorted({"not set" if v is None else str(v) for v in values})
            places = [names.index("not set" if v is None else str(v)) for v in values]
            ticks = {"tickvals": list(range(len(names))), "ticktext": [text(n[:24]) for n in names]}
            dimensions.append({"label": text(name), "values": places, **ticks})
    shade = {"color": columns[colour_by], "colorscale": "Viridis", "showscale": True, "colorbar": {"title": colour_by}}
    line = shade if all(isinstance(v, int | float) for v in columns[colour_by]) else {"color": COLOURS[0]}
    return figure(
        [go.Parcoords(dimensions=dimensions, line=line)], height=440, margin={"l": 90, "r": 60, "t": 80, "b": 30}
    )


def differing(rows: list[dict[str, Any]], apart: tuple[str, ...]) -> list[str]:
    """The names whose values differ between any two rows, without those in ``apart``."""
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    return [n for n in names if n not in apart and len({repr(row.get(n)) for row in rows}) > 1]


def _bars(values: list[float], intervals: list[Interval]) -> dict[str, object]:
    above = [high - v for v, (_, high) in zip(values, intervals, strict=True)]
    below = [v - low for v, (low, _) in zip(values, intervals, strict=True)]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1, "width": 3}
