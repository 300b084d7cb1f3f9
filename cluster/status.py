"""``python -m cluster.status [NAME …]``: show the state of submitted jobs; follow, cancel and requeue them by name.

    python -m cluster.status                       all jobs in runs/cluster
    python -m cluster.status table11               the rows of one
    python -m cluster.status table11 --watch       the same as a table that follows what happens
    python -m cluster.status table11/ima_s0 --follow    the output of a row, as it is written
    python -m cluster.status cancel table11        cancel a job, or a row of it
    python -m cluster.status requeue table11/ima_s0   start a row again from its last checkpoint

It reads the run directories and squeue; accounting (sacct) is not needed.
"""

import sys
import time
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.live import follow_table
from cluster.reasons import words_of
from cluster.records import RECORDS, RowRecord, write_private
from cluster.watch import ASK_EVERY, CANCELLED, Queue, add_ask_every, rows_of, without_result
from ima_dist.cli.entry import guarded
from ima_dist.cli.parser import cluster_parser
from ima_dist.cli.progress import format_seconds
from ima_dist.config.errors import EXIT_DONE, EXIT_REQUEUE, ConfigError, did_you_mean
from ima_dist.rundir.files import read_json

_COLUMNS = ("job", "state", "node", "start", "epoch", "samples/s", "accuracy", "message")
_LOOK_EVERY = 0.5
# Rows for which SLURM is asked, one by one, what has become of them.
_MOST_QUESTIONS = 20


def job_rows(records: Path, names: list[str]) -> list[tuple[str, Path, dict[str, Any]]]:
    """(name, folder, row of job.json) of each job or ``job/row`` in names (default: all jobs). Raises ConfigError."""
    jobs = {file.parent.name: file.parent for file in sorted(records.glob("*/job.json"))}
    found = []
    for name in names or list(jobs):
        job, _, row = name.partition("/")
        if job not in jobs:
            raise ConfigError(f"{records} has no job {job!r}{did_you_mean(job, jobs)}.")
        rows = {r["name"]: r for r in rows_of(jobs[job])}
        if row and row not in rows:
            raise ConfigError(f"{job} has no row {row!r}{did_you_mean(row, rows)}: it has {', '.join(rows)}.")
        found += [(f"{job}/{r}", jobs[job], rows[r]) for r in rows if row in ("", r)]
    return found


def describe(folder: Path, row: dict[str, Any], queue: dict[str, dict[str, str]]) -> dict[str, str]:
    """The columns of one row, "-" where a value is not known; further: done (share of the run, or ""), left."""
    record = RowRecord(folder, row["name"])
    result, held = record.result(), queue.get(row["id"])
    state, message = _state(folder, row, held, result)
    try:
        progress = read_json(Path(row["run"]) / "progress.json") or {}
        summary = read_json(Path(row["run"]) / "summary.json") or {}
    except ConfigError as error:
        progress, summary, message = {}, {}, str(error)
    stage = progress.get("stage")
    speed = summary.get("train_samples_per_second") or progress.get("samples_per_second")
    accuracy = summary.get("clean_accuracy") or progress.get("val_accuracy") or progress.get("clean_accuracy")
    if held and stage not in (None, "training", "done") and state == "RUNNING":
        message = str(stage)
    newest = record.newest_start()
    samples, left = progress.get("samples_total"), progress.get("seconds_left")
    return {
        "state": state,
        "node": (held or {}).get("node") or "-",
        "start": str(newest) if newest >= 0 else "-",
        "epoch": f"{progress['epoch']}/{progress['epochs']}" if progress.get("epochs") else "-",
        "samples/s": f"{speed:,.0f}" if speed else "-",
        "accuracy": f"{accuracy:.4f}" if accuracy else "-",
        "message": message,
        "done": str(progress.get("samples_done", 0) / samples) if samples else "",
        "left": format_seconds(left) if left is not None and state == "RUNNING" else "-",
    }


def _state(
    folder: Path, row: dict[str, Any], held: dict[str, str] | None, result: dict[str, Any] | None
) -> tuple[str, str]:
    """State and message of a row. held: what squeue says of it."""
    if result is not None and (not held or held["state"] == "COMPLETING"):
        if result["message"] == CANCELLED:
            return "CANCELLED", ""
        return ("FINISHED" if result["status"] == EXIT_DONE else "FAILED"), result["message"]
    if held:
        return held["state"], words_of(held["reason"], row["id"]) if held["state"] == "PENDING" else ""
    if not row["id"]:
        return "HELD BACK", "SLURM takes no more jobs now: give the command of the submission again later"
    return "ENDED", without_result(folder, row)


def settle(rows: list[tuple[str, Path, dict[str, Any]]], queue: dict[str, dict[str, str]], asked: set[str]) -> None:
    """Write a result for rows that were cancelled while they waited, if SLURM still knows that.

    asked: ids of rows for which it was asked; grows.
    """
    for _, folder, row in rows:
        record = RowRecord(folder, row["name"])
        if not row["id"] or row["id"] in queue or row["id"] in asked or len(asked) >= _MOST_QUESTIONS:
            continue
        if record.result() is None and record.newest_start() < 0:
            asked.add(row["id"])
            if slurm.last_state(row["id"]).startswith("CANCELLED"):
                _write_cancelled(record, row)


