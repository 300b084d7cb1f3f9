"""The paper's figures, redrawn from our runs, as PNG files in memory.

No global matplotlib state is touched. Colours: Okabe and Ito (2008), as in ``results.figures``.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import preset_config
from ima_dist.figures.colours import COLOURS
from ima_dist.figures.png import MARKERS
from ima_dist.report.csvfiles import margin_histogram
from ima_dist.report.tables import Line, Table, paper_attack, setting_differences
from ima_dist.results import paper
from ima_dist.results.text import NORM_SIGN
from ima_dist.results.tradeoff import select_epoch
from ima_dist.rundir.curves import format_noise
from ima_dist.rundir.run import Run

# The paper's example of a threshold below which the accuracy on clean data must not fall (appendix H).
SELECTION = "val_accuracy>=0.90"
_DPI = 100
_COLUMNS = 3
_EXAMPLES = 2
_ACCURACY_FIGURES = {"moons": 6, "fashion_mnist": 7, "svhn": 8, "covid_ct": 9}


@dataclass(frozen=True)
class Picture:
    """A PNG file with its heading, caption, and the text for those who do not see it."""

    heading: str
    caption: str
    alt: str
    png: bytes


def draw(results: list[Run], tables: list[Table]) -> list[Picture]:
    """Figures 6 to 12, 14 and 15, as far as there are runs for them, in the order of the paper."""
    numbered: list[tuple[float, Picture]] = []
    for preset in paper.DATA_SETS:
        main = [t for t in tables if t.preset == preset and _is_main(t)]
        number = _ACCURACY_FIGURES.get(preset, 9.5)
        if preset == "moons" and (bounded := [r for r in results if r.boundary and r.config.preset == preset]):
            numbered.append((number, _boundaries(bounded)))
        if main:
            numbered.append((number, _accuracies(preset, main)))
        own = [r for r in results if r.config.preset == preset]
        for norm in ("linf", "l2"):
            if shown := [r for r in own if r.config.norm == norm and r.noisy is not None and _usual_beta(r)]:
                numbered.append((10, _examples(preset, norm, shown)))
        with_margins = [r for r in own if r.margins and r.config.method in ("ima", "mma")]
        if with_margins:
            numbered.append((9 if preset == "covid_ct" else 14, _margins(preset, with_margins)))
        if trained := [r for r in own if r.config.method == "ima" and r.history]:
            numbered.append((12 if preset == "covid_ct" else 11, _training(preset, "ima", trained)))
        if trained := [r for r in own if r.config.method == "ce" and r.history]:
            numbered.append((15, _training(preset, "ce", trained)))
    for table in tables:
        if table.number is None:
            numbered.append((16, _accuracies(table.preset, [table])))
    return [picture for _, picture in sorted(numbered, key=lambda pair: pair[0])]


def label(result: Run) -> str:
    """A run's name in a figure: its method, with what tells it from others of the same method."""
    config = result.config
    level = f" {config.eps_max:g}" if config.method in ("adv", "rand") else ""
    weight = "" if _usual_beta(result) else f" β={config.beta:g}"
    reduced = " (reduced)" if setting_differences(config, {"seed", "eps_max", "beta"}) else ""
    return f"{config.method}{level}{weight}, seed {config.seed}{reduced}"


def _usual_beta(result: Run) -> bool:
    return result.config.method != "ima" or result.config.beta == preset_config(result.config).beta


def _is_main(table: Table) -> bool:
    special = (*paper.BETA_TABLES, *paper.BLACK_BOX_TABLES, *paper.EPOCHS_TABLES, 15)
    return table.number is not None and table.number not in special


def _heading(text: str, preset: str, number: int | None) -> str:
    where = f"Figure {number}" if number else "Beside the paper's figures"
    return f"{where}: {paper.DATA_SETS[preset]}, {text}"


def _boundaries(results: list[Run]) -> Picture:
    fig, axes = _grid(len(results), (3.6, 2.4))
    for ax, result in zip(axes, results, strict=True):
        assert result.boundary is not None
        b = result.boundary
        ax.contourf(
            b["grid_x"], b["grid_y"], b["probability"], levels=[0, 0.5, 1], colors=[COLOURS[0], COLOURS[4]], alpha=0.18
        )
        for value, colour in ((0, COLOURS[0]), (1, COLOURS[4])):
            chosen = b["points"][b["labels"] == value]
            ax.scatter(chosen[:, 0], chosen[:, 1], s=1.5, color=colour, linewidths=0)
        if b["probability"].min() < 0.5 < b["probability"].max():
            ax.contour(b["grid_x"], b["grid_y"], b["probability"], levels=[0.5], colors="black", linewidths=1.5)
        ax.set(title=label(result), aspect="equal")
    names = ", ".join(label(r) for r in results)
    return Picture(
        _heading("decision boundaries", "moons", 6),
        "Black: the decision boundary. Blue and orange: the regions and the training samples of the two classes.",
        f"Decision boundaries between the two moons for {names}.",
        _png(fig),
    )


