"""Which option matters."""

import plotly.graph_objects as go

from ima_dist.figures.interactive.style import COLOURS, axis, figure, text


def importance_figure(shares: dict[str, float], known: bool = True) -> go.Figure:
    """A bar for each option, the most important one on top; grey if it is not known that any of them matters."""
    names = [text(name) for name in reversed(shares)]
    bars = go.Bar(
        x=list(reversed(shares.values())),
        y=names,
        orientation="h",
        marker={"color": COLOURS[0] if known else "#bbb"},
        name="share",
    )
    return figure(
        [bars],
        height=160 + 40 * len(shares),
        xaxis=axis("share of the importance", range=[0, 1]),
        yaxis={"type": "category", "automargin": True, "ticks": "outside", "ticklen": 8, "tickcolor": "white"},
        margin={"l": 120, "r": 20, "t": 20, "b": 60},
    )
