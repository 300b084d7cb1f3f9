"""Training and validation accuracy by epoch, and the epoch that a threshold selects (Figs. 11, 12 and 15)."""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ima_dist.figures.interactive.style import AXIS, Look, epoch_axis, looks, style, text, titled

_BESIDE = 0.018  # of the width of the figure, between the stars of one epoch


@dataclass(frozen=True)
class Trained:
    """A run. history: rows of history.parquet. selected: the epoch that the threshold selects, or None. method: what
    decides on its colour."""

    name: str
    history: list[dict[str, Any]]
    selected: int | None
    method: str = ""


def training_figure(runs: list[Trained], threshold: float | None) -> go.Figure:
    """Above accuracy, validation solid and training dotted, with a star at the selected epoch; below the loss."""
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.06)
    every = looks(run.method for run in runs)
    for i, (run, look) in enumerate(zip(runs, every, strict=True)):
        # The first run is the widest, so that it shows behind another that coincides with it.
        _lines(fig, run, look, 2 + min(6, 2 * (len(runs) - 1 - i)), i)
    last = max((row["epoch"] for run in runs for row in run.history), default=0)
    for i, (run, look) in enumerate(zip(runs, every, strict=True)):
        _star(fig, runs, i, run, look, last)
    style(fig, 560 + 20 * len(runs))
    if threshold is not None:
        fig.add_hline(
            y=threshold,
            line={"color": "#111", "dash": "dash", "width": 1},
            annotation_text=f"threshold {threshold:g}",
            annotation_position="bottom left",
            row=1,
            col=1,
        )
    epochs = epoch_axis(last)
    fig.update_xaxes(**{**epochs, "title": None})
    fig.update_yaxes(**AXIS)
    fig.update_xaxes(title=epochs["title"], row=2, col=1)
    fig.update_yaxes(title=titled("clean accuracy"), range=_range(runs, threshold), row=1, col=1)
    fig.update_yaxes(title=titled("training loss"), row=2, col=1)
    return fig


def _lines(fig: go.Figure, run: Trained, look: Look, width: int, number: int) -> None:
    for key, what, dashed, row in (
        ("val_accuracy", "validation", "solid", 1),
        ("train_accuracy", "training", "dot", 1),
        ("train_loss", "training loss", "solid", 2),
    ):
        known = [r for r in run.history if r.get(key) is not None]
        if known:
            x, y = [r["epoch"] for r in known], [r[key] for r in known]
            name = f"{text(run.name)}: {what}" if run.name else what
            marker = {"symbol": look.symbol, "size": 5 if len(known) < 60 else 1}
            line = {"color": look.colour, "dash": dashed, "width": width}
            legend = {"legendgroup": f"{number} {what}", "showlegend": row == 1}
            drawn = {"mode": "lines+markers", "line": line, "marker": marker}
            fig.add_trace(go.Scatter(x=x, y=y, name=name, **drawn, **legend), row=row, col=1)


def _star(fig: go.Figure, runs: list[Trained], i: int, run: Trained, look: Look, last: int) -> None:
    """The selected epoch. The stars of one epoch stand side by side, and have one label."""
    at = [r for r in run.history if r["epoch"] == run.selected and r.get("val_accuracy") is not None]
    if not at or run.selected is None:
        return
    same = [j for j, other in enumerate(runs) if other.selected == run.selected]
    said = [f"epoch {run.selected}"] if i == same[0] else None
    star = {"symbol": "star", "size": 16, "color": look.colour, "line": {"color": "#111", "width": 1}}
    place = run.selected + _BESIDE * max(1, last - 1) * (same.index(i) - (len(same) - 1) / 2)
    shown = {"mode": "markers+text", "textposition": "top center", "marker": star}
    hover = {"hovertemplate": f"epoch {run.selected}, validation accuracy %{{y:.3f}}<extra></extra>"}
    name = f"{text(run.name)}: selected"
    fig.add_trace(
        go.Scatter(x=[place], y=[at[0]["val_accuracy"]], name=name, text=said, **shown, **hover), row=1, col=1
    )


def _range(runs: list[Trained], threshold: float | None) -> list[float]:
    """From a little below the lowest accuracy to a little above the highest one."""
    keys = ("val_accuracy", "train_accuracy")
    seen = [row[key] for run in runs for row in run.history for key in keys if row.get(key) is not None]
    seen += [] if threshold is None or not seen else [min(max(threshold, 0.0), 1.0)]
    low, high = min(seen, default=0.0), max(seen, default=1.0)
    room = max(0.02, 0.12 * (high - low))
    return [max(-0.02, low - room), high + room]
