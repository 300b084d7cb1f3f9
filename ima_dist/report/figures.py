"""The paper's figures redrawn from our runs, by the functions that the dashboard uses too."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import data_name, has_papers_data
from ima_dist.config.schema import Config
from ima_dist.figures.interactive.accuracy import Series, accuracy_figure, certified_figure, distance_figure
from ima_dist.figures.interactive.boundary import boundary_figure
from ima_dist.figures.interactive.margins import class_name, histogram_figure
from ima_dist.figures.interactive.reliability import reliability_figure
from ima_dist.figures.interactive.sample import sample_figure
from ima_dist.figures.interactive.style import looks
from ima_dist.figures.interactive.tradeoff import Point, tradeoff_figure
from ima_dist.figures.interactive.training import Trained, training_figure
from ima_dist.report.tables import Line, Table, label, paper_attack
from ima_dist.results import certificates, distances, paper
from ima_dist.results.by_class import conditions
from ima_dist.results.choice import pareto_set
from ima_dist.results.performance import CLEAN, shown
from ima_dist.results.same_data import data_sets
from ima_dist.results.text import NORM_SIGN, percents
from ima_dist.results.tradeoff import last_epoch_above
from ima_dist.rundir.run import Arrays, Run

# The paper's example of a threshold below which the accuracy on clean data must not fall (appendix H).
_THRESHOLD = 0.9
_EXAMPLES = 2
_ACCURACY_FIGURES = {
    "moons": "Figure 6",
    "fashion_mnist": "Figure 7",
    "svhn": "Figure 8",
    "covid_ct": "Figures 9 and 13",
}


@dataclass(frozen=True)
class Drawing:
    """A figure and the words around it. source: the paper's figure that it redraws, such as "Figure 6", or empty."""

    source: str
    title: str
    caption: str
    figure: go.Figure

    @property
    def heading(self) -> str:
        return f"{self.source}. {self.title}" if self.source else self.title

    @property
    def place(self) -> int:
        """The order is that of the paper, then come the figures that it does not have."""
        number = re.search(r"\d+", self.source)
        return int(number.group()) if number else 99


def draw(results: list[Run], tables: list[Table]) -> list[Drawing]:
    """Figures 6 to 15, as far as there are runs for them, then those that the paper does not have."""
    of_tables = (drawing for table in tables if table.number != 15 for drawing in _of_table(table))
    of_runs = (drawing for result in results for drawing in _of_run(result))
    return sorted((*of_tables, *of_runs, *_examples(results)), key=lambda drawing: drawing.place)


def _of_table(table: Table) -> Iterator[Drawing]:
    own = [line for line in table.lines if line.results]
    lines = [line for line in own if line.attack == paper_attack(table)] or own
    if not lines:
        return
    special = (None, *paper.BETA_TABLES, *paper.BLACK_BOX_TABLES, *paper.EPOCHS_TABLES)
    source = _ACCURACY_FIGURES.get(table.preset, "") if table.number not in special else ""
    caption = "Bands: 95 % intervals. Dotted: the paper's rows. The numbers are in the table."
    figure = accuracy_figure([_series(line) for line in lines], [table.norm])
    yield Drawing(source, f"Accuracy by noise level ({table.title})", caption, figure)
    points = [point for line in lines if (point := _point(line))]
    if len(points) > 1:
        front = pareto_set([(p.clean, p.robust) for p in points])
        what = f"accuracy at the middle noise level ({NORM_SIGN[table.norm]})"
        figure = tradeoff_figure(points, front, what)
        yield Drawing("", f"Clean against robust accuracy ({table.title})", "Circled: the Pareto front.", figure)


def _series(line: Line) -> Series:
    ours = {level: m for (split, level), m in sorted(line.ours.items()) if split == "test"}
    bounds = [m.interval or (m.accuracy, m.accuracy) for m in ours.values()]
    theirs = {level: cell.accuracy for (split, level), cell in line.theirs.items() if split == "test"}
    accuracies = [m.accuracy for m in ours.values()]
    return Series(
        _name(line), list(ours), accuracies, [b[0] for b in bounds], [b[1] for b in bounds], theirs, _method(line)
    )