def _accuracies(preset: str, tables: list[Table]) -> Picture:
    fig, axes = _grid(len(tables), (5.4, 4.6), columns=2)
    said = []
    for ax, table in zip(axes, tables, strict=True):
        own = [line for line in table.lines if line.results]
        lines = [line for line in own if line.attack == paper_attack(table)] or own
        for i, line in enumerate(lines):
            name = line.row + (f", {line.attack}" if line.attack != paper_attack(table) else "")
            _accuracy_line(ax, line, i, name + (" (reduced)" if line.differs else ""))
            said.append(f"{name} {NORM_SIGN[table.norm]}")
        ax.set(xlabel=f"noise level ({NORM_SIGN[table.norm]})", ylabel="accuracy on the test set", ylim=(-0.02, 1.02))
        ax.set_title(table.title.split(";")[0], fontsize=10)
        if any(line.theirs for line in lines):
            ax.plot([], [], color="grey", linestyle="--", label="the paper's, in the same colour")
        ax.legend(fontsize=8)
    number = None if tables[0].number is None else _ACCURACY_FIGURES.get(preset)
    return Picture(
        _heading("accuracy by noise level", preset, number).replace("Figure 9:", "Figures 9 (left) and 13:"),
        "Accuracy on the test set against the noise level, a line for each method, with its 95 % interval. "
        + ("Dashed: the paper's rows. " if tables[0].number is not None else "")
        + "The numbers are in the table.",
        f"Accuracy against noise level on {paper.DATA_SETS[preset]} for {', '.join(said)}.",
        _png(fig),
    )


def _accuracy_line(ax: Axes, line: Line, i: int, name: str) -> None:
    colour = COLOURS[i % len(COLOURS)]
    # Past the last colour the same ones return, with hollow markers and other dashes.
    face = colour if i < len(COLOURS) else "white"
    measured = [(level, m) for (split, level), m in sorted(line.ours.items()) if split == "test"]
    levels = [level for level, _ in measured]
    marker = MARKERS[i % len(MARKERS)]
    ax.plot(levels, [m.accuracy for _, m in measured], color=colour, marker=marker, mfc=face, ms=4, label=name)
    bounds = [m.interval or (m.accuracy, m.accuracy) for _, m in measured]
    ax.fill_between(levels, [b[0] for b in bounds], [b[1] for b in bounds], color=colour, alpha=0.12, lw=0)
    theirs = [(level, cell.accuracy) for (split, level), cell in sorted(line.theirs.items()) if split == "test"]
    if theirs:
        style = "--" if i < len(COLOURS) else "-."
        ax.plot([x for x, _ in theirs], [a for _, a in theirs], color=colour, linestyle=style, linewidth=1)


