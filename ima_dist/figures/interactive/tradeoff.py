"""Clean against robust accuracy, and the options behind them."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ima_dist.figures.interactive.style import COLOURS, axis, faint, figure, looks, text

Interval = tuple[float, float]
#: What a caption says of the figure's bars.
BARS = "Bars: 95 % intervals; points of equal clean accuracy stand a little apart."
_APART = 0.007  # of the width of the figure, between points that would cover each other's bars
_MOST_TICKS = 6


@dataclass(frozen=True)
class Point:
    """A model: two accuracies with their 95 % intervals. group: models of one colour and symbol, which is that of
    ``method`` or, without one, of the group."""

    name: str
    group: str
    clean: float
    clean_interval: Interval
    robust: float
    robust_interval: Interval
    method: str = ""


def tradeoff_figure(points: list[Point], pareto: list[int], what: str) -> go.Figure:
    """One point per model. pareto: indices of the points that a line joins, the front. what: title of the y axis.

    Points of equal clean accuracy stand a little apart, so that their bars do not cover one another.
    """
    places = _apart(points)
    front = sorted(pareto, key=lambda i: (points[i].clean, -points[i].robust))
    line, ring = {"color": "#111", "width": 1, "shape": "vh"}, {"symbol": "circle-open", "size": 17, "color": "#111"}
    joined = {"mode": "lines+markers", "line": line, "marker": ring, "hoverinfo": "skip"}
    traces = [go.Scatter(x=[places[i] for i in front], y=[points[i].robust for i in front], name="Pareto front")]
    traces[0].update(joined)
    groups = {p.group: p.method or p.group for p in points}
    for group, look in zip(groups, looks(groups.values()), strict=True):
        own = [i for i, p in enumerate(points) if p.group == group]
        x, y = [places[i] for i in own], [points[i].robust for i in own]
        pale = faint(look.colour, 0.5)
        traces.append(
            go.Scatter(
                x=x,
                y=y,
                error_x=_bars(x, [points[i].clean_interval for i in own], pale),
                error_y=_bars(y, [points[i].robust_interval for i in own], pale),
                mode="markers",
                name=text(group),
                text=[text(points[i].name) for i in own],
                customdata=[points[i].clean for i in own],
                hovertemplate="%{text}<br>clean accuracy %{customdata:.3f}<br>robust accuracy %{y:.3f}<extra></extra>",
                marker={"symbol": look.symbol, "size": 9, "color": look.colour},
            )
        )
    return figure(traces, height=520, xaxis=axis("clean accuracy"), yaxis=axis(text(what)))


def _apart(points: list[Point]) -> list[float]:
    """Where each point stands on the x axis: at its clean accuracy, or near it beside those that share it; never
    beyond 1."""
    ends = [end for p in points for end in p.clean_interval]
    step = _APART * (max(ends) - min(ends)) if ends else 0.0
    count = Counter(p.clean for p in points)
    seen: Counter[float] = Counter()
    places = []
    for p in points:
        reach = step * (count[p.clean] - 1)
        first = min(p.clean - reach / 2, 1 - reach)
        places.append(first + step * seen[p.clean])
        seen[p.clean] += 1
    return places


def parallel_figure(columns: dict[str, list[float | str | None]], methods: Sequence[str]) -> go.Figure:
    """Parallel coordinates: one axis per column, one line per row. Numbers are placed by size, texts in their order.

    methods: of the rows, which have the colours of their methods.
    """
    dimensions: list[dict[str, object]] = []
    for name, values in columns.items():
        numbers = [v for v in values if isinstance(v, int | float)]
        if len(numbers) == len(values):
            dimensions.append({"label": text(name), "values": values, **_ticks(numbers)})
        else:
            names = sorted({"not set" if v is None else str(v) for v in values})
            places = [names.index("not set" if v is None else str(v)) for v in values]
            ticks = {"tickvals": list(range(len(names))), "ticktext": [text(n[:24]) for n in names]}
            dimensions.append({"label": text(name), "values": places, **ticks})
    seen = list(dict.fromkeys(methods))
    shades, last = [look.colour for look in looks(seen)], max(1, len(seen) - 1)
    line: dict[str, object] = {"color": COLOURS[0]}
    if len(seen) > 1:
        scale = [[i / last, shade] for i, shade in enumerate(shades)]
        line = {"color": [seen.index(m) for m in methods], "colorscale": scale, "cmin": 0, "cmax": last}
    # Plotly writes the ends of an axis beside its ticks, which already say them.
    lines = go.Parcoords(dimensions=dimensions, line=line, rangefont={"color": "rgba(0,0,0,0)", "size": 1})
    return figure([lines], height=440, margin={"l": 90, "r": 60, "t": 60, "b": 30})


def _ticks(values: Sequence[float]) -> dict[str, object]:
    """Ticks at the values themselves where there is room, the least and the largest in any case."""
    known = sorted(set(values))
    room = (known[-1] - known[0]) / (2 * _MOST_TICKS)
    kept = [known[0]]
    for value in known[1:-1]:
        if value - kept[-1] >= room and known[-1] - value >= room:
            kept.append(value)
    kept += [known[-1]] if len(known) > 1 else []
    return {"tickvals": kept, "ticktext": [f"{value:.4g}" for value in kept]}


def differing(rows: list[dict[str, Any]], apart: tuple[str, ...]) -> list[str]:
    """The names whose values differ between any two rows, without those in ``apart``."""
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    return [n for n in names if n not in apart and len({repr(row.get(n)) for row in rows}) > 1]


def _bars(values: list[float], intervals: list[Interval], colour: str) -> dict[str, object]:
    above = [max(0.0, high - v) for v, (_, high) in zip(values, intervals, strict=True)]
    below = [max(0.0, v - low) for v, (low, _) in zip(values, intervals, strict=True)]
    look = {"thickness": 1.5, "width": 3, "color": colour}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **look}