def _point(line: Line) -> Point | None:
    """Accuracy without noise and at the middle noise level; None if one of them is not there."""
    levels = sorted(level for split, level in line.ours if split == "test")
    if len(levels) < 2 or levels[0] != 0:
        return None
    clean, robust = (line.ours["test", level] for level in (0.0, levels[len(levels) // 2]))
    if clean.interval is None or robust.interval is None:
        return None
    return Point(_name(line), line.row, clean.accuracy, clean.interval, robust.accuracy, robust.interval, _method(line))


def _method(line: Line) -> str:
    return line.results[0].config.method if line.results else ""


def _name(line: Line) -> str:
    return line.row + (" (reduced)" if line.reduced else "") + (f", epoch {line.epoch}" if line.epoch else "")


def _of_run(result: Run) -> Iterator[Drawing]:
    config, name = result.config, _title(result)
    covid, theirs = config.preset == "covid_ct", has_papers_data(config)
    if result.boundary is not None:
        caption = "Tinted: the regions of the two classes. Circles and crosses: training samples."
        yield Drawing(
            "Figure 6" if theirs else "", f"Decision boundary of {name}", caption, boundary_figure(result.boundary)
        )
    rows = result.margin_history
    if rows:
        shown = "Figure 9" if config.method == "mma" else "Figures 9 and 14"
        source = (shown if covid else "Like Figure 14") if theirs else ""
        share = rows[-1].get("share_at_max")
        at_max = "" if share is None else f" In the end {percents(share)} stand at ε_max or above."
        step = config.expansion if config.method == "ima" else None
        caption = f"Margins of the training samples after each epoch. Dashed: their mean.{at_max}"
        figure = histogram_figure(rows, config.eps_max, config.norm, rows[-1]["epoch"], slider=True, step=step)
        yield Drawing(source, f"Estimated margins of {name}", caption, figure)
    if result.training_history:
        source = (
            {"ima": "Figure 12" if covid else "Figure 11", "ce": "Figure 15"}.get(config.method, "") if theirs else ""
        )
        epoch = _selected(result)
        rule = f"a validation accuracy of at least {_THRESHOLD:g}, the paper's example of a threshold (appendix H)."
        caption = f"Star: epoch {epoch}, the last with {rule}" if epoch else f"No epoch has {rule}"
        figure = training_figure([Trained(label(result), result.history, epoch, config.method)], _THRESHOLD)
        yield Drawing(source, f"Training and validation accuracy of {name}", caption, figure)

    found = distances.distances(result, config.epochs)
    if found is not None:
        caption = (
            "Accuracy falls at the distance of each test sample to the nearest misclassified point that was found."
        )
        figure = distance_figure([(label(result), *distances.curve(found))], [config.norm], looks([config.method]))
        yield Drawing("", f"Accuracy at every noise level of {name}", caption, figure)
    certified = result.certificates
    entries = certificates.shown(result) if certified is not None else []
    if certified is not None and entries:
        curves = [(f"σ {entry.sigma:g}", *certificates.curve(certified, entry)) for entry in entries]
        caption = "Share of the test samples whose label is certified within the radius: not of the network itself."
        title = f"Certified accuracy of the smoothed classifier of {name}"
        yield Drawing("", title, caption, certified_figure(curves))
    yield from _reliability(result)


def _reliability(result: Run) -> Iterator[Drawing]:
    """Without noise, and under an attack at the smallest, middle and largest noise level."""
    entries = [entry for entry in shown(result) if entry.reliability]
    noisy = [entry for entry in entries if entry.noise > 0]
    picked = [entry for entry in entries if entry.attack == CLEAN]
    picked += [noisy[i] for i in sorted({0, len(noisy) // 2, len(noisy) - 1})] if noisy else []
    if picked:
        series = {conditions(entry): entry.reliability for entry in picked}
        caption = "Points: bins of equal width, with 95 % intervals. On the dotted line, confidence equals accuracy."
        yield Drawing("", f"Reliability of {_title(result)}", caption, reliability_figure(series))


def _selected(result: Run) -> int | None:
    try:
        return last_epoch_above(_THRESHOLD, result.history)
    except ConfigError:
        return None


def _examples(results: list[Run]) -> Iterator[Drawing]:
    """Figure 10: the same few samples for all runs of a preset and norm."""
    experiments: dict[tuple[str, str], list[tuple[Run, Arrays]]] = {}
    for result, name in zip(results, data_sets(results), strict=True):
        if result.noisy is not None:
            experiments.setdefault((name, result.config.norm), []).append((result, result.noisy))
    for group in experiments.values():
        for index in _easiest([arrays for _, arrays in group]):
            for result, arrays in group:
                for place in np.flatnonzero(arrays["index"] == index).tolist():
                    yield _example(result, arrays, place)


def _easiest(runs: list[Arrays]) -> list[int]:
    """The samples that most of the runs classify correctly without noise."""
    right: Counter[int] = Counter()
    for arrays in runs:
        correct = arrays["clean_prediction"] == arrays["label"]
        right.update(dict(zip(arrays["index"].tolist(), correct.astype(int).tolist(), strict=True)))
    return [index for index, _ in right.most_common(_EXAMPLES)]


def _example(result: Run, arrays: Arrays, place: int) -> Drawing:
    title = f"Sample {arrays['index'][place]} under growing noise, network of {_title(result)}"
    true = class_name(arrays["class_names"], int(arrays["label"][place]))
    marks = "A cross and a thick frame mark a wrong prediction. Below is the difference to the clean image."
    return Drawing(
        _source(result.config),
        title,
        f"True class: {true}. {marks}",
        sample_figure(arrays, place),
    )


def _source(config: Config) -> str:
    """The paper's examples are COVID-19 CT images."""
    if not has_papers_data(config):
        return ""
    return "Figure 10" if config.preset == "covid_ct" else "Like Figure 10"


def _title(result: Run) -> str:
    config = result.config
    name = paper.DATA_SETS[config.preset] if has_papers_data(config) else data_name(config)
    return f"{result.name} ({name}, {NORM_SIGN[config.norm]}, {label(result)})"
