"""The decision boundary in the plane (Fig. 6)."""

import numpy as np
import plotly.graph_objects as go

from ima_dist.figures.interactive.style import COLOURS, axis, faint, figure

_POINTS = 1500


def boundary_figure(arrays: dict[str, np.ndarray]) -> go.Figure:
    """``arrays``: as in examples/boundary.npz. Shows up to 1500 samples, with one symbol per class."""
    x, y, probability = arrays["grid_x"][::2], arrays["grid_y"][::2], arrays["probability"][::2, ::2]
    first, second = (faint(COLOURS[i], 0.2) for i in (0, 4))
    tints = [[0, first], [0.5, first], [0.5, second], [1, second]]
    shared = {"x": x, "y": y, "showscale": False, "hoverinfo": "skip"}
    line = {
        "contours": {"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"},
        "line": {"color": "#111", "width": 3},
    }
    traces = [
        go.Heatmap(z=(probability > 0.5).astype(np.uint8), zmin=0, zmax=1, colorscale=tints, **shared),
        go.Contour(z=probability.astype(np.float32), name="decision boundary", showlegend=True, **line, **shared),
    ]
    points, labels = arrays["points"][:_POINTS], arrays["labels"][:_POINTS]
    for number, colour, sign in ((0, COLOURS[0], "circle-open"), (1, COLOURS[4], "x-thin-open")):
        own = points[labels == number]
        marker = {"symbol": sign, "size": 4, "color": colour, "line": {"color": colour, "width": 1}}
        traces.append(go.Scatter(x=own[:, 0], y=own[:, 1], mode="markers", name=f"class {number}", marker=marker))
    return figure(
        traces,
        height=560,
        xaxis=axis("first coordinate", constrain="domain"),
        yaxis=axis("second coordinate", scaleanchor="x", constrain="domain"),
    )
