"""Training and validation accuracy by epoch, and the epoch that a threshold selects (Figs. 11, 12 and 15)."""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ima_dist.figures.interactive.style import AXIS, colour, epoch_axis, style, symbol, text


@dataclass(frozen=True)
class Trained:
    """A run. history: rows of history.parquet. selected: the epoch that the threshold selects, or None."""

    name: str
    history: list[dict[str, Any]]
    selected: int | None


def training_figure(runs: list[Trained], threshold: float | None) -> go.Figure:
    """Above accuracy, validation solid and training dotted, with a star at the selected epoch; below the loss."""
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.06)
    for i, run in enumerate(runs):
        for key, what, dashed, row in (
            ("val_accuracy", "validation", "solid", 1),
            ("train_accuracy", "training", "dot", 1),
            ("train_loss", "training loss", "solid", 2),
        ):
            known = [r for r in run.history if r.get(key) is not None]
            if known:
                x, y, name = (
                    [r["epoch"] for r in known],
                    [r[key] for r in known],
                    f"{text(run.name)}: {what}" if run.name else what,
                )
                marker = {"symbol": symbol(i), "size": 5 if len(known) < 60 else 1}
                # The first run is the widest, so that it shows behind another that coincides with it.
                line = {"color": colour(i), "dash": dashed, "width": 2 + min(6, 2 * (len(runs) - 1 - i))}
                look = {"mode": "lines+markers", "line": line, "marker": marker}
                legend = {"legendgroup": f"{i} {what}", "showlegend": row == 1}
                fig.add_trace(go.Scatter(x=x, y=y, name=name, **look, **legend), row=row, col=1)
        at = [r for r in run.history if r["epoch"] == run.selected and r.get("val_accuracy") is not None]
        if at:
            # Stars that coincide need one label.
            earlier = any(other.selected == run.selected for other in runs[:i])
            said = None if earlier else [f"epoch {run.selected}"]
            size = 16 + min(24, 8 * (len(runs) - 1 - i))
            star = {"symbol": "star", "size": size, "color": colour(i), "line": {"color": "#111", "width": 1}}
            look = {"mode": "markers+text", "textposition": "bottom center", "marker": star}
            x, y, name = [run.selected], [at[0]["val_accuracy"]], f"{text(run.name)}: selected"
            fig.add_trace(go.Scatter(x=x, y=y, name=name, text=said, **look), row=1, col=1)
    style(fig, 560 + 20 * len(runs))
    if threshold is not None:
        fig.add_hline(
            y=threshold,
            line={"color": "#111", "dash": "dash", "width": 1},
            annotation_text="threshold",
            annotation_position="bottom left",
            row=1,
            col=1,
        )
    epochs = epoch_axis(max((row["epoch"] for run in runs for row in run.history), default=0))
    fig.update_xaxes(**{**epochs, "title": None})
    fig.update_yaxes(**AXIS)
    fig.update_xaxes(title=epochs["title"], row=2, col=1)
    fig.update_yaxes(title={"text": "clean accuracy"}, range=[0, 1.05], row=1, col=1)
    fig.update_yaxes(title={"text": "training loss"}, row=2, col=1)
    return fig
