"""All runs and trials: progress, speed, and why they failed."""

from collections import Counter
from typing import Any

from ima_dist.cli.progress import format_seconds
from ima_dist.dashboard.parts import Grid, Note, Part, Values
from ima_dist.dashboard.state import Control, State, one_of, unparse
from ima_dist.tracking.collection import Collection, Recorded

TITLE = "Runs"
INTRODUCTION = "Every run and trial below the results directory. Choose a name to see its curves."
_SILENT = 120.0  # seconds without news after which the status of a running run says so
_ALL = "all"
_COLUMNS = ["run", "status", "done", "stage", "epoch", "samples/s", "time left", "clean", "validation", "message"]


def controls(runs: Collection, state: State) -> list[Control]:
    counts = Counter(run.status for run in runs.runs.values())
    options = {_ALL: f"all ({len(runs.runs)})", **{s: f"{s} ({n})" for s, n in sorted(counts.items())}}
    return [one_of(state, "status", "Status", options)]


def show(runs: Collection, values: Values) -> list[Part]:
    chosen = [r for r in runs.runs.values() if values["status"] in (_ALL, r.status)]
    if not chosen:
        return [Note(f"There is no run in {runs.root}.")]
    # Running runs come first, then those that failed.
    order = {"running": 0, "failed": 1, "interrupted": 2}
    rows = [_row(run) for run in sorted(chosen, key=lambda run: (order.get(run.status, 3), run.name))]
    links = {"run": lambda row: "accuracy" + unparse({"runs": [row["run"]]})}
    return [Grid("runs", "Runs", _COLUMNS, rows, links=links)]


def _row(run: Recorded) -> dict[str, Any]:
    info = run.info
    last = (run.epochs_table.slice(max(0, run.epochs_table.num_rows - 1)).to_pylist() or [{}])[0]
    row = {
        **dict.fromkeys(_COLUMNS),
        "run": run.name,
        "status": run.status,
        "epoch": f"{info['epochs_done']}/{info['epochs']}",
        "samples/s": _rate(info["train_samples_per_second"] or last.get("samples_per_second")),
        "clean": info["clean_accuracy"],
        "validation": last.get("val_accuracy"),
        "message": info["message"],
        "done": _percent(info["epochs_done"], info["epochs"]),
    }
    return {**row, **_progress(run.progress(), info["epochs"])} if run.status == "running" else row


def _progress(state: dict[str, Any], epochs: int) -> dict[str, Any]:
    """The columns that progress.json of a running run fills."""
    stage = str(state.get("stage") or "starting")
    evaluating = stage == "evaluation"
    kind = "evaluation" if evaluating else "samples"
    done, total = state.get(f"{kind}_done"), state.get(f"{kind}_total")
    workers, left = state.get("workers"), state.get("seconds_left")
    row: dict[str, Any] = {
        "stage": stage + (f", {workers} worker{'s' * (workers != 1)}" if workers else ""),
        "samples/s": None if evaluating else _rate(state.get("samples_per_second")),
        "time left": format_seconds(left) if isinstance(left, int | float) else None,
    }
    if isinstance(done, int | float) and isinstance(total, int | float) and total > 0:
        row["done"] = _percent(done, total) + (" of the evaluation" if evaluating else "")
    if state.get("epoch"):
        row["epoch"] = f"{state['epoch']}/{epochs}"
    if state.get("age", 0.0) > _SILENT:
        row["status"] = f"running, no news for {format_seconds(state['age'])}"
    return row


def _percent(done: float, total: float) -> str:
    return f"{100 * min(1.0, done / total):.0f} %"


def _rate(value: object) -> int | None:
    return round(value) if isinstance(value, int | float) else None
