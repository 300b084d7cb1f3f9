"""All runs and trials as a list that can be searched, filtered and sorted, and from which runs are compared."""

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ima_dist.dashboard.headlines import experiments, headlines
from ima_dist.dashboard.parts import CLEAN, INTERVAL, LEVEL, ROBUST, Browser, Note, Part, Values, interval_text
from ima_dist.dashboard.standing import began_at, ended_at, progress_of, sentence_of
from ima_dist.dashboard.state import Control, Several, State, any_of, some_of, text, unparse
from ima_dist.results.text import NORM_SIGN
from ima_dist.rundir.notes import read_notes
from ima_dist.tracking.collection import Collection, Recorded

TITLE = "Runs"
INTRODUCTION = (
    "Every run and trial, the newest first: those that run by when they began, then the others by when they ended. "
    "Tick several to compare them; a heading sorts. Robust accuracies can be compared only where data, norm, attack "
    "and noise level ε are the same. Point at the status of a run to read why it ended."
)
LIVE = True
_USUAL: tuple[str, ...] = ("status", "ended", "data", "norm", "method", CLEAN, ROBUST, INTERVAL, "attack")
_USUAL += (LEVEL, "ε_max", "β", "seed", "tags")
_OTHERS = ("message", "samples", "began", "epoch", "done", "time left", "where", "stage", "samples/s", "validation")
_WIDTHS = {"status": 82, "norm": 50, "method": 66, "ε_max": 56, "β": 40, "seed": 46, CLEAN: 72, ROBUST: 72, LEVEL: 56}
_WIDTHS |= {
    "attack": 64,
    "epoch": 62,
    "ended": 94,
    "began": 94,
    "tags": 60,
    "message": 150,
    INTERVAL: 106,
    "where": 190,
}
_LETTER, _ROOM, _WIDEST = 6.8, 16, 260  # pixels of a letter and beside the text; of a column of names


def controls(runs: Collection, state: State) -> list[Control]:
    every = list(runs.runs.values())
    data = experiments(every)
    tags = Counter(tag for run in every for tag in read_notes(run.dir).tags)
    columns = {name: name for name in (*_USUAL, *_OTHERS)}
    usual = tuple(name for name in _USUAL if name != "tags" or tags)
    chosen = some_of(state, "columns", "Columns", columns, list(usual)).value
    return [
        text(state, "text", "Search", "name, note"),
        any_of(state, "status", "Status", _counted(run.status for run in every)),
        any_of(state, "data", "Data set", _counted(data[run.name][0] for run in every)),
        any_of(state, "norm", "Norm", {n: NORM_SIGN.get(n, n) for n in _counted(r.info["norm"] for r in every)}),
        any_of(state, "method", "Method", _counted(run.info["method"] for run in every)),
        any_of(state, "eps", "ε_max", _numbers(run.info["eps_max"] for run in every)),
        any_of(state, "beta", "β", _numbers(_beta(run) for run in every)),
        any_of(state, "tag", "Tag", {tag: f"{tag} ({count})" for tag, count in sorted(tags.items())}),
        Several("columns", "Columns", columns, chosen, "usual", short=True, usual=usual),
    ]


def show(runs: Collection, values: Values) -> list[Part]:
    every = list(runs.runs.values())
    kinds = experiments(every)
    chosen = [run for run in every if _wanted(run, values, kinds[run.name][0])]
    if not chosen:
        return [Note(f"There is no run in {runs.root}." if not every else "No run is like that.")]
    robust = headlines(every, kinds)
    rows = []
    for run in chosen:
        row = _row(run, kinds[run.name])
        if run.name in robust:
            best = robust[run.name]
            row |= {ROBUST: best.accuracy, INTERVAL: interval_text((best.low, best.high)), "samples": best.samples}
            row |= {"attack": best.attack, LEVEL: best.noise}
        rows.append(row)
    # What runs is newer than all that has ended.
    newest = {run.name: _newest(run) for run in chosen}
    rows.sort(key=lambda row: (newest[row["run"]], row["run"]))
    heading = f"{len(rows)} of {len(every)} runs" if len(rows) < len(every) else f"{len(rows)} runs"
    usual = values["columns"] == [name for name in _USUAL if name in values["columns"]]
    filled = {name for row in rows for name, value in row.items() if value not in (None, "")}
    # A column that was asked for stays, even if it is empty.
    columns = ["run", *(name for name in values["columns"] if not usual or name in filled)]
    links = {"run": lambda row: "run" + unparse({"run": [row["run"]]})}
    widths = _WIDTHS | {name: _wide(row[name] for row in rows) for name in ("run", "data")}
    return [Browser("runs", heading, columns, rows, links=links, widths=widths)]


def _newest(run: Recorded) -> tuple[bool, float]:
    """For the order of the list, the newest first."""
    running = run.status == "running"
    return not running, -(began_at(run) if running else ended_at(run))


def _wide(names: Iterable[str]) -> int:
    return min(_WIDEST, _ROOM + round(_LETTER * max(map(len, names))))


def _counted(values: Iterable[Any]) -> dict[str, str]:
    return {str(value): f"{value} ({count})" for value, count in sorted(Counter(values).items())}


def _numbers(values: Iterable[float | None]) -> dict[str, str]:
    return {f"{x:g}": f"{x:g}" for x in sorted({value for value in values if value is not None})}


def _beta(run: Recorded) -> float | None:
    """β, for the only method that has it."""
    return run.info["beta"] if run.info["method"] == "ima" else None


def _wanted(run: Recorded, values: Values, data: str) -> bool:
    beta, tags = _beta(run), read_notes(run.dir).tags
    own = {
        "status": [run.status],
        "data": [data],
        "norm": [run.info["norm"]],
        "method": [run.info["method"]],
        "eps": [f"{run.info['eps_max']:g}"],
        "beta": [] if beta is None else [f"{beta:g}"],
        "tag": list(tags),
    }
    if any(values[name] and not set(values[name]) & set(found) for name, found in own.items()):
        return False
    said = " ".join([run.name, data, run.info["method"], run.message or "", *tags, read_notes(run.dir).text]).lower()
    return all(word in said for word in values["text"].lower().split())


def _row(run: Recorded, kind: tuple[str, str]) -> dict[str, Any]:
    last = (run.epochs_table.slice(max(0, run.epochs_table.num_rows - 1)).to_pylist() or [{}])[0]
    at = progress_of(run)
    bad = run.status in ("failed", "died", "damaged", "interrupted")
    return {
        "run": run.name,
        "status": run.status,
        "data": kind[0],
        "norm": NORM_SIGN.get(kind[1], kind[1]),
        "method": run.info["method"],
        "ε_max": run.info["eps_max"],
        "β": _beta(run),
        CLEAN: run.info["clean_accuracy"],
        "validation": last.get("val_accuracy"),
        "epoch": at.epoch,
        "done": f"{100 * at.share:.0f} %" + (" of the evaluation" if at.stage == "evaluation" else ""),
        "stage": at.stage,
        "time left": at.left,
        "where": at.where,
        "samples/s": at.rate,
        "seed": run.info["seed"],
        "tags": ", ".join(read_notes(run.dir).tags),
        "began": _date(began_at(run)),
        "ended": _date(ended_at(run)) if run.status != "running" else None,
        "message": sentence_of(run) if bad else at.silent or run.message,
    }


def _date(seconds: float) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else None
