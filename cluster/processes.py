"""Processes of this machine, as /proc shows them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends, so that none is lost sight of."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def descendants(pid: int) -> list[int]:
    """Ids of the processes below ``pid``, without those that have ended and only wait to be noticed."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                children.setdefault(int(parent), []).append((int(entry.name), state))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += [child for child, state in below if state != "Z"]
        queue += [child for child, _ in below]
    return found


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def environment(pid: int) -> dict[str, str]:
    """Environment that the process was started with; empty if it is not ours to read."""
    try:
        data = (Path("/proc") / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    return dict(part.split("=", 1) for part in data.decode(errors="replace").split("\0") if "=" in part)


def end(pids: Iterable[int], signum: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def wait_for(condition: Callable[[], object], seconds: float, every: float = 0.1) -> bool:
    """Whether the condition came true within so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(every)
    return True
