"""Pictures of one run: decision boundary, accuracy under attack, margins, training curves, equilibrium.

Every function writes a PNG 1200 pixels wide. No global matplotlib state is touched, so they may be called
from any thread. Colours: Okabe and Ito (2008) and viridis, which colour-blind readers can tell apart.
"""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ima_dist.config.presets import data_name
from ima_dist.figures.colours import COLOURS
from ima_dist.results import paper as paper_tables
from ima_dist.results.margin_audit import TOLERANCE
from ima_dist.results.margin_bins import bin_edges, histogram
from ima_dist.results.statistics import with_intervals
from ima_dist.results.text import NORM_SIGN
from ima_dist.rundir.curves import Point, attack_rows
from ima_dist.rundir.files import replacing
from ima_dist.rundir.run import Run

_BLUE, _RED, _GREEN, _PURPLE, _ORANGE, _SKY = COLOURS
MARKERS = ("o", "s", "^", "D", "v", "P")
_LASTING = 5  # epochs


def decision_boundary(
    path: Path, grid_x: np.ndarray, grid_y: np.ndarray, probability: np.ndarray, points: np.ndarray, labels: np.ndarray
) -> None:
    """Two classes in the plane, like Fig. 6 of the paper: the boundary, faint class colours, the samples.

    ``grid_x``, ``grid_y``: (G,) coordinates; ``probability``: (G, G) of class 1, row j and column i at
    (grid_x[i], grid_y[j]); ``points``: (N, 2); ``labels``: (N,) of 0 or 1. Raises OSError.
    """
    fig, (ax,) = _figure(5.6)
    ax.contourf(grid_x, grid_y, probability, levels=[0, 0.5, 1], colors=[_BLUE, _ORANGE], alpha=0.18)
    for label, colour in ((0, _BLUE), (1, _ORANGE)):
        chosen = points[labels == label]
        ax.scatter(chosen[:, 0], chosen[:, 1], s=3, color=colour, linewidths=0, label=f"class {label}")
    if probability.min() < 0.5 < probability.max():
        ax.contour(grid_x, grid_y, probability, levels=[0.5], colors="black", linewidths=2)
        ax.plot([], [], color="black", linewidth=2, label="decision boundary")
    ax.set(xlabel="first coordinate", ylabel="second coordinate", title="Decision boundary and training samples")
    ax.set_aspect("equal")
    ax.legend(loc="upper right", markerscale=4)
    _save(fig, path)


def accuracy_curves(path: Path, points: list[Point], paper: dict[float, float] | None, title: str) -> None:
    """Accuracy against noise level, one line per attack with its 95 % interval; the paper's row dashed.

    ``points``: those with loss "both" on the test split are shown; ``paper``: noise level -> accuracy.
    Raises OSError.
    """
    fig, (ax,) = _figure(5.2)
    norms: set[str] = set()
    for i, (attack, row) in enumerate(attack_rows(points).items()):
        levels, accuracy, low, high = with_intervals(row)
        colour = COLOURS[i % len(COLOURS)]
        ax.plot(levels, accuracy, color=colour, marker=MARKERS[i % len(MARKERS)], label=attack)
        ax.fill_between(levels, low, high, color=colour, alpha=0.15, lw=0)
        norms |= {point.norm for point in row.values()}
    if paper:
        levels = sorted(paper)
        ax.plot(levels, [paper[x] for x in levels], "k--", marker="x", label="paper")
    unit = ", ".join(NORM_SIGN.get(n, n) for n in sorted(norms))
    ax.set(xlabel=f"noise level ({unit})" if unit else "noise level", ylabel="accuracy", title=title)
    ax.set_ylim(-0.02, 1.02)
    ax.legend()
    _save(fig, path)


