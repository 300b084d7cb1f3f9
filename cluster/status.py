"""``python -m cluster.status [NAME …]``: show the state of submitted jobs; follow, cancel and requeue them by name.

    python -m cluster.status                       all jobs in runs/cluster
    python -m cluster.status table11               the rows of one
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
from cluster.records import RECORDS, RowRecord
from cluster.watch import Queue, rows_of
from ima_dist.cli.entry import guarded
from ima_dist.cli.parser import cluster_parser
from ima_dist.config.errors import EXIT_DONE, ConfigError, did_you_mean
from ima_dist.rundir.files import read_json

_COLUMNS = ("job", "state", "node", "start", "epoch", "samples/s", "accuracy", "message")
_LOOK_EVERY = 0.5


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
    """The columns of one row, "-" where a value is not known."""
    record = RowRecord(folder, row["name"])
    result, held = record.result(), queue.get(row["id"])
    state = held["state"] if held else "ENDED"
    message = held["reason"] if held and state == "PENDING" else ""
    if result is not None and (not held or state == "COMPLETING"):
        state = "FINISHED" if result["status"] == EXIT_DONE else "FAILED"
        message = result["message"]
        if message == "cancelled":
            state, message = "CANCELLED", ""
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
    return {
        "state": state,
        "node": (held or {}).get("node") or "-",
        "start": str(newest) if newest >= 0 else "-",
        "epoch": f"{progress['epoch']}/{progress['epochs']}" if progress.get("epochs") else "-",
        "samples/s": f"{speed:,.0f}" if speed else "-",
        "accuracy": f"{accuracy:.4f}" if accuracy else "-",
        "message": message,
    }


def table(lines: list[dict[str, str]]) -> str:
    cells = [dict(zip(_COLUMNS, _COLUMNS, strict=True)), *lines]
    widths = {c: max(len(line[c]) for line in cells) for c in _COLUMNS}
    return "\n".join("  ".join(line[c].ljust(widths[c]) for c in _COLUMNS).rstrip() for line in cells)


def follow(record: RowRecord, job_id: str) -> None:
    """Print the output of the row's run, past and future, until it has a result or has left SLURM."""
    place, queue = 0, Queue()
    while True:
        # Asked before the last look, so that nothing is missed.
        over = record.result() is not None or job_id not in queue.jobs()
        if record.output.exists():
            with record.output.open("rb") as file:
                file.seek(place)
                text = file.read()
            place += len(text)
            print(text.decode(errors="replace"), end="", flush=True)
        if over:
            return
        time.sleep(_LOOK_EVERY)


def requeue(rows: list[tuple[str, Path, dict[str, Any]]]) -> None:
    """Start running or ended jobs again from their last checkpoint. Raises ConfigError."""
    for name, folder, row in rows:
        try:
            slurm.command("scontrol", "requeue", row["id"])
        except ConfigError as error:
            raise ConfigError(
                f"{name} cannot be requeued ({str(error).rstrip('.')}): submit {folder / 'job.yaml'} again with --rows "
                "to continue it from its last checkpoint."
            ) from None


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 if a name is unknown or SLURM refuses."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = cluster_parser("status", __doc__)
    parser.add_argument("names", nargs="*", metavar="[cancel|requeue] NAME", help="jobs, or rows as JOB/ROW")
    parser.add_argument("--follow", action="store_true", help="stream the output of a row")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="DIR", help=f"default: {RECORDS}")
    a = parser.parse_args(argv)
    action = a.names.pop(0) if a.names and a.names[0] in ("cancel", "requeue") else None
    if action and not a.names:
        raise ConfigError(f"Say what to {action}: a job, or a row as JOB/ROW.")
    rows = job_rows(a.records.absolute(), a.names)
    if action == "cancel":
        slurm.command("scancel", *(row["id"] for _, _, row in rows))
    elif action:
        requeue(rows)
    elif a.follow:
        if len(rows) != 1:
            names = ", ".join(name for name, _, _ in rows) or "none"
            raise ConfigError(f"--follow shows one row: name one of {names}.")
        _, folder, row = rows[0]
        follow(RowRecord(folder, row["name"]), row["id"])
    elif not rows:
        print(f"No jobs in {a.records}.")
    else:
        queue = slurm.queue()
        print(table([{"job": name, **describe(folder, row, queue)} for name, folder, row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
