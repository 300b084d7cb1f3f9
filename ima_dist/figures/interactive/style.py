"""The style that all figures share. Colours: Okabe and Ito (2008); a symbol or a dash repeats what a colour says."""

import base64
import html
import io
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from ima_dist.figures.colours import COLOURS

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
_DASHES = ("solid", "dash", "dashdot")
_FEW_EPOCHS = 20
AXIS = {"showgrid": True, "gridcolor": "#ddd", "zeroline": False, "linecolor": "#444", "ticks": "outside"}


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def symbol(i: int) -> str:
    """Past the last colour the colours repeat, with hollow symbols."""
    return SYMBOLS[i % len(SYMBOLS)] + ("-open" if i >= len(COLOURS) else "")


def dash(i: int) -> str:
    return _DASHES[i // len(COLOURS) % len(_DASHES)]


def text(value: object) -> str:
    """Text for Plotly, which reads a subset of HTML in its texts: a run's name must not become markup."""
    return html.escape(str(value), quote=False)


def figure(traces: list[Any], height: int = 440, **layout: Any) -> go.Figure:
    """A figure in our style, as wide as the element that holds it."""
    fig = go.Figure(traces)
    style(fig, height, **layout)
    return fig


def style(fig: go.Figure, height: int, **layout: Any) -> None:
    legend = {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0}
    margin = {"l": 70, "r": 20, "t": 40, "b": 60}
    fig.update_layout(
        template="none",
        height=height,
        font={"family": "sans-serif", "size": 14, "color": "#111"},
        paper_bgcolor="white",
        plot_bgcolor="white",
        **{"legend": legend, "margin": margin, "hovermode": "closest", **layout},
    )


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {**AXIS, "title": {"text": title}, **more}


def epoch_axis(last: int) -> dict[str, Any]:
    """An axis of epochs, which have no fractions."""
    return axis("epoch", dtick=1 if last <= _FEW_EPOCHS else None)


def faint(code: str, alpha: float) -> str:
    """A colour such as #0072B2 with this opacity."""
    red, green, blue = (int(code[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def png_source(pixels: np.ndarray) -> str:
    """An image (C, H, W) in [0, 1] as a data URL; three channels are colours, otherwise only the first is shown."""
    levels = np.round(255 * np.clip(np.nan_to_num(pixels.astype(np.float32)), 0, 1)).astype(np.uint8)
    picture = Image.fromarray(levels.transpose(1, 2, 0) if len(levels) == 3 else levels[0])
    file = io.BytesIO()
    picture.convert("RGB").save(file, format="PNG")
    return png_url(file.getvalue())


def png_url(png: bytes) -> str:
    """A PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
