"""What a sweep records about its trials, beside their run directories: ``trials/NAME.json`` and what they printed."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import filelock

from ima_dist.config.errors import ConfigError
from ima_dist.plans.sweepfile import Point, Sweep
from ima_dist.rundir.files import read_json, write_json


class Record:
    """The record of one trial, named after its run directory.

    path: a JSON file with the trial's "values", "seed", "status" (running, finished, failed, interrupted, or stopped
    by ASHA), "message", "epoch", and "began" (Unix time). output: the file with what its commands print.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / "trials" / f"{name}.json"
        self.output = self.path.with_suffix(".txt")
        # Ray may call a trial's methods from different threads.
        self._lock = filelock.FileLock(self.path.with_suffix(".lock"), thread_local=False)

    def read(self) -> dict[str, Any]:
        return read_json(self.path) or {}

    def write(self, **entries: Any) -> None:
        write_json(self.path, {**self.read(), **entries})

    def hold(self) -> bool:
        """Take the trial's lock, or keep it; False while another trial with an equal configuration has it."""
        if not self._lock.is_locked:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(filelock.Timeout):
                self._lock.acquire(blocking=False)
        return self._lock.is_locked

    def release(self) -> None:
        self._lock.release(force=True)


def earlier_records(root: Path) -> list[dict[str, Any]]:
    """The records in ``root``, oldest first, each with its "name"; damaged ones are left out."""
    found = []
    for path in (root / "trials").glob("*.json"):
        with contextlib.suppress(ConfigError, KeyError):
            record = read_json(path) or {}
            found.append({"name": path.stem, **record, "began": record["began"]})
    return sorted(found, key=lambda record: (record["began"], record["name"]))


def points_of(sweep: Sweep, records: Iterable[dict[str, Any]]) -> tuple[Point, ...]:
    """The combinations that an open search has tried so far."""
    points = []
    for record in records:
        with contextlib.suppress(ConfigError, KeyError):
            if set(record["values"]) == set(sweep.space):
                points.append(sweep.point(record["values"], record["seed"]))
    return tuple(points)
