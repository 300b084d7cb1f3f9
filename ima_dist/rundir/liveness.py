"""Whether the process that writes a run still lives, told from its lease and from when it last wrote anything.

A process that is killed cannot say so: summary.json then says "running" for ever.
"""

import contextlib
import os
import platform
import time

import psutil

from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.lease import Lease

RUNNING, DIED = "running", "died"
#: Seconds without news after which a run on another machine has died: nothing there can be asked. Workers write
#: progress.json about once a second, but the start of a large run may take minutes.
SILENT = 900.0
# News that is younger than this was written by somebody.
_FRESH = 10.0
# By so much a process may seem to have begun after it took the lease: clocks of the disk and of the kernel differ.
_CLOCKS = 5.0


def death(dir: RunDir, now: float | None = None) -> str | None:
    """How we know that the writer of a run that says "running" has died, as a sentence; None if it may be alive."""
    news = silence(dir, now)
    if news is None or news < _FRESH:
        return None
    lease = Lease.read(dir.lock_path)
    who = "Its process" if lease is None else f"Its process {lease.process} on {lease.host}"
    if lease is not None and lease.host == platform.node():
        return f"{who} ended without a word: it was killed, or the machine was." if _ended(dir, lease) else None
    return f"{who} has written nothing for {_minutes(news)}." if news > SILENT else None


def silence(dir: RunDir, now: float | None = None) -> float | None:
    """Seconds since the run last wrote about itself; None if it never did."""
    times = []
    for path in (dir.progress_path, dir.summary_path, dir.history_path, dir.lock_path):
        with contextlib.suppress(OSError):
            times.append(os.stat(path).st_mtime)
    return max(0.0, (time.time() if now is None else now) - max(times)) if times else None


def _ended(dir: RunDir, lease: Lease) -> bool:
    """Whether the process of a lease on this machine is gone, also if another has its number by now."""
    try:
        began = psutil.Process(lease.process).create_time()
        return began > dir.lock_path.stat().st_mtime + _CLOCKS
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):
        return False


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} days"
