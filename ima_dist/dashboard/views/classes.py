"""Performance class by class, calibration, and thresholds for two classes."""

from ima_dist.dashboard.choosing import choose_run, opened
from ima_dist.dashboard.parts import Grid, Note, Part, Plot, Values, notes
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
    return [chosen, one_of(state, "at", "Samples", options, long=True)]


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
        parts.append(Grid("classes", f"By class: {conditions(entry)}", _with_bounds(BY_CLASS, rows), rows))
    else:
        parts.append(Note("The classes are too many to be listed."))
    rows = overall_rows(entries.values())
    parts.append(Grid("overall", "All classes together", _with_bounds(OVERALL, rows), rows))
    if entry.reliability:
        caption = f"{conditions(entry)}: expected calibration error {entry.ece:.4f}, in {len(entry.reliability)} bins."
        figure = reliability_figure({conditions(entry): entry.reliability})
        parts.append(Plot("reliability", "Reliability", caption, figure))
    rows = threshold_rows(shown_thresholds(run))
    if rows:
        heading = "Thresholds on the probability of the second class, chosen on validation samples"
        parts.append(Grid("thresholds", heading, _with_bounds(THRESHOLDS, rows), rows))
    level = split_level(run)
    if level:
        parts.append(Note(f"Split {level}."))
    if entry.groups is not None:
        parts.append(Note(f"Intervals allow for the {entry.groups:,} groups that the samples come from."))
    return parts


def _key(entry: Performance) -> str:
    return CLEAN if entry.attack == CLEAN else f"{entry.attack} {entry.noise:g}"


def _with_bounds(columns: tuple[str, ...], rows: list[dict[str, object]]) -> list[str]:
    """The columns, each followed by the ends of its interval, if it has one."""
    return [name for column in columns for name in (column, f"{column} low", f"{column} high") if name in rows[0]]
