"""Reliability diagram: are predictions as often right as the network is sure of them?"""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from ima_dist.figures.interactive.style import axis, colour, dash, figure, symbol, text
from ima_dist.results.performance import Bin


def reliability_figure(series: Mapping[str, Sequence[Bin]]) -> go.Figure:
    """Accuracy against mean confidence, a point for each bin, with 95 % intervals; the diagonal is calibrated."""
    line = {"color": "#666", "dash": "dot", "width": 1}
    traces = [go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, name="calibrated", hoverinfo="skip")]
    for i, (name, bins) in enumerate(series.items()):
        reach = {
            "type": "data",
            "symmetric": False,
            "array": [b.interval[1] - b.accuracy for b in bins],
            "arrayminus": [b.accuracy - b.interval[0] for b in bins],
            "thickness": 1,
        }
        look = {"line": {"color": colour(i), "dash": dash(i)}, "marker": {"symbol": symbol(i), "size": 8}}
        traces.append(
            go.Scatter(
                x=[b.confidence for b in bins],
                y=[b.accuracy for b in bins],
                error_y=reach,
                text=[f"{b.samples} samples" for b in bins],
                mode="lines+markers",
                name=text(name),
                **look,
            )
        )
    return figure(
        traces,
        height=440 + 10 * len(series),
        xaxis=axis("mean largest probability of the samples in a bin", range=[-0.02, 1.02]),
        yaxis=axis("share of them that is right", range=[-0.02, 1.02]),
    )