def _examples(preset: str, norm: str, results: list[Run]) -> Picture:
    """A row for each run and example; examples that most of the runs classify correctly without noise come first."""
    arrays = [r.noisy for r in results if r.noisy is not None]
    right: dict[int, int] = {}
    for a in arrays:
        for i, good in enumerate(a["clean_prediction"] == a["label"]):
            right[i] = right.get(i, 0) + int(good)
    chosen = sorted(sorted(right, key=lambda i: -right[i])[:_EXAMPLES])
    rows = [(r, a, i) for i in chosen for r, a in zip(results, arrays, strict=True) if i < len(a["label"])]
    columns = 1 + max(int((a["noise"] > 0).sum()) for a in arrays)
    fig = Figure(figsize=(1.25 * columns + 1.2, 1.6 * len(rows)), dpi=_DPI, layout="constrained")
    axes = fig.subplots(len(rows), columns, squeeze=False)
    for strip, (result, a, i) in zip(axes, rows, strict=True):
        shown = [(0.0, a["clean"][i], a["clean_prediction"][i])]
        shown += [
            (level, a["noisy"][i, j], a["prediction"][i, j]) for j, level in enumerate(a["noise"].tolist()) if level > 0
        ]
        for ax in strip:
            ax.set(xticks=[], yticks=[])
            ax.set_frame_on(False)
        for ax, (level, image, predicted) in zip(strip, shown, strict=False):
            picture = np.clip(image.astype(np.float32), 0, 1)
            ax.imshow(picture[0] if len(picture) != 3 else picture.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
            wrong = predicted != a["label"][i]
            text = f"{'✗ ' if wrong else ''}{_class(a, int(predicted))}\nε = {format_noise(level)}"
            ax.set_title(text, fontsize=7, color=COLOURS[1] if wrong else "black", parse_math=False)
            if wrong:
                ax.set_frame_on(True)
                ax.spines[:].set(color=COLOURS[1], linewidth=2)
        strip[0].set_ylabel(f"{label(result)}\ntrue: {_class(a, int(a['label'][i]))}", fontsize=7, parse_math=False)
    return Picture(
        _heading(f"noisy images, {NORM_SIGN[norm]}", preset, 10),
        "Each row: a clean test image and its noisy images, made by PGD with cross-entropy against the network of "
        "that row. Above each image: the predicted class and the noise level; a cross and a coloured frame mark a "
        "wrong one.",
        f"Clean and noisy images of {paper.DATA_SETS[preset]} with predicted classes, a row for each of "
        f"{', '.join(label(r) for r in results)}.",
        _png(fig),
    )


def _class(arrays: dict[str, np.ndarray], number: int) -> str:
    names = arrays["class_names"]
    return str(names[number])[:16] if 0 <= number < len(names) else str(number)


def _margins(preset: str, results: list[Run]) -> Picture:
    fig, axes = _grid(len(results), (3.6, 2.8))
    for ax, result in zip(axes, results, strict=True):
        assert result.margins is not None
        margins = result.margins[1]["margin"].to_numpy()
        counts, edges = margin_histogram(margins, result.config.eps_max)
        ax.stairs(counts, edges, fill=True, color=COLOURS[0])
        ax.axvline(float(margins.mean()), color=COLOURS[1], linewidth=1.5)
        sign = NORM_SIGN[result.config.norm]
        ax.set(title=label(result), xlabel=f"margin ({sign})", ylabel="training samples")
    covid = preset == "covid_ct"
    return Picture(
        _heading("estimated margins of the training samples", preset, 14).replace(
            "Figure 14", "Figures 9 (middle, right) and 14" if covid else "As Figure 14"
        ),
        "Distribution of the margins that each run estimated last, up to its ε_max. Red: the mean. The numbers are in "
        "margins.csv.",
        f"Histograms of estimated margins on {paper.DATA_SETS[preset]} for {', '.join(label(r) for r in results)}.",
        _png(fig),
    )


def _training(preset: str, method: str, results: list[Run]) -> Picture:
    fig, axes = _grid(len(results), (3.6, 2.8))
    selected = []
    for ax, result in zip(axes, results, strict=True):
        for key, name, colour in (
            ("train_accuracy", "training", COLOURS[0]),
            ("val_accuracy", "validation", COLOURS[1]),
        ):
            rows: list[dict[str, Any]] = [row for row in result.history if row[key] is not None]
            if rows:
                marker = "." if len(rows) < 15 else None
                ax.plot([r["epoch"] for r in rows], [r[key] for r in rows], color=colour, label=name, marker=marker)
        epoch = _selected(result)
        if epoch is not None:
            ax.axvline(epoch, color="black", linestyle=":", label=f"selected: {epoch}")
            selected.append(f"{label(result)}: epoch {epoch}")
        ax.set(title=f"{label(result)}, {NORM_SIGN[result.config.norm]}", xlabel="epoch", ylabel="clean accuracy")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(fontsize=8)
    number = 15 if method == "ce" else 12 if preset == "covid_ct" else 11
    return Picture(
        _heading(f"training and validation accuracy of {method}", preset, number),
        f"Accuracy on clean data after each epoch. Dotted: the last epoch with {SELECTION.replace('>=', ' ≥ ')}, the "
        "paper's example of a threshold (appendix H)" + ("." if selected else "; no epoch reaches it here."),
        f"Training and validation accuracy by epoch on {paper.DATA_SETS[preset]} for "
        f"{', '.join(label(r) for r in results)}." + (f" Selected: {'; '.join(selected)}." if selected else ""),
        _png(fig),
    )


def _selected(result: Run) -> int | None:
    try:
        return select_epoch(SELECTION, result.history)
    except ConfigError:
        return None


def _grid(panels: int, size: tuple[float, float], columns: int = _COLUMNS) -> tuple[Figure, list[Axes]]:
    columns = min(columns, panels)
    rows = -(-panels // columns)
    fig = Figure(figsize=(size[0] * columns, size[1] * rows), dpi=_DPI, layout="constrained")
    axes = list(fig.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[panels:]:
        ax.remove()
    for ax in axes[:panels]:
        ax.grid(True, alpha=0.3)
        ax.set_axisbelow(True)
    return fig, axes[:panels]


def _png(fig: Figure) -> bytes:
    file = io.BytesIO()
    fig.savefig(file, format="png")
    return file.getvalue()
