"""Signals that ask the driver to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

# Seconds after which a second signal ends the driver at once, and that Ray has for its own end.
_IMPATIENT_AFTER, LAST_WAIT = 1.0, 20.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Stopped(BaseException):
    """The driver was told to stop before there was anything to be saved."""


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """While there is nothing to be saved, a signal to stop raises Stopped. Main thread only."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped

    with _handlers(stop):
        yield


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {s: signal.signal(s, handler) for s in STOP_SIGNALS}
    try:
        yield
    finally:
        for s, previous in before.items():
            signal.signal(s, previous)


@contextlib.contextmanager
def signals_for_us_alone() -> Iterator[None]:
    """Ray's processes, started inside, never get the signals that ask the driver to stop.

    SLURM and ``timeout`` send a signal to all processes of a job: it would end Ray before the workers have
    written their checkpoint. A blocked signal stays blocked in the processes that one starts. Ray also
    replaces the driver's own handlers, which are put back.
    """
    before = {s: signal.getsignal(s) for s in STOP_SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def handing_on_signals(stop: Path, before_the_end: Callable[[], None]) -> Iterator[None]:
    """A signal to stop makes the file ``stop``, at which those who work look; a later one ends this process at once,
    with status 75, after ``before_the_end()``. Main thread only.
    """
    first: float | None = None

    def ask(signum: int, frame: FrameType | None) -> None:
        # Not by raising: the workers would have no time for a checkpoint.
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            stop.touch()
            print("Stopping: saving what has been done.", file=sys.stderr, flush=True)
        elif now - first > _IMPATIENT_AFTER:
            # A hung worker would keep a polite driver waiting for ever.
            print("Stopped at once; the last checkpoint is kept.", file=sys.stderr, flush=True)
            before_the_end()
            threading.Thread(target=_end_now, daemon=True).start()

    with _handlers(ask):
        yield


def _end_now() -> None:
    import ray

    threading.Timer(LAST_WAIT, os._exit, [75]).start()
    with contextlib.suppress(Exception):
        ray.shutdown()
    os._exit(75)
