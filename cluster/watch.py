"""Follow submitted rows to their end. Works without accounting (sacct)."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.records import RowRecord
from ima_dist.config.errors import EXIT_DONE, EXIT_FAILED, ConfigError
from ima_dist.rundir.files import read_json

LOOK_EVERY = 1.0
# Sites ask that squeue is not called more often than about once in half a minute.
_ASK_EVERY = 30.0
# The controller may be silent for so long before that is reported.
_SILENCE = 300.0
# After a job has left SLURM's queue its result file may take this long to be seen on shared storage.
_FILE_SECONDS = 60.0


class Queue:
    """SLURM's queue, asked now and then, and again later if there is no answer."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, str]] | None = None
        self._asked = self._answered = 0.0

    def jobs(self) -> dict[str, dict[str, str]]:
        """The user's jobs, as of the last answer. Raises ConfigError if there is none, at first or for minutes."""
        now = time.monotonic()
        if self._jobs is None or now - self._asked > _ASK_EVERY:
            self._asked = now
            try:
                self._jobs, self._answered = slurm.queue(), now
            except ConfigError:
                if self._jobs is None or now - self._answered > _SILENCE:
                    raise
        return self._jobs


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows in a submission's job.json: name, command, run and SLURM's id."""
    return list((read_json(folder / "job.json") or {})["rows"])


def wait(folder: Path, on_change: Callable[[str, str], Any] = lambda row, state: None) -> dict[str, dict[str, Any]]:
    """Wait until every row has a result, or has left SLURM without one; row -> {"status", "message", "run"}.

    ``on_change`` is called with a row's name and its new state. Raises ConfigError if SLURM cannot be reached.
    """
    rows, queue = rows_of(folder), Queue()
    results: dict[str, dict[str, Any]] = {}
    states: dict[str, str] = {}
    gone: dict[str, float] = {}
    while True:
        held = queue.jobs()
        for row in rows:
            name, job = row["name"], held.get(row["id"])
            if name in results:
                continue
            result = RowRecord(folder, name).result()
            if job:
                gone.pop(name, None)
            elif result is None and time.monotonic() - gone.setdefault(name, time.monotonic()) > _FILE_SECONDS:
                result = {"status": EXIT_FAILED, "message": _no_result(folder, row)}
            state = _state(job, result)
            if result is not None:
                results[name] = {"run": row["run"], **result}
            if states.get(name) != state:
                states[name] = state
                on_change(name, state)
        if len(results) == len(rows):
            return results
        time.sleep(LOOK_EVERY)


def _state(job: dict[str, str] | None, result: dict[str, Any] | None) -> str:
    if result is not None:
        return "finished" if result["status"] == EXIT_DONE else f"ended: {result['message']}"
    if job is None:
        return "ended"
    return f"{job['state']} ({job['reason']})" if job["state"] == "PENDING" else job["state"]


def _no_result(folder: Path, row: dict[str, Any]) -> str:
    output, log = RowRecord(folder, row["name"]).output, folder / f"{row['id']}_0_log.out"
    # What failed before the row's own output began is in submitit's.
    where = output if output.exists() or not log.exists() else log
    return f"it left SLURM without a result: see {where}"


def watch(folder: Path) -> int:
    """Report every change until all rows have ended, then show their table; the worst exit status."""
    results = wait(folder, lambda row, state: print(f"{time.strftime('%H:%M:%S')} {row}: {state}", flush=True))
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
