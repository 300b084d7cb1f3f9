"""A worker that makes no progress leaves its stack trace behind."""

import contextlib
import faulthandler
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch
from torch import nn

from ima_dist.core import distributed
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.lease import LeaseLost

# The timer is set again at most this often, in seconds; each time costs some microseconds.
_BEAT_EVERY = 1.0


@contextlib.contextmanager
def watched(run: RunDir, network: nn.Module, seconds: float) -> Iterator[None]:
    """Write all stacks of this process to ``stacks/worker-RRRR.txt`` if ``network`` does not run for ``seconds``.

    Every forward pass, whichever part of the program asks for it, counts as progress, so the process may hang in
    Python, in a collective or in a GPU's driver. One process watches one network at a time.
    """
    path = run.stacks_dir / f"worker-{distributed.rank():04d}.txt"
    try:
        opened = _opened(path)
    except OSError:  # no room for it, but the run goes on
        opened = open(os.devnull, "w")  # noqa: SIM115
    with opened as file:
        beat = _Beat(seconds, file)
        handle = network.register_forward_pre_hook(beat)
        beat()
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            handle.remove()
    # No reason to end a run; or another worker's file is there.
    with contextlib.suppress(OSError, LeaseLost):
        if not path.stat().st_size:
            run.remove(path)
        path.parent.rmdir()


class _Beat:
    """A forward pre-hook that sets the timer again.

    No closure, because torch 2.7 compiles anew whenever the value in a closure's cell has changed.
    """

    def __init__(self, seconds: float, file: TextIO) -> None:
        self.seconds, self.file, self.last = seconds, file, 0.0

    def __call__(self, *_: object) -> None:
        if torch.compiler.is_compiling():  # compiled steps (--compile) run without it, all other passes with it
            return
        if time.monotonic() - self.last >= _BEAT_EVERY:
            self.last = time.monotonic()
            # Its timer is a thread that needs no GIL, so code that never releases the GIL is caught too.
            faulthandler.dump_traceback_later(self.seconds, file=self.file)


def _opened(path: Path) -> TextIO:
    """The file, opened for writing, in a directory that another worker may be removing as it ends."""
    while True:
        # Not exist_ok: it checks after it has failed, when the directory may be gone.
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir()
        with contextlib.suppress(FileNotFoundError):
            return path.open("w")
