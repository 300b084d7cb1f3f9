"""The dashboard's figures in the report: the same functions, in one file with one copy of plotly.js."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from ima_dist.config.errors import ConfigError
from ima_dist.report.figures import SELECTION, label
from ima_dist.report.tables import Line, Table, paper_attack
from ima_dist.results.choice import pareto_set
from ima_dist.results.text import NORM_SIGN
from ima_dist.results.tradeoff import select_epoch
from ima_dist.rundir.run import Run

_EXAMPLES = 2


def plots(results: list[Run], tables: list[Table]) -> list[str]:
    """Each as HTML: a heading, the figure, a caption; the first carries plotly.js."""
    import plotly.io

    parts = []
    for number, (heading, caption, figure) in enumerate(_figures(results, tables)):
        drawn = plotly.io.to_html(
            figure,
            include_plotlyjs=number == 0,
            full_html=False,
            div_id=f"figure{number}",
            config={"displaylogo": False, "responsive": True, "toImageButtonOptions": {"format": "svg"}},
        )
        parts.append(
            f"<figure><h3>{escape(heading)}</h3><div role='img' aria-label='{escape(heading)}'>{drawn}</div>"
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return parts


def _figures(results: list[Run], tables: list[Table]) -> Iterator[tuple[str, str, Any]]:
    from ima_dist.figures.interactive.boundary import boundary_figure
    from ima_dist.figures.interactive.margins import histogram_figure
    from ima_dist.figures.interactive.sample import sample_figure
    from ima_dist.figures.interactive.training import Trained, training_figure

    for table in tables:
        yield from _of_table(table)
    for result in results:
        name = f"{label(result)} ({result.name})"
        if result.boundary is not None:
            yield (
                f"Decision boundary: {name}",
                "Circles and crosses: training samples.",
                boundary_figure(result.boundary),
            )
        rows = [r for r in result.history if r.get("margin_histogram") and r.get("margin_mean") is not None]
        if rows:
            figure = histogram_figure(rows, result.config.eps_max, result.config.norm, rows[-1]["epoch"], slider=True)
            yield f"Estimated margins: {name}", "The slider leads through the epochs.", figure
        if result.history:
            epoch = _selected(result)
            trained = Trained(label(result), result.history, epoch)
            caption = f"Star: the last epoch with {SELECTION.replace('>=', ' ≥ ')}"
            caption += f", {epoch}." if epoch is not None else "; no epoch reaches it here."
            yield f"Training: {name}", caption, training_figure([trained], float(SELECTION.split(">=")[1]))
        if result.noisy is not None:
            for i in range(min(_EXAMPLES, len(result.noisy["label"]))):
                caption = "A cross and a thick frame mark a wrong prediction. Below, the difference to the clean image."
                yield (
                    f"Noisy images, sample {result.noisy['index'][i]}: {name}",
                    caption,
                    sample_figure(result.noisy, i),
                )


def _of_table(table: Table) -> Iterator[tuple[str, str, Any]]:
    from ima_dist.figures.interactive.accuracy import Series, accuracy_figure
    from ima_dist.figures.interactive.tradeoff import Point, tradeoff_figure

    own = [line for line in table.lines if line.results]
    if table.number == 15 or not own:
        return
    lines = [line for line in own if line.attack == paper_attack(table)] or own
    series = []
    for line in lines:
        ours = {level: m for (split, level), m in sorted(line.ours.items()) if split == "test"}
        bounds = [m.interval or (m.accuracy, m.accuracy) for m in ours.values()]
        theirs = {level: cell.accuracy for (split, level), cell in line.theirs.items() if split == "test"}
        accuracies = [m.accuracy for m in ours.values()]
        series.append(
            Series(_name(line), list(ours), accuracies, [b[0] for b in bounds], [b[1] for b in bounds], theirs)
        )
    yield (
        f"Accuracy: {table.title}",
        "Bands: 95 % intervals. Dotted: the paper's.",
        accuracy_figure(series, [table.norm]),
    )
    points = []
    for line in lines:
        levels = sorted(level for split, level in line.ours if split == "test")
        if len(levels) > 1 and levels[0] == 0:
            clean, robust = (line.ours["test", level] for level in (0.0, levels[len(levels) // 2]))
            if clean.interval and robust.interval:
                points.append(
                    Point(_name(line), line.row, clean.accuracy, clean.interval, robust.accuracy, robust.interval)
                )
    if len(points) > 1:
        front = pareto_set([(p.clean, p.robust) for p in points])
        what = f"accuracy at the middle noise level ({NORM_SIGN[table.norm]})"
        yield (
            f"Clean against robust accuracy: {table.title}",
            "Circled: the Pareto front.",
            tradeoff_figure(points, front, what),
        )


def _name(line: Line) -> str:
    return line.row + (" (reduced)" if line.differs else "") + (f", epoch {line.epoch}" if line.epoch else "")


def _selected(result: Run) -> int | None:
    try:
        return select_epoch(SELECTION, result.history)
    except ConfigError:
        return None
