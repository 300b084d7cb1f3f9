"""Follow submitted rows to their end. Works without accounting (sacct)."""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import slurm
from cluster.reasons import words_of
from cluster.records import RowRecord, write_private
from ima_dist.config.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, ConfigError
from ima_dist.rundir.files import read_json

if TYPE_CHECKING:
    from cluster.submission import Submission

LOOK_EVERY = 1.0
# Sites ask that squeue is not called more often than about once in half a minute.
ASK_EVERY = 30.0
# The controller may be silent for so long before that is reported.
_SILENCE = 600.0
# After a job has left SLURM's queue its result file may take this long to be seen on shared storage.
_FILE_SECONDS = 60.0
_LAST_LINES = 3
#: The message of the result of a row that somebody has cancelled.
CANCELLED = "cancelled"


def add_ask_every(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ask-every", type=float, default=ASK_EVERY, metavar="SECONDS",
        help=f"when following: call squeue no more often than this (default: {ASK_EVERY:g})",
    )  # fmt: skip


class Queue:
    """SLURM's queue, asked now and then, and again later if there is no answer. answers: how many there were."""

    def __init__(self, every: float = ASK_EVERY) -> None:
        self.answers = 0
        self._every = every
        self._jobs: dict[str, dict[str, str]] | None = None
        self._asked, self._answered = -float("inf"), time.monotonic()

    def jobs(self) -> dict[str, dict[str, str]] | None:
        """The user's jobs, as of the last answer; None before the first. Raises ConfigError after long silence."""
        now = time.monotonic()
        if now - self._asked > self._every:
            self._asked = now
            try:
                self._jobs, self._answered = slurm.queue(), now
                self.answers += 1
            except ConfigError:
                if now - self._answered > _SILENCE:
                    raise
        return self._jobs


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows in a submission's job.json: name, command, run and SLURM's id, "" for one that it has not taken yet."""
    return list((read_json(folder / "job.json") or {})["rows"])


def wait(
    folder: Path,
    on_change: Callable[[str, str], Any] = lambda row, state: None,
    ask_every: float = ASK_EVERY,
    more: Callable[[Collection[str]], Any] = lambda ended: None,
) -> dict[str, dict[str, Any]]:
    """Wait until every row has a result, or has left SLURM without one; row -> {"status", "message", "run"}.

    ``on_change`` is called with a row's name and its new state; ``more``, after each answer of SLURM, with the names of
    the rows that have ended: it may submit others. Raises ConfigError if SLURM cannot be reached for minutes.
    """
    queue, answers = Queue(ask_every), 0
    results: dict[str, dict[str, Any]] = {}
    states: dict[str, str] = {}
    since: dict[str, int] = {}  # how many answers there were when a row was first seen to be submitted
    gone: dict[str, float] = {}
    while True:
        rows = rows_of(folder)
        since = {row["name"]: since.get(row["name"], queue.answers) for row in rows if row["id"]}
        held = queue.jobs() or {}
        for row in rows:
            name, job = row["name"], held.get(row["id"])
            if name in results:
                continue
            result = RowRecord(folder, name).result()
            asked = name in since and queue.answers > since[name]
            if job is not None or not asked:
                gone.pop(name, None)
            elif result is None and time.monotonic() - gone.setdefault(name, time.monotonic()) > _FILE_SECONDS:
                result = how_it_left(folder, row)
            state = state_of(row, job, result, asked)
            if result is not None:
                results[name] = {"run": row["run"], **result}
            if states.get(name) != state:
                states[name] = state
                on_change(name, state)
        if len(results) == len(rows):
            return results
        if queue.answers > answers:
            answers = queue.answers
            more(results.keys())
        time.sleep(LOOK_EVERY)


def state_of(row: dict[str, Any], job: dict[str, str] | None, result: dict[str, Any] | None, asked: bool) -> str:
    """A row's state in words. job: of squeue, which was ``asked`` since the row was submitted."""
    if result is not None:
        return "finished" if result["status"] == EXIT_DONE else f"ended: {result['message']}"
    if not row["id"]:
        return "held back until SLURM takes more jobs"
    if job is None:
        return "has left SLURM's queue" if asked else "submitted"
    return f"PENDING: {words_of(job['reason'], row['id'])}" if job["state"] == "PENDING" else job["state"]


def how_it_left(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """The result of a row that has left SLURM without writing one: cancelled while it waited, or lost."""
    record = RowRecord(folder, row["name"])
    if record.newest_start() < 0 and slurm.last_state(row["id"]).startswith("CANCELLED"):
        result = {"status": EXIT_REQUEUE, "message": CANCELLED, "run": row["run"]}
        write_private(record.result_path, result)
        return result
    return {"status": EXIT_FAILED, "message": without_result(folder, row)}


def without_result(folder: Path, row: dict[str, Any]) -> str:
    """Where to look, and the last lines there, for a row that left SLURM without a result."""
    output, log = RowRecord(folder, row["name"]).output, folder / f"{row['id']}_0_log.out"
    # What failed before the row's own output began is in submitit's.
    where = output if output.exists() or not log.exists() else log
    if not where.exists():
        return f"it left SLURM without a result before it started: cancelled, or see sacct -j {row['id']}"
    with where.open("rb") as file:
        file.seek(max(0, where.stat().st_size - 4096))
        text = file.read().decode(errors="replace")
    last = [" ".join(line.split()) for line in text.splitlines() if line.strip()][-_LAST_LINES:]
    return f"it left SLURM without a result: see {where}" + (f", which ends: {' / '.join(last)}" if last else "")


def watch(begun: "Submission | Path", ask_every: float = ASK_EVERY) -> int:
    """Report every change until all rows have ended, then show their table; the worst exit status.

    begun: what was submitted, or its folder. Rows that SLURM has not taken yet are submitted when it has room.
    """
    folder = begun if isinstance(begun, Path) else begun.plan.folder

    def say(row: str, state: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {row}: {state}", flush=True)

    def more(ended: Collection[str]) -> None:
        if not isinstance(begun, Path) and begun.held_back() and (sent := begun.send(ended)):
            print(f"{time.strftime('%H:%M:%S')} submitted {len(sent)} more rows: {sent[0]} to {sent[-1]}", flush=True)

    results = wait(folder, say, ask_every, more)
    worst = max(result["status"] for result in results.values())
    if worst != EXIT_DONE:
        return int(worst)
    module, *table = (read_json(folder / "job.json") or {})["table"]
    if module == "ima_dist.sweep":
        # Every trial has finished, so this only shows the table.
        return subprocess.run([sys.executable, "-m", module, *table], check=False).returncode
    rows = rows_of(folder)
    names = ",".join(dict.fromkeys(_option(row["command"], "--rows") for row in rows))
    for seed in dict.fromkeys(_option(row["command"], "--seed") for row in rows):
        words = [*table, "--rows", names, *(["--seed", seed] if seed else [])]
        subprocess.run([sys.executable, "-m", module, *words], check=False)
    return EXIT_DONE


def _option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1] if name in words else ""
