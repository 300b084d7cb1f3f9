"""The style that all figures share. Colours: Okabe and Ito (2008); a symbol or a dash repeats what a colour says."""

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from ima_dist.config.schema import METHODS
from ima_dist.figures.colours import COLOURS

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
_DASHES = ("solid", "dash", "dashdot")
# Further things of one method: how much of black (below 0) or of white is mixed into its colour.
_SHADES = (0.0, -0.45, 0.4, -0.7, 0.6)
_FEW_EPOCHS = 20
AXIS = {"showgrid": True, "gridcolor": "#ddd", "zeroline": False, "linecolor": "#444", "ticks": "outside"}
AXIS |= {"automargin": True}


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def symbol(i: int) -> str:
    """Past the last colour the colours repeat, with hollow symbols."""
    return SYMBOLS[i % len(SYMBOLS)] + ("-open" if i >= len(COLOURS) else "")


def dash(i: int) -> str:
    return _DASHES[i // len(COLOURS) % len(_DASHES)]


@dataclass(frozen=True)
class Look:
    """How a thing is drawn: its colour, the symbol of its points, the dash of its lines."""

    colour: str
    symbol: str
    dash: str


def looks(methods: Iterable[str]) -> list[Look]:
    """A look for each of several things: a method has one colour and symbol in all figures.

    Things of one method differ in shade and dash; whatever is no method of ours goes by its place.
    """
    names = list(methods)
    first = len(METHODS) if any(name in METHODS for name in names) else 0
    before: Counter[str] = Counter()
    found = []
    for name in names:
        key = name if name in METHODS else ""
        number = before[key]
        before[key] += 1
        i = METHODS.index(key) if key else first + number
        shade = _mixed(colour(i), _SHADES[number % len(_SHADES)]) if key else colour(i)
        place = i // len(COLOURS) + (number if key else 0)
        found.append(Look(shade, symbol(i), _DASHES[place % len(_DASHES)]))
    return found


def _mixed(code: str, part: float) -> str:
    """A colour such as #0072B2 with ``part`` of white in it, or of black if it is negative."""
    end = 255 if part > 0 else 0
    levels = (round(level + (end - level) * abs(part)) for level in _levels(code))
    return "#" + "".join(f"{level:02X}" for level in levels)


def _levels(code: str) -> tuple[int, ...]:
    return tuple(int(code[i : i + 2], 16) for i in (1, 3, 5))


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
    return {**AXIS, "title": titled(title), **more}


def titled(title: str) -> dict[str, Any]:
    """The title of an axis, at a distance from its numbers."""
    return {"text": title, "standoff": 12, "font": {"size": 14}}


def epoch_axis(last: int) -> dict[str, Any]:
    """An axis of epochs, which have no fractions."""
    return axis("epoch", dtick=1 if last <= _FEW_EPOCHS else None)


def faint(code: str, alpha: float) -> str:
    """A colour such as #0072B2 with this opacity."""
    red, green, blue = _levels(code)
    return f"rgba({red},{green},{blue},{alpha:g})"


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """An image (C, H, W) or (H, W, C) as (C, H, W); an axis of 1, 3 or 4 is taken for the channels, the first one
    before the last."""
    last = pixels.shape[0] not in (1, 3, 4) and pixels.shape[-1] in (1, 3, 4)
    return np.moveaxis(pixels, -1, 0) if last else pixels


def in_unit_range(pixels: np.ndarray, of: np.ndarray) -> np.ndarray:
    """``pixels`` so that the values of the images ``of`` lie in [0, 1]; unchanged if they already do."""
    low, high = (float(value) for value in (of.min(), of.max())) if of.size else (0.0, 1.0)
    return pixels if low >= 0 and high <= 1 else (pixels.astype(np.float32) - low) / ((high - low) or 1.0)


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
