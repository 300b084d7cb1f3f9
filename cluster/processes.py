"""Processes of this machine."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from ima_dist.launch.signals import blocked

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends, so that none is lost sight of."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def descendants(pid: int) -> list[int]:
    """Ids of the processes below ``pid``, without those that have ended and only wait to be noticed."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True) if alive(child.pid)]
    return []


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(psutil.Process(pid).status()) != psutil.STATUS_ZOMBIE
    return False


def environment(pid: int) -> dict[str, str]:
    """Environment that the process was started with; empty if it is not ours to read."""
    with contextlib.suppress(psutil.Error, OSError):
        return dict(psutil.Process(pid).environ())
    return {}


def started_with(variable: str, value: str) -> list[int]:
    """Ids of the other processes that are alive and were started with this variable in their environment."""
    others = set(psutil.pids()) - {os.getpid()}
    return [pid for pid in others if environment(pid).get(variable) == value and alive(pid)]


def program(pid: int) -> str:
    """File name of the program that a process runs; "" if it is not ours to know."""
    with contextlib.suppress(psutil.Error):
        return os.path.basename(psutil.Process(pid).exe())
    return ""


def start(words: list[str], env: dict[str, str], log: Path, *kept_back: signal.Signals) -> subprocess.Popen[bytes]:
    """Start a process that appends its output to a file, and that these signals (default: all) do not reach."""
    with log.open("ab") as output, blocked(*kept_back):
        return subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def end(pids: Iterable[int], signum: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def end_all(find: Callable[[], list[int]], seconds: float, every: float = 0.1) -> None:
    """End the processes that ``find`` returns, again every ``seconds`` until it returns none."""
    while left := find():
        end(left)
        wait_for(lambda left=left: not any(map(alive, left)), seconds, every)  # type: ignore[misc]


def wait_for(condition: Callable[[], object], seconds: float, every: float = 0.1) -> bool:
    """Whether the condition came true within so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(every)
    return True
