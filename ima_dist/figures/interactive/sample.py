"""One test sample under growing noise (Fig. 10)."""

import numpy as np
import plotly.graph_objects as go

from ima_dist.figures.interactive.images import image_grid
from ima_dist.figures.interactive.margins import Names, class_name
from ima_dist.figures.interactive.style import AXIS, COLOURS, axis, figure, in_unit_range, text
from ima_dist.rundir.curves import format_noise


def sample_figure(arrays: dict[str, np.ndarray], number: int) -> go.Figure:
    """The attacked image at each noise level, and below it the difference to the clean one, which is the first.

    ``arrays``: as in examples/noisy.npz; ``number``: of the sample there. A cross and a thick frame mark a wrong
    prediction. Grey is no difference; black and white are the largest one in any image.
    """
    names = arrays["class_names"]
    label, clean = int(arrays["label"][number]), arrays["clean"][number].astype(np.float32)

    def said(predicted: int) -> str:
        return f"{'✗ ' if predicted != label else ''}{text(class_name(names, predicted)[:14])}"

    first = int(arrays["clean_prediction"][number])
    of = arrays["clean"]
    attacked = [(in_unit_range(clean, of), f"{said(first)}<br>clean", first != label)]
    changes = [np.zeros_like(clean)]
    for j, level in enumerate(arrays["noise"].tolist()):
        if level > 0:
            noisy, predicted = arrays["noisy"][number, j].astype(np.float32), int(arrays["prediction"][number, j])
            attacked.append(
                (in_unit_range(noisy, of), f"{said(predicted)}<br>ε = {format_noise(level)}", predicted != label)
            )
            changes.append(noisy - clean)
    scale = max(float(np.abs(change).max()) for change in changes) or 1.0
    below = [(0.5 + change / (2 * scale), "", False) for change in changes]
    return image_grid([attacked, below], ["image", f"difference, ±{scale:.2g}"])


def predictions_figure(rows: list[dict[str, object]], label: int, names: Names) -> go.Figure:
    """Predicted class by noise level, one line per attack and loss; the true class is dashed.

    ``rows``: "attack", "loss", "noise", "prediction", sorted by noise.
    """
    traces = []
    for i, (attack, loss) in enumerate(dict.fromkeys((str(r["attack"]), str(r["loss"])) for r in rows)):
        own = [r for r in rows if (r["attack"], r["loss"]) == (attack, loss)]
        traces.append(
            go.Scatter(
                x=[r["noise"] for r in own],
                y=[text(class_name(names, int(str(r["prediction"])))) for r in own],
                mode="lines+markers",
                name=text(attack) if loss == "both" else f"{text(attack)}, {text(loss)}",
                line={"color": COLOURS[i % len(COLOURS)], "shape": "hv"},
                marker={"symbol": i % 32, "size": 10},
            )
        )
    seen = sorted({label, *(int(str(r["prediction"])) for r in rows)})
    order = [text(class_name(names, n)) for n in seen]
    fig = figure(
        traces,
        height=200 + 30 * len(order),
        xaxis=axis("noise level ε"),
        yaxis={**AXIS, "type": "category", "categoryorder": "array", "categoryarray": order, "automargin": True},
    )
    fig.update_yaxes(range=[-0.5, len(order) - 0.5])
    fig.add_hline(y=order[seen.index(label)], line={"color": "#111", "dash": "dash", "width": 1})
    return fig
