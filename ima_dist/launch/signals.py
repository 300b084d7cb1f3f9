"""Signals that ask the driver to stop. Imports neither Ray nor torch."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from ima_dist.config.errors import EXIT_REQUEUE, complain

# Seconds after which a second signal ends the driver at once, and that shutting Ray down may take.
_IMPATIENT_AFTER, LAST_WAIT = 1.0, 20.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Stopped(BaseException):
    """The driver was asked to stop while there was nothing to save.

    sentence, status: how the command ends, the shell's status unless there is something to continue.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signum)
        self.sentence, self.status = "Stopped.", 128 + signum


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """While there is nothing to save, a signal to stop raises Stopped. Main thread only."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum)

    with _handlers(stop):
        yield


def ignore() -> None:
    """From here on a signal to stop has no effect."""
    for s in STOP_SIGNALS:
        signal.signal(s, signal.SIG_IGN)


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None] | None = None) -> Iterator[None]:
    """Restores the handlers of signals to stop at the end; until then they are ``handler``, if it is given."""
    before = {s: signal.getsignal(s) for s in STOP_SIGNALS}
    try:
        for s in STOP_SIGNALS if handler else ():
            signal.signal(s, handler)
        yield
    finally:
        for s, previous in before.items():
            signal.signal(s, previous)


@contextlib.contextmanager
def blocked(*signals: signal.Signals) -> Iterator[None]:
    """Processes started inside never receive these signals (default: all that ask to stop).

    SLURM and ``timeout`` send a signal to all processes of a job, which would end Ray before the workers have written
    their checkpoint. A blocked signal stays blocked in child processes.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals or STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def starting_ray() -> Iterator[None]:
    """As ``blocked``; also restores the driver's signal handlers, which Ray replaces. Main thread only."""
    with blocked(), _handlers():
        yield


@contextlib.contextmanager
def forwarding_signals(
    stop: Path, before_exit: Callable[[], None], nothing_to_save: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """A signal to stop creates the file ``stop``, which the workers poll.

    A second signal, or the first if there is ``nothing_to_save``, ends this process with status 75, after
    ``before_exit()`` if that ends within LAST_WAIT. Main thread only.
    """
    first: float | None = None

    def ask(signum: int, frame: FrameType | None) -> None:
        # Raising here would leave the workers no time for a checkpoint.
        nonlocal first
        now = time.monotonic()
        if first is None and nothing_to_save():
            first = now
            complain("Stopped before the training began; nothing is lost.")
            threading.Thread(target=_exit_now, args=(before_exit,), daemon=True).start()
        elif first is None:
            try:
                stop.touch()
            except OSError as error:
                reason = f"{stop} cannot be written ({error.strerror})"
                complain(f"Stopped without asking the workers for a checkpoint, as {reason}; the last one is kept.")
                threading.Thread(target=_exit_now, args=(before_exit,), daemon=True).start()
            else:
                complain("Stopping: saving a checkpoint first.")
            first = now
        elif now - first > _IMPATIENT_AFTER:
            # Otherwise one hung worker would keep the driver waiting for ever.
            complain("Stopped immediately; the last checkpoint is kept.")
            threading.Thread(target=_exit_now, args=(before_exit,), daemon=True).start()

    with _handlers(ask):
        yield


@contextlib.contextmanager
def heeding_signals(stop: Path, nothing_to_save: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """As ``forwarding_signals``, in a program or notebook of the user's: what would end the process raises instead.

    A thread other than the main one receives no signals, and nothing changes there.
    """
    first: float | None = None
    received.clear()

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        received.append(signum)
        if nothing_to_save() or (first is not None and now - first > _IMPATIENT_AFTER):
            raise ending(signum)
        if first is None:
            first = now
            stop.touch()
            complain("Stopping: saving a checkpoint first.")

    with _handlers(ask) if threading.current_thread() is threading.main_thread() else contextlib.nullcontext():
        yield


#: The signals that have arrived inside the last ``heeding_signals``.
received: list[int] = []


def ending(signum: int) -> BaseException:
    """What ends a Python program on this signal: KeyboardInterrupt on Ctrl-C, else an exit to be requeued."""
    return KeyboardInterrupt() if signum == signal.SIGINT else SystemExit(EXIT_REQUEUE)


def _exit_now(before_exit: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # a process that may have no further thread still ends
        threading.Timer(LAST_WAIT, os._exit, [EXIT_REQUEUE]).start()
    with contextlib.suppress(Exception):
        before_exit()
    os._exit(EXIT_REQUEUE)
