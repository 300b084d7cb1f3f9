"""Performance class by class, calibration, and thresholds for two classes."""

from dataclasses import replace
from typing import Any

from ima_dist.dashboard.choosing import choose_run, opened
from ima_dist.dashboard.parts import INTERVAL, LEVEL, Grid, Note, Part, Plot, Values, notes, share_text, with_interval
from ima_dist.dashboard.state import Control, State, one_of
from ima_dist.dashboard.terms import about_attack
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
    "and wrong answers; without noise and under attack. [What the words mean](#words) has the definitions."
)
LIVE = False
_IN_WORDS = {"ECE": "expected calibration error (ECE)"}
_SET, _ATTACKED = "which samples", "those that were attacked"
_KNOWN = "probabilities are stored"  # of a row; no column


def controls(runs: Collection, state: State) -> list[Control]:
    able = [run for run in runs.runs.values() if run.curves_table.num_rows]
    chosen = choose_run(state, able)
    if chosen.value is None:
        return [chosen]
    entries = shown(opened(runs.runs[chosen.value]))
    options = {_key(entry): conditions(entry) for entry in entries}
    about = {_key(entry): about_attack(entry.attack) for entry in entries if entry.attack != CLEAN}
    return [chosen, replace(one_of(state, "at", "Noise and attack", options, long=True), about=about)]


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
        rows = [{**row, _KNOWN: entry.ece is not None} for row in rows]
        parts.append(_table("classes", f"By class: {conditions(entry)}", BY_CLASS, rows))
    else:
        parts.append(Note("The classes are too many to be listed."))
    rows = [{**row, _SET: _ATTACKED, _KNOWN: row["ECE"] is not None} for row in overall_rows(entries.values())]
    for row in rows:
        if row["attack"] == CLEAN:
            row[_SET] = "all of the test set"
    parts.append(_table("overall", "All classes together", (*OVERALL[:3], _SET, *OVERALL[3:]), rows))
    if not all(row[_KNOWN] for row in rows):
        parts.append(
            Note("“Not known”: AUC and ECE need probabilities, and of these attacks only predictions are stored.")
        )
    if entry.reliability and entry.ece is not None:
        bins = f"in {len(entry.reliability)} bins"
        caption = f"{conditions(entry)}: expected calibration error {share_text(entry.ece)}, {bins}."
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
    title = {
        column: f"{_IN_WORDS.get(column, column)}, {INTERVAL}" for column in columns if f"{column} low" in rows[0]
    } | {"noise": LEVEL}
    cells = [{**row, **{title.get(c, c): _cell(row, c) for c in columns}} for row in rows]
    also = tuple(end for c in columns if f"{c} low" in rows[0] for end in (c, f"{c} low", f"{c} high"))
    return Grid(name, heading, [title.get(c, c) for c in columns], cells, also=also)


def _cell(row: dict[str, Any], column: str) -> Any:
    value, low, high = row[column], row.get(f"{column} low"), row.get(f"{column} high")
    if column == "noise":
        return format_noise(value)
    if value is None:
        return _missing(row, column)
    return value if low is None or high is None else with_interval(value, (low, high))


def _missing(row: dict[str, Any], column: str) -> str:
    """Why there is no value."""
    if column in ("AUC", "ECE"):
        return "not defined" if row[_KNOWN] else "not known"
    said = {"precision": "never predicted", "recall": "no such sample", "wanted sensitivity": "none"}
    return said.get(column, "not defined")
