"""Margins of the training samples (Figs. 9 and 14)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ima_dist.figures.interactive.images import image_grid
from ima_dist.figures.interactive.style import COLOURS, axis, epoch_axis, figure, in_unit_range, looks, text
from ima_dist.results.margin_audit import TOLERANCE
from ima_dist.results.margin_bins import bin_edges, joined
from ima_dist.results.text import NORM_SIGN, percents

Names = Sequence[str] | np.ndarray  # of the classes


def histogram_figure(
    history: list[dict[str, Any]],
    eps_max: float,
    norm: str,
    epoch: int,
    slider: bool = False,
    step: float | None = None,
) -> Any:
    """Counts after ``epoch``, from 0 to ε_max or as far as margins go; the mean and ε_max, if it bounds them, as lines.

    ``history``: rows with margin_histogram. ``slider``: give the figure a slider over all epochs. ``step``: Δε, whose
    multiples lie within bars. Raises KeyError if the epoch is not there.
    """
    rows = {row["epoch"]: row for row in history}
    fine = bin_edges(max(len(row["margin_histogram"]) for row in rows.values()), eps_max)
    places = joined(len(fine) - 1, eps_max, step)
    edges = fine[places]
    widths, centres = np.diff(edges).tolist(), ((edges[1:] + edges[:-1]) / 2).tolist()
    bars = {number: _heights(row["margin_histogram"], places) for number, row in rows.items()}
    counts, mean = bars[epoch], rows[epoch]["margin_mean"]
    dashed = {"color": COLOURS[1], "width": 2, "dash": "dash"}
    said = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges.tolist())]
    look = {"marker": {"color": COLOURS[0]}, "hovertemplate": "margin %{customdata}: %{y} samples<extra></extra>"}
    fig = figure(
        [
            go.Bar(x=centres[: len(counts)], y=counts, width=widths, customdata=said, name="training samples", **look),
            go.Scatter(x=[mean, mean], y=[0, max(counts)], mode="lines", line=dashed, name="mean margin"),
        ],
        height=460 if slider else 400,
        xaxis=axis(f"margin ({NORM_SIGN.get(norm, norm)})", range=[0, edges[-1]]),
        yaxis=axis("training samples", rangemode="tozero"),
        bargap=0,
    )
    if rows[epoch].get("share_at_max", 0.0) is not None:
        place = {"annotation_text": f"ε_max = {eps_max:g}", "annotation_position": "top left"}
        fig.add_vline(x=eps_max, line={"color": "#111", "dash": "dot", "width": 2}, **place)
    if slider:
        steps = []
        for number, row in rows.items():
            heights = bars[number]
            data = {"x": [centres[: len(heights)], [row["margin_mean"]] * 2], "y": [heights, [0, max(heights)]]}
            steps.append({"method": "restyle", "label": str(number), "args": [data]})
        shown = {"active": list(rows).index(epoch), "currentvalue": {"prefix": "epoch "}, "pad": {"t": 50}}
        fig.update_layout(sliders=[{"steps": steps, **shown}])
    return fig


def _heights(counts: Sequence[int], places: Sequence[int]) -> list[int]:
    """The counts of bins whose edges are those at ``places``."""
    ends = [*(place for place in places if place < len(counts)), len(counts)]
    return [sum(counts[low:high]) for low, high in itertools.pairwise(ends)]


def share_figure(history: list[dict[str, Any]], eps_max: float, epoch: int) -> go.Figure:
    """Share of the samples at ε_max or above, and the mean margin as a share of ε_max, by epoch.

    Without the shares if ε_max bounds no margin.
    """
    epochs = [row["epoch"] for row in history]
    shares, means = [row["share_at_max"] for row in history], [row["margin_mean"] / eps_max for row in history]
    curves = [
        (shares, "share of samples at ε_max or above", {"color": COLOURS[0]}, "circle"),
        (means, "mean margin / ε_max", {"color": COLOURS[1], "dash": "dash"}, "square"),
    ]
    traces = [
        go.Scatter(x=epochs, y=y, name=name, mode="lines+markers", line=line, marker={"symbol": symbol})
        for y, name, line, symbol in curves
        if None not in y
    ]
    fig = figure(
        traces,
        height=360,
        xaxis=epoch_axis(max(epochs)),
        yaxis=axis("share of samples or of ε_max", range=[-0.02, 0.02 + max(1, *means)]),
    )
    fig.add_vline(x=epoch, line={"color": "#111", "dash": "dot", "width": 1})
    return fig


def class_figure(label: np.ndarray, margin: np.ndarray, names: Names, norm: str) -> go.Figure:
    """One box per class: quartiles, and whiskers from the 5 % to the 95 % quantile. label, margin: (N,)."""
    classes = np.unique(label).tolist()
    quantiles = np.array([np.quantile(margin[label == n], [0.05, 0.25, 0.5, 0.75, 0.95]) for n in classes]).T.tolist()
    boxes = dict(zip(("lowerfence", "q1", "median", "q3", "upperfence"), quantiles, strict=True))
    x = [text(class_name(names, n)) for n in classes]
    return figure(
        [go.Box(x=x, **boxes, marker={"color": COLOURS[0]}, name="margins", showlegend=False)],
        height=380,
        xaxis=axis("class", type="category"),
        yaxis=axis(f"margin ({NORM_SIGN.get(norm, norm)})", rangemode="tozero"),
    )


def extremes_figure(arrays: dict[str, np.ndarray], number: int) -> go.Figure:
    """The training samples of class ``number`` with the smallest margins (above) and the largest (below).

    ``arrays``: as in examples/extremes.npz. Images are shown as such, two-dimensional samples as points.
    """
    if arrays["sample"].ndim == 2:
        return _points(arrays, number)
    own = arrays["label"] == number
    rows = [
        [
            (
                in_unit_range(arrays["sample"][i], arrays["sample"]),
                f"margin {arrays['margin'][i]:.4g}<br>sample {arrays['index'][i]}",
                False,
            )
            for i in np.flatnonzero(own & (arrays["largest"] == large))
        ]
        for large in (False, True)
    ]
    shown = [(row, name) for row, name in zip(rows, ("smallest margins", "largest margins"), strict=True) if row]
    return image_grid([row for row, _ in shown], [name for _, name in shown])


def _points(arrays: dict[str, np.ndarray], number: int) -> go.Figure:
    traces = []
    for large, sign, name in ((False, "x-thin-open", "smallest margins"), (True, "circle", "largest margins")):
        chosen = (arrays["label"] == number) & (arrays["largest"] == large)
        x, y = arrays["sample"][chosen].T
        own = zip(arrays["index"][chosen], arrays["margin"][chosen], strict=True)
        about = {"text": [f"sample {i}, margin {m:.4g}" for i, m in own], "hovertemplate": "%{text}<extra></extra>"}
        marker = {"symbol": sign, "size": 11, "color": COLOURS[large]}
        traces.append(go.Scatter(x=x, y=y, mode="markers", name=name, marker=marker, **about))
    return figure(traces, height=420, xaxis=axis("first coordinate"), yaxis=axis("second coordinate", scaleanchor="x"))


def audit_figure(margin: np.ndarray, distance: np.ndarray, norm: str) -> go.Figure:
    """Stored margin against the audited distance of the same samples (N,); above the line it is an over-estimate."""
    top = float(max(margin.max(), np.quantile(distance, 0.99)))
    over = margin > (1 + TOLERANCE) * distance
    traces = []
    for chosen, shade, symbol, name in (
        (~over, COLOURS[0], "circle-open", "within"),
        (over, COLOURS[1], "x-thin-open", f"over-estimated by more than {percents(TOLERANCE, 0)}"),
    ):
        marker = {"symbol": symbol, "size": 7, "color": shade}
        traces.append(go.Scatter(x=distance[chosen], y=margin[chosen], mode="markers", name=name, marker=marker))
    dashed = {"color": "#111", "dash": "dash"}
    traces.append(go.Scatter(x=[0, top], y=[0, top], mode="lines", name="margin = distance", line=dashed))
    sign = NORM_SIGN.get(norm, norm)
    return figure(
        traces,
        height=460,
        xaxis=axis(f"audited distance ({sign})", range=[0, 1.05 * top]),
        yaxis=axis(f"stored margin ({sign})", range=[0, 1.05 * top]),
    )


def class_name(names: Names, number: int) -> str:
    """Name of a class, or its number if there are fewer names; -1 stands for logits that are not finite."""
    if number < 0:
        return "NaN"
    return str(names[number]) if number < len(names) else str(number)


@dataclass(frozen=True)
class Counted:
    """The margins of a run: the counts of ``margin_histogram`` after ``epoch``, in bins from 0 on."""

    name: str
    counts: Sequence[int]
    eps_max: float
    epoch: int
    method: str = ""


def compared_figure(runs: list[Counted], norm: str) -> go.Figure:
    """For each run the share of its samples with at least that margin."""
    traces = []
    for run, look in zip(runs, looks(run.method for run in runs), strict=True):
        counts = np.asarray(run.counts, float)
        edges = bin_edges(len(counts), run.eps_max)
        total = counts.sum() or 1.0
        shares = np.append(counts[::-1].cumsum()[::-1] / total, 0.0)
        line = {"color": look.colour, "dash": look.dash}
        name = f"{text(run.name)}, epoch {run.epoch}"
        traces.append(go.Scatter(x=edges.tolist(), y=shares.tolist(), mode="lines", name=name, line=line))
    return figure(
        traces,
        height=380 + 20 * len(runs),
        xaxis=axis(f"margin ({NORM_SIGN.get(norm, norm)})", rangemode="tozero"),
        yaxis=axis("share with at least that margin", range=[-0.02, 1.02]),
    )
