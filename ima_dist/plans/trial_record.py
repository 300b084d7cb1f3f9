"""What a sweep keeps about its trials, beside their run directories: ``trials/NAME.json`` and what they printed."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import IO, Any

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import read_json, write_json


class Record:
    """One trial, called as its run directory. path: a JSON file with its "values", "seed", "status" (running,
    finished, failed, interrupted, or stopped: by ASHA), "message", "epoch", and "began" (Unix time). output: what its
    commands print.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / "trials" / f"{name}.json"
        self.output = self.path.with_suffix(".txt")
        self._lock_path = self.path.with_suffix(".lock")
        self._lock: IO[str] | None = None

    def read(self) -> dict[str, Any]:
        return read_json(self.path) or {}

    def write(self, **entries: Any) -> None:
        write_json(self.path, {**self.read(), **entries})

    def hold(self) -> bool:
        """Whether this trial is ours; another with an equal configuration may be at it, and is waited for."""
        if self._lock is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._lock_path.open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return False
            self._lock = file
        return True

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def earlier_records(root: Path) -> list[dict[str, Any]]:
    """The records in ``root``, oldest first; damaged ones are left out."""
    found = []
    for path in (root / "trials").glob("*.json"):
        with contextlib.suppress(ConfigError, KeyError):
            record = read_json(path) or {}
            found.append({"name": path.stem, **record, "began": record["began"]})
    return sorted(found, key=lambda record: (record["began"], record["name"]))
