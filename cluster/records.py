"""Files of a submitted job, on storage that all nodes share: ``runs/cluster/NAME/`` (mode 0700).

job.json, job.yaml         what was submitted, and the job file as it was then
code/                      the code that its jobs run
12_submission.sh, *.pkl    what sbatch got, and submitit's files
requeue-12_3               asks the batch script of an element to have it requeued
ROW/output.txt             output of the row's run
ROW/tries.json             starts and failures
ROW/result.json            exit status, once it is known
ROW/refused.json           the result, if SLURM refuses what the batch script asks for
ROW/start-N/               of the N-th start: address, token, Ray's output, times.json
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import read_json, write_json

RECORDS = Path("runs/cluster")
#: In the environment of a job whose batch script requeues it when asked to: the file that asks, with the row's name.
REQUEUE_FILE = "IMA_DIST_REQUEUE_FILE"


@dataclass(frozen=True)
class Row:
    """One run of a job. command: words after the interpreter. run: its run directory."""

    name: str
    command: list[str]
    run: str


class RowRecord:
    """The files of one row."""

    def __init__(self, folder: Path, row: str) -> None:
        self.path = folder / row
        self.output = self.path / "output.txt"
        self.result_path = self.path / "result.json"
        self.tries_path = self.path / "tries.json"

    def start(self, number: int) -> Path:
        return self.path / f"start-{number}"

    def newest_start(self) -> int:
        """Number of the newest start; -1 before the first."""
        numbers = [path.name.removeprefix("start-") for path in self.path.glob("start-*")]
        return max((int(number) for number in numbers if number.isdigit()), default=-1)

    def result(self) -> dict[str, Any] | None:
        return read_json(self.result_path)

    def say(self, text: str) -> None:
        """Append a line to the row's output, in one write, because several processes append to it."""
        with contextlib.suppress(OSError), self.output.open("ab", buffering=0) as file:
            file.write(f"[cluster] {text}\n".encode())


def progress_of(run: Path) -> list[Any]:
    """What a run, or a sweep's directory of runs, has saved; it changes whenever the run makes progress.

    [newest checkpoint, number of evaluation files and a sweep's checkpoints, number of curves]
    """
    newest = max((path.name for path in run.glob("checkpoints/epoch=*")), default="")
    parts = sum(1 for pattern in ("evaluation/*/*", "*/checkpoints/epoch=*") for _ in run.glob(pattern))
    curves = 0
    with contextlib.suppress(OSError, ConfigError):
        curves = len((read_json(run / "summary.json") or {}).get("curves", []))
    return [newest, parts, curves]


def write_private(path: Path, obj: dict[str, Any]) -> None:
    os.makedirs(path.parent, mode=0o700, exist_ok=True)
    write_json(path, obj)
