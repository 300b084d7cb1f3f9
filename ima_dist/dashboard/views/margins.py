"""Margins of the training samples: growth, extremes, classes, and audit."""

from typing import Any

import numpy as np

from ima_dist.dashboard.choosing import choose_run, opened
from ima_dist.dashboard.parts import Grid, Note, Part, Plot, Values, notes
from ima_dist.dashboard.state import Control, State, one_of, slider
from ima_dist.figures.interactive import margins as figures
from ima_dist.results.margin_audit import TOLERANCE, summarise
from ima_dist.results.text import NORM_SIGN, percents
from ima_dist.rundir.directory import HISTOGRAM_BINS
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection, Recorded

TITLE = "Margins"
INTRODUCTION = (
    "Estimated distance of each training sample to the decision boundary, up to ε_max, or for mma up to 1.05·d_max "
    "(paper, Figs. 9 and 14). A misclassified sample stands at Δε, or for mma at 0."
)
LIVE = False
_STEPS = (
    "Many margins come in steps of Δε: training lets a margin grow by that much in an epoch, until the noisy sample "
    "crosses the boundary."
)


def controls(runs: Collection, state: State) -> list[Control]:
    able = [r for r in runs.runs.values() if _with_margins(r)]
    found: list[Control] = [choose_run(state, able)]
    name = found[0].value
    if isinstance(name, str):
        run = opened(runs.runs[name])
        epochs = [row["epoch"] for row in run.margin_history]
        if epochs:
            found.append(slider(state, "epoch", "Epoch", min(epochs), max(epochs), max(epochs)))
        arrays = run.extremes
        if arrays is not None and len(arrays["label"]):
            labels = sorted(set(arrays["label"].tolist()))
            classes = {str(n): figures.class_name(arrays["class_names"], n) for n in labels}
            found.append(one_of(state, "class", "Class of the smallest and largest margins below", classes))
    return found


def show(runs: Collection, values: Values) -> list[Part]:
    if values["run"] is None:
        return [Note("No run has margins. The methods that estimate margins are ima and mma.")]
    run = opened(runs.runs[values["run"]])
    history = run.margin_history
    columns = ["epoch", "margin_mean", "share_at_max"]
    return [
        *(_at_epoch(run, history, values["epoch"]) if history else []),
        *_extremes(run, values.get("class")),
        *by_class(run),
        *_audit(run),
        Grid("margins", "Margins by epoch", columns, [{c: row[c] for c in columns} for row in history]),
    ]


def _at_epoch(run: Run, history: list[dict[str, Any]], wanted: int) -> list[Part]:
    # An epoch without a histogram shows the one before.
    at = max((row for row in history if row["epoch"] <= wanted), key=lambda row: row["epoch"])
    epoch, eps_max = at["epoch"], run.config.eps_max
    share = at["share_at_max"]
    at_max = "" if share is None else f"{percents(share)} of the samples at ε_max = {eps_max:g} or above, "
    whole = share is not None and len(at["margin_histogram"]) == HISTOGRAM_BINS
    last = " The last bin holds also those at ε_max itself." if whole else ""
    step = run.config.expansion if run.config.method == "ima" else None
    steps = (
        ""
        if step is None
        else f" {_STEPS} Here Δε = {step:g}; where a multiple of it parts two bins, they are one bar."
    )
    caption = f"After epoch {epoch}: {at_max}mean {at['margin_mean']:.4g}.{last}{steps}"
    histogram = figures.histogram_figure(history, eps_max, run.config.norm, epoch, step=step)
    heading = "Mean margin by epoch" if share is None else "Share at ε_max and mean margin by epoch"
    shares = figures.share_figure(history, eps_max, epoch)
    return [
        Plot("histogram", "Histogram", caption, histogram),
        Plot("share", heading, "The dotted line is the epoch of the histogram.", shares),
    ]


def _with_margins(run: Recorded) -> bool:
    history = run.epochs_table
    return bool(history.num_rows) and history["margin_mean"].null_count < history.num_rows