def margin_histogram(
    path: Path,
    margins: np.ndarray,
    eps_max: float,
    labels: np.ndarray | None = None,
    norm: str = "linf",
    bounded: bool = True,
) -> None:
    """Distribution of the estimated margins of the training samples, like Figs. 9 and 14 of the paper.

    ``margins``: (N,) distances in ``norm``, in units of the data; ``labels``: (N,) classes, which are then
    stacked; ``bounded``: ε_max bounds margins, and is drawn. Raises OSError.
    """
    fig, (ax,) = _figure(5.2)
    _, edges = histogram(margins, eps_max)
    values = np.clip(np.asarray(margins, dtype=np.float64), 0, edges[-1])
    classes = np.unique(labels) if labels is not None else ()
    if len(classes) > 1:
        colours = list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(classes))))
        groups, names = [values[labels == c] for c in classes], [f"class {c}" for c in classes]
    else:
        colours, groups, names = [_BLUE], [values], None
    ax.hist(groups, bins=edges.tolist(), stacked=True, color=colours, label=names)
    if bounded:
        ax.axvline(eps_max, color="black", linestyle="--", linewidth=1, label="$ε_{max}$")
    ax.axvline(float(values.mean()), color=_RED, linewidth=1.5, label=f"mean {values.mean():.4g}")
    ax.set(xlabel=f"margin ({NORM_SIGN.get(norm, norm)})", ylabel="training samples")
    ax.set_title(f"Estimated margins of {len(values):,} training samples")
    ax.legend(ncols=2 if len(groups) > 6 else 1)
    _save(fig, path)


def margin_bars(path: Path, row: dict[str, Any], eps_max: float, norm: str = "linf") -> None:
    """As ``margin_histogram``, without classes, from a row of history.parquet: for sets of any size. Raises OSError."""
    fig, (ax,) = _figure(5.2)
    counts, mean = row["margin_histogram"], row["margin_mean"]
    ax.stairs(counts, bin_edges(len(counts), eps_max), fill=True, color=_BLUE)
    if row.get("share_at_max", 0.0) is not None:  # else there is no largest margin
        ax.axvline(eps_max, color="black", linestyle="--", linewidth=1, label="$ε_{max}$")
    ax.axvline(mean, color=_RED, linewidth=1.5, label=f"mean {mean:.4g}")
    ax.set(xlabel=f"margin ({NORM_SIGN.get(norm, norm)})", ylabel="training samples")
    ax.set_title(f"Estimated margins of {sum(counts):,} training samples")
    ax.legend()
    _save(fig, path)


def margin_audit(path: Path, table: pa.Table, norm: str) -> None:
    """Stored margin against audited distance of each correctly classified sample; above the line is too large.

    ``table``: as in audit.parquet. Raises OSError.
    """
    fig, (ax,) = _figure(5.6)
    correct = table["correct"].to_numpy()
    margin, distance = table["margin"].to_numpy()[correct], table["distance"].to_numpy()[correct]
    over = margin > (1 + TOLERANCE) * distance
    for chosen, colour, name in ((~over, _BLUE, "within"), (over, _RED, "over-estimated")):
        ax.scatter(distance[chosen], margin[chosen], s=9, color=colour, lw=0, label=f"{name} ({chosen.sum():,})")
    high = 1.05 * max(float(margin.max()), float(np.quantile(distance[np.isfinite(distance)], 0.99)))
    ax.plot([0, high], [0, high], color="black", linewidth=1)
    sign = NORM_SIGN.get(norm, norm)
    ax.set(
        xlim=(0, high), ylim=(0, high), xlabel=f"distance at which a minimal-norm attack crosses the boundary ({sign})"
    )
    ax.set(ylabel=f"stored margin ({sign})", title=f"Margins of {correct.sum():,} training samples, audited")
    ax.legend(loc="lower right")
    _save(fig, path)


