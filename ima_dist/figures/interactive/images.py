"""Rows of small images with text above each."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ima_dist.figures.interactive.style import COLOURS, channels_first, png_source, style, text

Cell = tuple[np.ndarray, str, bool]  # image (C, H, W) or (H, W, C) in [0, 1], text above it, True if it is marked


def image_grid(rows: list[list[Cell]], names: list[str]) -> go.Figure:
    """One image per cell. A marked one has a thick frame, and its text should say why."""
    columns = max((len(row) for row in rows), default=0) or 1
    titles = [row[j][1] if j < len(row) else "" for row in rows for j in range(columns)]
    fig = make_subplots(
        rows=len(rows),
        cols=columns,
        subplot_titles=titles,
        row_titles=[text(name) for name in names],
        horizontal_spacing=0.01,
        vertical_spacing=min(0.16, 0.5 / len(rows)),
    )
    for i, row in enumerate(rows):
        for j, (pixels, _, marked) in enumerate(row):
            pixels = channels_first(pixels)
            place = {"row": i + 1, "col": j + 1}
            fig.add_trace(go.Image(source=png_source(pixels), hoverinfo="skip"), **place)
            height, width = pixels.shape[1:]
            edge = {"color": COLOURS[1], "width": 4} if marked else {"color": "#888", "width": 1}
            corners = {"x0": -0.5, "y0": -0.5, "x1": width - 0.5, "y1": height - 0.5}
            fig.add_shape(type="rect", **corners, line=edge, fillcolor="rgba(0,0,0,0)", **place)
    style(fig, 60 + 170 * len(rows), margin={"l": 10, "r": 50, "t": 60, "b": 10})
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    fig.update_annotations(font={"size": 12})
    return fig
