"""Performance by class as rows of tables, for terminal, report, dashboard and card."""

from collections.abc import Iterable, Sequence
from typing import Any

from ima_dist.results.performance import CLEAN, Performance, shown
from ima_dist.rundir.curves import format_noise
from ima_dist.rundir.run import Run

Row = dict[str, Any]
#: Column -> the text above it, in the order of a table.
OVERALL = ("attack", "noise", "samples", "balanced accuracy", "AUC", "ECE")
BY_CLASS = ("class", "support", "recall", "precision", "AUC")
THRESHOLDS = ("attack", "noise", "wanted sensitivity", "threshold", "sensitivity", "specificity")


def class_names(run: Run) -> tuple[str, ...]:
    """The names of the classes; () if the run does not know them."""
    found = run.summary.get("class_names")
    return tuple(map(str, found)) if isinstance(found, list) else ()


def name_of(label: int, names: Sequence[str]) -> str:
    """A class's name, or its number."""
    return names[label] if label < len(names) else str(label)


def conditions(entry: Performance) -> str:
    """What an entry is of: "without noise", or an attack and its noise level."""
    return "without noise" if entry.attack == CLEAN else f"{entry.attack}, ε {format_noise(entry.noise)}"


def overall_rows(entries: Iterable[Performance]) -> list[Row]:
    """A row for each entry; numbers, with "… low" and "… high" for the ends of their 95 % intervals."""
    return [
        {
            "attack": entry.attack,
            "noise": entry.noise,
            "samples": entry.samples,
            **_bounded("balanced accuracy", entry.balanced_accuracy, entry.balanced_accuracy_interval),
            **_bounded("AUC", entry.auc, entry.auc_interval),
            **_bounded("ECE", entry.ece, entry.ece_interval),
        }
        for entry in entries
    ]


def class_rows(entry: Performance, names: Sequence[str]) -> list[Row]:
    """A row for each class, as ``overall_rows``."""
    return [
        {
            "class": name_of(row.label, names),
            "support": row.support,
            **_bounded("recall", row.recall, row.recall_interval),
            **_bounded("precision", row.precision, row.precision_interval),
            **_bounded("AUC", row.auc, row.auc_interval),
        }
        for row in entry.classes
    ]


def threshold_rows(found: Iterable[dict[str, Any]]) -> list[Row]:
    """The rows of ``binary.shown_thresholds``: one for each wanted sensitivity, without noise and under attack."""
    return [
        {
            "attack": row["attack"],
            "noise": row["noise"],
            "wanted sensitivity": row["wanted"],
            "threshold": row["threshold"],
            **_bounded("sensitivity", row["sensitivity"], row["sensitivity_interval"]),
            **_bounded("specificity", row["specificity"], row["specificity_interval"]),
        }
        for row in found
    ]


def cells(row: Row, columns: Sequence[str]) -> list[str]:
    """The row as text: shares with four places, and their intervals in brackets."""
    return [_cell(row, column) for column in columns]


def overall_text(run: Run) -> str | None:
    """One line for the terminal; None for a run of an earlier version."""
    entry = next((entry for entry in shown(run) if entry.attack == CLEAN), None)
    if entry is None:
        return None
    (row,) = overall_rows([entry])
    balanced, area = (_cell(row, column) for column in ("balanced accuracy", "AUC"))
    ranks = "" if entry.auc is None else f", AUC {area}"
    return f"Without noise: balanced accuracy {balanced}{ranks}, with 95 % intervals."


def _bounded(name: str, value: float | None, interval: Sequence[float] | None) -> Row:
    low, high = interval or (None, None)
    return {name: value, f"{name} low": low, f"{name} high": high}


def _cell(row: Row, column: str) -> str:
    value = row[column]
    if column == "noise":
        return "-" if row["attack"] == CLEAN else format_noise(value)
    if value is None:
        return "(none)" if column == "wanted sensitivity" else "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    low, high = row.get(f"{column} low"), row.get(f"{column} high")
    return f"{value:.4f}" + ("" if low is None or high is None else f" ({low:.4f} to {high:.4f})")
