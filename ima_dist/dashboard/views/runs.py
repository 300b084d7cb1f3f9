"""All runs and trials: how far they are, how fast, and why they failed."""

from __future__ import annotations

from typing import Any

from ima_dist.cli.progress import format_seconds
from ima_dist.dashboard.parts import Grid, Note, Part, Values
from ima_dist.dashboard.state import Control, State, one_of, unparse
from ima_dist.tracking.collection import Collection, Recorded

TITLE = "Runs"
INTRODUCTION = "Every run and trial below the results directory. Choose a name to see its curves."
_SILENT = 120.0  # seconds without news after which a running run is said to be silent
_ALL = "all"
_COLUMNS = ["run", "status", "done", "stage", "epoch", "samples/s", "time left", "clean", "validation", "message"]


def controls(runs: Collection, state: State) -> list[Control]:
    counts: dict[str, int] = {}
    for run in runs.runs.values():
        counts[run.info["status"]] = counts.get(run.info["status"], 0) + 1
    options = {_ALL: f"all ({len(runs.runs)})", **{s: f"{s} ({n})" for s, n in sorted(counts.items())}}
    return [one_of(state, "status", "Status", options)]


def show(runs: Collection, values: Values) -> list[Part]:
    chosen = [r for r in runs.runs.values() if values["status"] in (_ALL, r.info["status"])]
    if not chosen:
        return [Note(f"There is no run in {runs.root}.")]
    # What goes on comes first, then what failed.
    order = {"running": 0, "failed": 1, "interrupted": 2}
    rows = sorted(
        (_row(run) for run in chosen), key=lambda row: (order.get(row["status"].split(",")[0], 3), row["run"])
    )
    return [
        Grid("runs", "Runs", _COLUMNS, rows, links={"run": lambda row: "accuracy" + unparse({"runs": [row["run"]]})})
    ]


def _row(run: Recorded) -> dict[str, Any]:
    info, status = run.info, str(run.info["status"])
    row: dict[str, Any] = dict.fromkeys(_COLUMNS)
    last = run.epochs_table.slice(run.epochs_table.num_rows - 1).to_pylist() if run.epochs_table.num_rows else []
    row |= {
        "run": run.name,
        "status": status,
        "epoch": f"{info['epochs_done']}/{info['epochs']}",
        "samples/s": _rate(info["train_samples_per_second"] or (last[0]["samples_per_second"] if last else None)),
        "clean": info["clean_accuracy"],
        "validation": last[0]["val_accuracy"] if last else None,
        "message": info["message"],
        "done": f"{100 * min(1.0, info['epochs_done'] / info['epochs']):.0f} %",
    }
    if status == "running":
        state = run.progress()
        stage = str(state.get("stage") or "starting")
        kind = "evaluation" if stage == "evaluation" else "samples"
        done, total = state.get(f"{kind}_done"), state.get(f"{kind}_total")
        row["stage"] = stage
        if state.get("workers"):
            row["stage"] += f", {state['workers']} worker{'s' * (state['workers'] != 1)}"
        if isinstance(done, int | float) and isinstance(total, int | float) and total > 0:
            row["done"] = f"{100 * min(1.0, done / total):.0f} %" + (
                " of the evaluation" if kind == "evaluation" else ""
            )
        if state.get("epoch"):
            row["epoch"] = f"{state['epoch']}/{info['epochs']}"
        row["samples/s"] = _rate(state.get("samples_per_second")) if stage != "evaluation" else None
        left = state.get("seconds_left")
        row["time left"] = format_seconds(left) if isinstance(left, int | float) else None
        if state.get("age", 0.0) > _SILENT:
            row["status"] = f"running, no news for {format_seconds(state['age'])}"
    return row


def _rate(value: object) -> int | None:
    return round(value) if isinstance(value, int | float) else None
