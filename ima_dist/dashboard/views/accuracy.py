"""Accuracy against noise level, beside the paper's rows."""

from typing import Any

from ima_dist.dashboard.choosing import choose_attack, choose_runs
from ima_dist.dashboard.parts import Grid, Note, Part, Plot, Values
from ima_dist.dashboard.state import Control, State
from ima_dist.dashboard.terms import under
from ima_dist.figures.interactive.accuracy import Series, accuracy_figure, distance_figure
from ima_dist.figures.interactive.style import looks
from ima_dist.results import distances, paper
from ima_dist.results.doubts import doubts
from ima_dist.results.self_tests import self_test_lines
from ima_dist.results.statistics import with_intervals
from ima_dist.rundir.curves import Row, attack_rows, format_noise, levels_of, noise_key, samples_label
from ima_dist.tracking.collection import Collection, Recorded

TITLE = "Accuracy"
INTRODUCTION = (
    "Clean accuracy, at noise level ε = 0, and robust accuracy above it. Bands are 95 % Wilson intervals of single "
    "runs. Bands that overlap do not settle whether two runs differ: [Compare](compare) has the paired test. Dotted "
    "lines with crosses are the paper's rows."
)
LIVE = False


def controls(runs: Collection, state: State) -> list[Control]:
    able = [r for r in runs.runs.values() if r.curves_table.num_rows]
    chosen = choose_runs(state, able)
    found = {point.attack for name in chosen.value for point in runs.runs[name].points}
    return [chosen, choose_attack(state, found)]


def show(runs: Collection, values: Values) -> list[Part]:
    chosen = [runs.runs[name] for name in values["runs"]]
    if not chosen:
        return [Note("No run has been evaluated yet.")]
    attack = values["attack"]
    found = [(run, rows[attack]) for run in chosen if attack in (rows := attack_rows(run.points))]
    series = [_series(run, attack, row) for run, row in found]
    norms = list(dict.fromkeys(run.info["norm"] for run, _ in found))
    caption = "The same numbers are in the table below. A method has one colour in all figures."
    parts: list[Part] = [
        Plot("accuracy", f"Clean and robust accuracy {under(attack)}", caption, accuracy_figure(series, norms)),
        _table(found, attack),
    ]
    parts += _whole_curve([run for run, _ in found], norms) if attack == distances.ATTACK else []
    missing = [run.name for run in chosen if attack not in attack_rows(run.points)]
    if missing:
        parts.append(Note(f"Not evaluated with {attack}: {', '.join(missing)}."))
    parts += [Note(f"{run.name} was {copied}.") for run, _ in found if (copied := paper.copied(run.config))]
    parts += [Note(f"{run.name}: {text}") for run, _ in found for text in self_test_lines(run, run.config.epochs)]
    parts += [Note(f"{run.name} is doubtful: {text}") for run, _ in found for text in doubts(run)]
    if len(norms) > 1:
        parts.append(Note("The figure has runs of different norms, whose noise levels cannot be compared."))
    return parts


def _whole_curve(runs: list[Recorded], norms: list[str]) -> list[Part]:
    """Accuracy at every noise level, of the runs whose samples' distances are known."""
    every = zip(runs, looks(run.info["method"] for run in runs), strict=True)
    known = [
        (run.name, found, look)
        for run, look in every
        if (found := distances.distances(run, run.config.epochs)) is not None
    ]
    if not known:
        return []
    caption = "The accuracy falls at the distance of each sample to the nearest misclassified point that was found."
    figure = distance_figure(
        [(name, *distances.curve(found)) for name, found, _ in known], norms, [look for *_, look in known]
    )
    return [Plot("distances", "Robust accuracy at every noise level ε", caption, figure)]


def published(run: Recorded, attack: str) -> tuple[int, dict[float, float]] | None:
    """Number of the paper's table for a run under this attack, and its row: noise level -> accuracy."""
    for table, row in paper.rows_of(run.config).items():
        if table not in paper.BETA_TABLES:
            cells = paper.cells(table=table, method=row, attack=attack, split="test")
            if cells:
                return table, {noise_key(c.noise): c.accuracy for c in cells}
    return None


def _series(run: Recorded, attack: str, row: Row) -> Series:
    theirs = published(run, attack)
    return Series(run.name, *with_intervals(row), theirs[1] if theirs else {}, run.info["method"])


def _table(found: list[tuple[Recorded, Row]], attack: str) -> Grid:
    levels = levels_of(row for _, row in found)
    rows: list[dict[str, Any]] = []
    for run, row in found:
        epoch = next(iter(row.values())).epoch
        own = {format_noise(x): row[x].share for x in levels if x in row}
        samples = samples_label(row)
        rows.append({"run": run.name, "what": "ours", "epoch": epoch, "samples": samples, **own})
        theirs = published(run, attack)
        if theirs:
            values = {format_noise(x): theirs[1][x] for x in levels if x in theirs[1]}
            rows.append({"run": run.name, "what": f"paper, Table {theirs[0]}", **values})
            difference = {k: own[k] - v for k, v in values.items() if k in own}
            rows.append({"run": run.name, "what": "difference", **difference})
    columns = ["run", "what", "epoch", "samples", *map(format_noise, levels)]
    return Grid("accuracies", "Accuracy by noise level ε", columns, rows)