def training_curves(path: Path, history: list[dict[str, Any]]) -> None:
    """Training and validation accuracy over the epochs, like Fig. 11 of the paper, and the mean margin.

    ``history``: rows of history.parquet, at least one. The panel of margins has a band from the 10 % to the
    90 % quantile, and is left out for methods without margins. Raises OSError.
    """
    with_margins = [row for row in history if row.get("margin_mean") is not None]
    panels = 2 if with_margins else 1
    fig, axes = _figure(3.6 * panels, panels)
    for ax, key, name, colour, marker in (
        (axes[0], "train_accuracy", "training", _BLUE, "o"),
        (axes[0], "val_accuracy", "validation", _RED, "s"),
        (axes[-1], "margin_mean", "mean", _GREEN, "o"),
    ):
        rows = [row for row in history if row.get(key) is not None]
        if rows:
            epochs, values = [r["epoch"] for r in rows], [r[key] for r in rows]
            ax.plot(epochs, values, color=colour, marker=marker, markersize=3, label=name)
    axes[0].set(xlabel="epoch", ylabel="accuracy on clean samples", title="Training and validation accuracy")
    axes[0].legend()
    if with_margins:
        banded = [row for row in with_margins if row.get("margin_quantiles")]
        epochs, quantiles = [row["epoch"] for row in banded], [row["margin_quantiles"] for row in banded]
        low, high = ([q[i] for q in quantiles] for i in (1, 9))  # 10 % and 90 %, of the 11 in history.parquet
        axes[1].fill_between(epochs, low, high, color=_GREEN, alpha=0.2, lw=0, label="10 % to 90 % of the samples")
        axes[1].set(xlabel="epoch", ylabel="margin (units of the data)", title="Estimated margins")
        axes[1].set_ylim(bottom=0)
        axes[1].legend()
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(fig, path)


