"""One writer for a run: a lock, and a lease by which a process finds out that it has lost it.

The lock keeps a second process out. On a cluster that is not enough: a node that was given up for dead may go on
writing beside the job that replaced it, and some file systems have no locks. So the lock file also says who holds the
run, and a writer looks there before it writes.

fcntl and not filelock: the lock is on the open file that also holds the text, and without locks the run goes on with a
warning, where filelock changes to a file that outlives a killed process.
"""

import contextlib
import fcntl
import os
import platform
import re
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TextIO

from ima_dist.config.errors import ConfigError

# Seconds that a job's next start waits for the lock of the start before, which looks about once a second.
_GRACE = 30.0


class LeaseLost(RuntimeError):
    """Another process has become the writer of this run, so this one must write nothing more. One sentence."""


@dataclass(frozen=True)
class Lease:
    """Who holds a run. job, start: SLURM's job id and restart count, or "" and 0."""

    process: int
    host: str
    mark: str
    job: str = ""
    start: int = 0

    @classmethod
    def mine(cls) -> Self:
        start = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        return cls(os.getpid(), platform.node(), uuid.uuid4().hex[:8], os.environ.get("SLURM_JOB_ID", ""), start)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The lease in a lock file; None if there is none."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            return None
        found = re.fullmatch(r"process (\d+) on (\S*)(?: in job (\S+), start (\d+))? \((\w+)\)\s*", text)
        return cls(int(found[1]), found[2], found[5], found[3] or "", int(found[4] or 0)) if found else None

    def __str__(self) -> str:
        job = f" in job {self.job}, start {self.start}" if self.job else ""
        return f"process {self.process} on {self.host}{job} ({self.mark})"

    def succeeds(self, other: Self | None) -> bool:
        """True if this is a later start of the same job, so that the other one must be a leftover."""
        return other is not None and bool(self.job) and self.job == other.job and self.start > other.start


def check(path: Path, mark: str) -> None:
    """Raise LeaseLost if the lock file names a holder other than ``mark``. An unreadable file names none."""
    holder = Lease.read(path)
    if holder is not None and holder.mark != mark:
        raise LeaseLost(f"{path.parent} has been taken over by {holder}; this process writes nothing more")


@dataclass
class Held:
    """A run that is held: its lock file, and the lease in it."""

    file: TextIO
    lease: Lease

    @property
    def mark(self) -> str:
        return self.lease.mark

    def renew(self) -> None:
        """Take a new mark, so that a process that still writes under the old one finds that it has lost the run."""
        self.lease = replace(self.lease, mark=uuid.uuid4().hex[:8])
        _write(self.file, self.lease)


@contextlib.contextmanager
def held(path: Path) -> Iterator[Held]:
    """Hold the run whose lock file is ``path``.

    Raises ConfigError if the file cannot be written, or another process holds it that is not an earlier start of the
    same SLURM job.
    """
    lease = Lease.mine()
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{path.parent} cannot be written ({reason}): give it back its permissions.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = Lease.read(path)
            if not lease.succeeds(holder):
                writer = holder or "another process"
                what = f"{path.parent} is being written by {writer}"
                raise ConfigError(f"{what}: wait until it ends, or stop it.") from None
            _write(file, lease)
            _wait_for(file)
        except OSError as error:
            # The file system has no locks: go on unguarded, but tell the user.
            warnings.warn(f"{path.parent} cannot be locked ({error.strerror}).", stacklevel=4)
        _write(file, lease)
        yield Held(file, lease)


def _write(file: TextIO, lease: Lease) -> None:
    """Write over what is there, and cut only then: on a full disk the holder of before must stay readable."""
    line = f"{lease}\n".encode()
    try:
        os.pwrite(file.fileno(), line.ljust(os.fstat(file.fileno()).st_size), 0)
        os.fsync(file.fileno())
        os.ftruncate(file.fileno(), len(line))
    except OSError as error:
        error.filename = file.name  # a full disk does not say where
        raise


def _wait_for(file: TextIO) -> None:
    """Wait for the lock, but not for ever: a process that cannot look at its lease cannot write either."""
    until = time.monotonic() + _GRACE
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.2)
