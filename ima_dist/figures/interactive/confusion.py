"""True against predicted class, without noise and under attack."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ima_dist.figures.interactive.style import style, text, titled

#: With more classes the cells are too small to be read.
MOST_CLASSES = 30


def confusion_figure(tables: Sequence[tuple[str, np.ndarray]], names: Sequence[str]) -> go.Figure:
    """Heat maps beside one another. tables: heading, and counts (K, K) by true and predicted class. names: K names."""
    columns = len(tables)
    fig = make_subplots(rows=1, cols=columns, subplot_titles=[text(title) for title, _ in tables], shared_yaxes=True)
    labels = [text(name) for name in names]
    for i, (_, counts) in enumerate(tables):
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        few = len(names) <= 12
        fig.add_trace(
            go.Heatmap(
                z=shares.tolist(),
                x=labels,
                y=labels,
                text=counts.tolist(),
                texttemplate="%{text}" if few else None,
                hovertemplate="true %{y}, predicted %{x}: %{text} samples, %{z:.1%} of the class<extra></extra>",
                zmin=0,
                zmax=1,
                colorscale=[[0, "#ffffff"], [1, "#0072B2"]],
                showscale=i == columns - 1,
                colorbar={"title": {"text": "share of<br>the class"}, "thickness": 12},
            ),
            row=1,
            col=i + 1,
        )
    style(fig, 180 + max(180, 30 * len(names)), margin={"l": 90, "r": 20, "t": 40, "b": 90})
    fig.update_xaxes(title=titled("predicted class"), automargin=True, type="category", showgrid=False)
    fig.update_yaxes(type="category", autorange="reversed", showgrid=False, automargin=True)
    fig.update_yaxes(title=titled("true class"), col=1)
    return fig