def equilibrium(path: Path, rows: list[dict[str, Any]]) -> None:
    """Measures of the equilibrium state (paper, section 2.3 and appendix G.2) over the epochs.

    ``rows``: of equilibrium.parquet, at least one. Four panels: imbalance of counts, mixing, |P_i − P_j| and
    L₂, each with its value in equilibrium. A thick line is the mean over the pairs of classes, weighted by
    their noisy samples; thin lines are the pairs, if there are several. A dotted line is the imbalance of the
    last five epochs' counts together: low where one epoch's excess makes up for another's, that is, where the
    boundary swings about its place. Raises OSError.
    """
    table = pd.DataFrame(rows, dtype=np.float64)  # None: NaN
    n_i, n_j = table["count_i"], table["count_j"]
    fig, (balance, mixed, difference, loss) = _figure(7, 2, 2, sharex=True)
    _over_epochs(balance, table, abs(n_i - n_j) / (n_i + n_j), _BLUE)
    balance.plot(_lasting_imbalance(table), color=_BLUE, linestyle=":", label=f"{_LASTING} epochs together")
    _over_epochs(mixed, table, table["mixing"], _GREEN)
    _over_epochs(difference, table, table["abs_difference"], _PURPLE)
    _over_epochs(loss, table, (table["loss_i"] + table["loss_j"]) / 2, _RED)
    # Pairs share no noisy sample, so their deviations add up as independent ones do.
    known = table.dropna(subset="mixing_sd")
    weight = known["count_i"] + known["count_j"]
    squares = (weight * known["mixing_sd"]).pow(2).groupby(known["epoch"]).sum()
    sd = np.sqrt(squares) / weight.groupby(known["epoch"]).sum()
    mixed.fill_between(sd.index, 1 - 2 * sd, 1 + 2 * sd, color="black", alpha=0.12, lw=0, label="chance (2 sd)")
    for ax, level, name in ((balance, 0, "0"), (mixed, 1, "1"), (difference, 0, "0"), (loss, math.log(2), "log 2")):
        ax.axhline(level, color="black", linestyle="--", linewidth=1, label=f"equilibrium: {name}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(fontsize="small")
        # From 0, and to where it would matter: rounding must not look like a trend.
        ax.set_ylim(0, max(ax.get_ylim()[1], 1.25 * level, 0.1))
    balance.set(title="Numbers on either side", ylabel=r"$|n_i - n_j|\;/\;(n_i + n_j)$", ylim=(0, 1.03))
    mixed.set(title="Mixing of the two sides", ylabel="neighbours from the other side\n(1: same distribution)")
    difference.set(title="Distance from the boundary", ylabel="mean $|P_i - P_j|$", xlabel="epoch")
    loss.set(title="Loss of the noisy samples", ylabel="$L_2$ of a sample, mean of both sides", xlabel="epoch")
    fig.suptitle("Noisy samples on the boundaries $B_{ij}$: does the run approach its equilibrium?")
    _save(fig, path)


def _over_epochs(ax: Axes, table: pd.DataFrame, value: pd.Series, colour: str) -> None:
    """Draw the value of each row that has one: the weighted mean, and thinner each of several pairs."""
    pairs = table.assign(value=value).dropna(subset="value").groupby(["class_i", "class_j"])
    if len(pairs) > 1:
        for _, own in pairs:
            ax.plot(own["epoch"], own["value"], color=colour, alpha=0.2, linewidth=0.7)
    name = f"mean of {len(pairs)} pairs" if len(pairs) > 1 else "the two classes"
    ax.plot(_mean(table, value), color=colour, marker="o", markersize=3, label=name)


def _mean(table: pd.DataFrame, value: pd.Series) -> pd.Series:
    """By epoch, the mean of the values that are not NaN, weighted by the noisy samples of their rows."""
    weight = (table["count_i"] + table["count_j"]).where(value.notna())
    return ((weight * value).groupby(table["epoch"]).sum() / weight.groupby(table["epoch"]).sum()).dropna()


def _lasting_imbalance(table: pd.DataFrame) -> pd.Series:
    """By epoch, Σ|n_i − n_j| / Σ(n_i + n_j) over the pairs of counts summed over the epochs up to it."""
    counts = table.pivot(index="epoch", columns=["class_i", "class_j"], values=["count_i", "count_j"]).fillna(0)
    every = np.arange(counts.index.min(), counts.index.max() + 1)
    recent = counts.reindex(every, fill_value=0).rolling(_LASTING, min_periods=1).sum().loc[counts.index]
    return (recent["count_i"] - recent["count_j"]).abs().sum(axis=1) / recent.sum(axis=1)


def draw_all(run: Run) -> list[Path]:
    """Draw every figure whose inputs the run has into its figures/, and return their paths.

    Raises OSError if a figure cannot be written.
    """
    config = run.config
    drawn: list[Path] = []

    def target(name: str) -> Path:
        drawn.append(run.dir.figures_dir / name)
        return drawn[-1]

    if run.boundary is not None:
        decision_boundary(target("decision_boundary.png"), **run.boundary)
    if attack_rows(run.points):
        published = paper_tables.row_of(config)
        title = f"{data_name(config)}, {config.method}: accuracy on the test set"
        if published:
            title += f" (paper: Table {published[0]}, {paper_tables.attack_of(published[0])})"
        accuracy_curves(target("accuracy.png"), run.points, published[1] if published else None, title)
    if run.margins is not None and run.margins[1].num_rows:
        margins, labels = (run.margins[1].column(name).to_numpy() for name in ("margin", "label"))
        margin_histogram(target("margins.png"), margins, config.eps_max, labels, config.norm, config.margins_bounded)
    elif run.margin_count and run.margin_history:
        margin_bars(target("margins.png"), run.margin_history[-1], config.eps_max, config.norm)
    if run.training_history:
        training_curves(target("training.png"), run.training_history)
    if run.equilibrium:
        equilibrium(target("equilibrium.png"), run.equilibrium)
    return drawn


def _figure(height: float, rows: int = 1, columns: int = 1, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    fig = Figure(figsize=(8, height), dpi=150, layout="constrained")
    axes = list(fig.subplots(rows, columns, squeeze=False, sharex=sharex).flat)
    for ax in axes:
        ax.grid(True, alpha=0.3)
        ax.set_axisbelow(True)
    return fig, axes


def _save(fig: Figure, path: Path) -> None:
    with replacing(path) as file:
        fig.savefig(file, format="png")