def _write_cancelled(record: RowRecord, row: dict[str, Any]) -> None:
    write_private(record.result_path, {"status": EXIT_REQUEUE, "message": CANCELLED, "run": row["run"]})


def cancel(rows: list[tuple[str, Path, dict[str, Any]]]) -> None:
    """Cancel jobs; rows that had not started get their result here. Raises ConfigError."""
    queue = slurm.queue()
    if ids := [row["id"] for _, _, row in rows if row["id"]]:
        slurm.command("scancel", *ids)
    for _, folder, row in rows:
        record = RowRecord(folder, row["name"])
        waiting = not row["id"] or queue.get(row["id"], {}).get("state") == "PENDING"
        if waiting and record.newest_start() < 0 and record.result() is None:
            _write_cancelled(record, row)


def table(lines: list[dict[str, str]]) -> str:
    cells = [dict(zip(_COLUMNS, _COLUMNS, strict=True)), *lines]
    widths = {c: max(len(line[c]) for line in cells) for c in _COLUMNS}
    return "\n".join("  ".join(line[c].ljust(widths[c]) for c in _COLUMNS).rstrip() for line in cells)


def follow(folder: Path, row: dict[str, Any], ask_every: float = ASK_EVERY) -> None:
    """Print the output of the row's run, past and future, until it has a result or has left SLURM."""
    record, place, queue, said = RowRecord(folder, row["name"]), 0, Queue(ask_every), ""
    while True:
        # Asked before the last look, so that nothing is missed.
        held = queue.jobs()
        job = (held or {}).get(row["id"])
        over = record.result() is not None or (held is not None and job is None)
        if not record.output.exists():
            waits = words_of(job["reason"], row["id"]) if job and job["state"] == "PENDING" else ""
            if waits and waits != said:
                print(f"PENDING: {waits}", file=sys.stderr, flush=True)
                said = waits
        if record.output.exists():
            with record.output.open("rb") as file:
                file.seek(place)
                text = file.read()
            place += len(text)
            print(text.decode(errors="replace"), end="", flush=True)
        if over:
            if record.result() is None:
                print(without_result(folder, row), file=sys.stderr, flush=True)
            return
        time.sleep(_LOOK_EVERY)


def requeue(rows: list[tuple[str, Path, dict[str, Any]]]) -> None:
    """Start running or ended jobs again from their last checkpoint. Raises ConfigError."""
    for name, folder, row in rows:
        if not row["id"]:
            raise ConfigError(f"{name} is not submitted yet: give the command of the submission again.")
        try:
            slurm.command("scontrol", "requeue", row["id"])
        except ConfigError as error:
            raise ConfigError(
                f"{name} cannot be requeued ({str(error).rstrip('.')}): submit {folder / 'job.yaml'} again with --rows "
                "to continue it from its last checkpoint."
            ) from None


def _lines(
    rows: list[tuple[str, Path, dict[str, Any]]], queue: dict[str, dict[str, str]] | None, asked: set[str]
) -> list[dict[str, str]]:
    """The table's lines. queue: None as long as SLURM has not answered. asked: as for ``settle``."""
    if queue is not None:
        settle(rows, queue, asked)
    return [{"job": name, **describe(folder, row, queue or {})} for name, folder, row in rows]


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 if a name is unknown or SLURM refuses."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = cluster_parser("status", __doc__)
    parser.add_argument("names", nargs="*", metavar="[cancel|requeue] NAME", help="jobs, or rows as JOB/ROW")
    parser.add_argument("--follow", action="store_true", help="stream the output of a row")
    parser.add_argument("--watch", action="store_true", help="keep the table up to date until all rows have ended")
    add_ask_every(parser)
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="DIR", help=f"default: {RECORDS}")
    a = parser.parse_args(argv)
    action = a.names.pop(0) if a.names and a.names[0] in ("cancel", "requeue") else None
    if action and not a.names:
        raise ConfigError(f"Say what to {action}: a job, or a row as JOB/ROW.")
    rows = job_rows(a.records.absolute(), a.names)
    if action == "cancel":
        cancel(rows)
    elif action:
        requeue(rows)
    elif a.follow:
        if len(rows) != 1:
            names = ", ".join(name for name, _, _ in rows) or "none"
            raise ConfigError(f"--follow shows one row: name one of {names}.")
        _, folder, row = rows[0]
        follow(folder, row, a.ask_every)
    elif not rows:
        print(f"No jobs in {a.records}.")
    elif a.watch:
        held, asked = Queue(a.ask_every), set[str]()
        follow_table(lambda: _lines(job_rows(a.records.absolute(), a.names), held.jobs(), asked), table)
    else:
        print(table(_lines(rows, slurm.queue(), set())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
