"""Margins of the training samples: how they grow, whose are small, and whether they are true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from ima_dist.dashboard.files import opened
from ima_dist.dashboard.names import choose_run
from ima_dist.dashboard.parts import Grid, Note, Part, Plot, Values
from ima_dist.dashboard.state import Control, State, one_of, slider
from ima_dist.figures.interactive.margins import (
    audit_figure,
    class_figure,
    class_name,
    extremes_figure,
    histogram_figure,
    share_figure,
)
from ima_dist.results.margin_audit import TOLERANCE, summarise
from ima_dist.results.text import NORM_SIGN
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection, Recorded

TITLE = "Margins"
INTRODUCTION = "Estimated distance of each training sample to the decision boundary, up to ε_max (paper, Fig. 14)."


def controls(runs: Collection, state: State) -> list[Control]:
    able = [r for r in runs.runs.values() if _with_margins(r)]
    found: list[Control] = [choose_run(runs, state, able)]
    name = found[0].value
    if isinstance(name, str):
        run = opened(runs.runs[name])
        epochs = [row["epoch"] for row in _history(run)]
        if epochs:
            found.append(slider(state, "epoch", "Epoch", min(epochs), max(epochs), max(epochs)))
        arrays = run.extremes
        if arrays is not None and len(arrays["label"]):
            names = [str(n) for n in arrays["class_names"]]
            options = {str(n): class_name(names, n) for n in sorted(set(arrays["label"].tolist()))}
            found.append(one_of(state, "class", "Class", options))
    return found


def show(runs: Collection, values: Values) -> list[Part]:
    if values["run"] is None:
        return [Note("No run has margins: those of ima and mma do.")]
    run = opened(runs.runs[values["run"]])
    eps_max, norm = run.config.eps_max, run.config.norm
    parts: list[Part] = []
    history = _history(run)
    if history:
        # An epoch that was skipped, if there is such a thing, shows the one before.
        epoch = max(row["epoch"] for row in history if row["epoch"] <= values["epoch"])
        at = next(row for row in history if row["epoch"] == epoch)
        caption = (
            f"After epoch {epoch}: {at['share_at_max']:.1%} of the samples at ε_max, mean {at['margin_mean']:.4g}."
        )
        parts.append(Plot("histogram", "Histogram", caption, histogram_figure(history, eps_max, norm, epoch)))
        parts.append(
            Plot("share", "Share at ε_max by epoch", "Dotted: the epoch above.", share_figure(history, eps_max, epoch))
        )
    parts += _extremes(run, values.get("class"))
    parts += _by_class(run)
    parts += _audit(run)
    columns = ["epoch", "margin_mean", "share_at_max"]
    parts.append(Grid("margins", "Margins by epoch", columns, [{c: row[c] for c in columns} for row in history]))
    return parts


def _with_margins(run: Recorded) -> bool:
    history = run.epochs_table
    return bool(history.num_rows) and history["margin_mean"].null_count < history.num_rows


def _history(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.history if row.get("margin_histogram") and row.get("margin_mean") is not None]


def _extremes(run: Run, chosen: str | None) -> list[Part]:
    damaged = run.damaged("extremes")
    if damaged:
        return [Note(text) for text in damaged]
    arrays = run.extremes
    if arrays is None or chosen is None:
        again = f"python -m ima_dist.evaluate {run.name}"
        return [Note(f"The samples with the smallest and largest margins were not kept; {again} makes up for it.")]
    number = int(chosen)
    names = [str(n) for n in arrays["class_names"]]
    own = arrays["label"] == number
    rows = [
        {
            "index": int(i),
            "class": class_name(names, number),
            "margin": float(m),
            "end": "largest" if large else "smallest",
        }
        for i, m, large in zip(arrays["index"][own], arrays["margin"][own], arrays["largest"][own], strict=True)
    ]
    parts: list[Part] = []
    heading = f"Smallest and largest margins: {class_name(names, number)}"
    if arrays["sample"].ndim == 4 or arrays["sample"].shape[1:] == (2,):
        caption = "Correctly classified training samples of one class; of equal margins, those that come first."
        parts.append(Plot("extremes", heading, caption, extremes_figure(arrays, number)))
    return [*parts, Grid("ends", heading, ["end", "index", "class", "margin"], rows)]


def _by_class(run: Run) -> list[Part]:
    damaged: list[Part] = [Note(text) for text in run.damaged("margins")]
    if run.margins is None or not run.margins[1].num_rows:
        return damaged or [Note("There is no whole snapshot of the margins of single samples.")]
    epoch, table = run.margins
    names = [] if run.extremes is None else [str(n) for n in run.extremes["class_names"]]
    label, margin = table["label"].to_numpy(), table["margin"].to_numpy()
    rows = []
    for number in np.unique(label).tolist():
        own = margin[label == number]
        at_max = own >= run.config.eps_max * (1 - 1e-6)
        low, middle, high = np.quantile(own, [0.1, 0.5, 0.9]).tolist()
        rows.append(
            {
                "class": class_name(names, number),
                "samples": len(own),
                "mean": float(own.mean()),
                "10 %": low,
                "median": middle,
                "90 %": high,
                "at ε_max": float(at_max.mean()),
            }
        )
    caption = f"After epoch {epoch}. Boxes: quartiles; whiskers: 5 % to 95 %."
    return [
        *damaged,
        Plot("classes", "Margins by class", caption, class_figure(label, margin, names, run.config.norm)),
        Grid("by-class", "Margins by class", list(rows[0]), rows),
    ]


def _audit(run: Run) -> list[Part]:
    damaged = run.damaged("audit")
    if damaged:
        return [Note(text) for text in damaged]
    table = run.audit
    if table is None:
        return [Note(f"The margins were not audited; python -m ima_dist.audit {run.name} does it.")]
    if not {"margin", "distance", "correct", "epoch"} <= set(table.column_names):
        return [Note(f"{run.dir.audit_path} lacks columns.")]
    return _audited(table, run)


def _audited(table: pa.Table, run: Run) -> list[Part]:
    try:
        found = summarise(table, run.config.eps_max)
    except ValueError as error:
        return [Note(f"Audit: {error}.")]
    correct = table["correct"].to_numpy()
    caption = (
        f"{found.correct} correctly classified samples after epoch {table['epoch'][0].as_py()}; "
        f"{found.over:.1%} over-estimated by more than {TOLERANCE:.0%}, "
        f"median of margin / distance {found.median_ratio:.3f}. Lengths in {NORM_SIGN[run.config.norm]}."
    )
    figure = audit_figure(table["margin"].to_numpy()[correct], table["distance"].to_numpy()[correct], run.config.norm)
    return [Plot("audit", "Stored margin against audited distance", caption, figure)]