def _extremes(run: Run, chosen: str | None) -> list[Part]:
    arrays = run.extremes
    if arrays is None or chosen is None:
        again = f"To store them: python -m ima_dist.evaluate {run.name}"
        missing = f"The samples with the smallest and largest margins are not stored. {again}"
        return notes(run.damaged("extremes") or [missing])
    number = int(chosen)
    name = figures.class_name(arrays["class_names"], number)
    own = arrays["label"] == number
    own &= _at_one_end(arrays, own)
    arrays = {**arrays, **{key: arrays[key][own] for key in ("index", "label", "margin", "largest", "sample")}}
    rows = [
        {"index": int(i), "class": name, "margin": float(m), "end": "largest" if large else "smallest"}
        for i, m, large in zip(arrays["index"], arrays["margin"], arrays["largest"], strict=True)
    ]
    parts: list[Part] = []
    heading = f"Smallest and largest margins of class {name}"
    if arrays["sample"].ndim == 4 or arrays["sample"].shape[1:] == (2,):
        caption = (
            "Correctly classified training samples of the class that is chosen above; the other figures show all "
            "classes. Among equal margins, the lowest indices. Of few samples, each stands at the nearer end only."
        )
        parts.append(Plot("extremes", heading, caption, figures.extremes_figure(arrays, number)))
    return [*parts, Grid("ends", f"{heading}, in numbers", ["end", "index", "class", "margin"], rows)]


def _at_one_end(arrays: dict[str, np.ndarray], own: np.ndarray) -> np.ndarray:
    """Mask (N,) without the second mention of a sample of ``own`` that is stored at both ends."""
    index, margin, large = arrays["index"], arrays["margin"], arrays["largest"].astype(bool)
    both = np.isin(index, np.intersect1d(index[own & large], index[own & ~large]))
    middle = (margin[own].min() + margin[own].max()) / 2 if own.any() else 0.0
    return ~both | (large == (margin > middle))


def by_class(run: Run) -> list[Part]:
    damaged = notes(run.damaged("margins"))
    if run.margins is None and run.margin_count:
        return [*damaged, Note(f"{run.margin_count:,} training samples are too many to show here by class.")]
    if run.margins is None or not run.margins[1].num_rows:
        return damaged or [Note("The run has no complete snapshot of the margins of single samples.")]
    epoch, table = run.margins
    names: figures.Names = () if run.extremes is None else run.extremes["class_names"]
    label, margin = table["label"].to_numpy(), table["margin"].to_numpy()
    rows = []
    for number in np.unique(label).tolist():
        own = margin[label == number]
        low, middle, high = np.quantile(own, [0.1, 0.5, 0.9]).tolist()
        rows.append(
            {
                "class": figures.class_name(names, number),
                "samples": len(own),
                "mean": float(own.mean()),
                "10 %": low,
                "median": middle,
                "90 %": high,
            }
        )
        if run.config.margins_bounded:
            rows[-1]["at ε_max"] = float((own >= run.config.eps_max * (1 - 1e-6)).mean())
    caption = f"After epoch {epoch}. Boxes are quartiles; whiskers go from 5 % to 95 %."
    return [
        *damaged,
        Plot(
            "margin-classes", "Margins by class", caption, figures.class_figure(label, margin, names, run.config.norm)
        ),
        Grid("by-class", "Margins by class, in numbers", list(rows[0]), rows),
    ]


def _audit(run: Run) -> list[Part]:
    table = run.audit
    if table is None:
        missing = f"The margins have not been audited. To audit them: python -m ima_dist.audit {run.name}"
        return notes(run.damaged("audit") or [missing])
    if not {"margin", "distance", "correct", "epoch"} <= set(table.column_names):
        return [Note(f"{run.dir.audit_path} lacks columns.")]
    try:
        found = summarise(table, run.config.eps_max)
    except ValueError as error:
        return [Note(f"Audit: {error}.")]
    correct = table["correct"].to_numpy()
    caption = (
        f"{found.correct} correctly classified samples after epoch {table['epoch'][0].as_py()}; "
        f"{percents(found.over)} over-estimated by more than {percents(TOLERANCE, 0)}, "
        f"median of margin / distance {found.median_ratio:.3f}. Lengths in {NORM_SIGN[run.config.norm]}."
    )
    caption += f" {_STEPS}" if run.config.method == "ima" else ""
    figure = figures.audit_figure(
        table["margin"].to_numpy()[correct], table["distance"].to_numpy()[correct], run.config.norm
    )
    return [Plot("audit", "Stored margin against audited distance", caption, figure)]
