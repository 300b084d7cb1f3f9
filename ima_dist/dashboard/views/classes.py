"""Performance class by class, calibration, and thresholds for two classes."""

from typing import Any

from ima_dist.dashboard.choosing import choose_run, opened
from ima_dist.dashboard.parts import INTERVAL, LEVEL, Grid, Note, Part, Plot, Values, notes, with_interval
from ima_dist.dashboard.state import Control, State, one_of
from ima_dist.figures.interactive.reliability import reliability_figure
from ima_dist.results.binary import shown_thresholds
from ima_dist.results.by_class import (
    BY_CLASS,
    OVERALL,
    THRESHOLDS,
    class_names,
    class_rows,
    conditions,
    overall_rows,
    threshold_rows,
)
from ima_dist.results.performance import CLEAN, Performance, shown
from ima_dist.results.split import split_level
from ima_dist.rundir.curves import format_noise
from ima_dist.tracking.collection import Collection

TITLE = "Classes"
INTRODUCTION = (
    "Recall, precision and AUC of each class against the rest, balanced accuracy, and how sure the network is of right "
    "and wrong answers; without noise and under attack. docs/evaluation.md has the definitions."
)
LIVE = False


def controls(runs: Collection, state: State) -> list[Control]:
    able = [run for run in runs.runs.values() if run.curves_table.num_rows]
    chosen = choose_run(state, able)
    if chosen.value is None:
        return [chosen]
    entries = shown(opened(runs.runs[chosen.value]))
    options = {_key(entry): conditions(entry) for entry in entries}
    return [chosen, one_of(state, "at", "Noise and attack", options, long=True)]


def show(runs: Collection, values: Values) -> list[Part]:
    if values["run"] is None:
        return [Note("No run has been evaluated yet.")]
    run = opened(runs.runs[values["run"]])
    entries = {_key(entry): entry for entry in shown(run)}
    if not entries:
        again = f"To measure it: python -m ima_dist.evaluate {run.name}"
        return notes(run.damaged("summary")) or [
            Note(f"{run.name} is from a version that did not measure this. {again}")
        ]
    entry = entries[values.get("at") or next(iter(entries))]
    parts: list[Part] = []
    if entry.classes:
        rows = class_rows(entry, class_names(run))
        parts.append(_table("classes", f"By class: {conditions(entry)}", BY_CLASS, rows))
    else:
        parts.append(Note("The classes are too many to be listed."))
    rows = overall_rows(entries.values())
    parts.append(_table("overall", "All classes together", OVERALL, rows))
    if entry.reliability:
        caption = f"{conditions(entry)}: expected calibration error {entry.ece:.4f}, in {len(entry.reliability)} bins."
        figure = reliability_figure({conditions(entry): entry.reliability})
        parts.append(Plot("reliability", "Reliability", caption, figure))
    rows = threshold_rows(shown_thresholds(run))
    if rows:
        heading = "Thresholds on the probability of the second class, chosen on validation samples"
        parts.append(_table("thresholds", heading, THRESHOLDS, rows))
    level = split_level(run)
    if level:
        parts.append(Note(f"Split {level}."))
    if entry.groups is not None:
        parts.append(Note(f"Intervals allow for the {entry.groups:,} groups that the samples come from."))
    return parts


def _key(entry: Performance) -> str:
    return CLEAN if entry.attack == CLEAN else f"{entry.attack} {entry.noise:g}"


def _table(name: str, heading: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Grid:
    """Measured values with their intervals in one column each; a download has their ends apart."""
    title = {column: f"{column}, {INTERVAL}" for column in columns if f"{column} low" in rows[0]} | {"noise": LEVEL}
    cells = [{**row, **{title[c]: _cell(row, c) for c in columns if c in title}} for row in rows]
    also = tuple(end for c in columns if f"{c} low" in rows[0] for end in (c, f"{c} low", f"{c} high"))
    return Grid(name, heading, [title.get(c, c) for c in columns], cells, also=also)


def _cell(row: dict[str, Any], column: str) -> Any:
    value, low, high = row[column], row.get(f"{column} low"), row.get(f"{column} high")
    if column == "noise":
        return format_noise(value)
    return value if value is None or low is None or high is None else with_interval(value, (low, high))
