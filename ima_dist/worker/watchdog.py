"""A worker that stands still leaves its stack behind."""

from __future__ import annotations

import contextlib
import faulthandler
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from torch import nn

from ima_dist.core import distributed
from ima_dist.rundir.directory import RunDir

# Seconds between two signs of life; each costs some microseconds.
_BEAT_EVERY = 1.0


@contextlib.contextmanager
def watched(run: RunDir, network: nn.Module, seconds: float) -> Iterator[None]:
    """Write all stacks of this process to ``stacks/worker-RRRR.txt`` when ``network`` has not been run for
    ``seconds``, be it stuck in Python, in a collective or in the driver of a card.

    Every pass through the network, whichever part of the program wants it, is a sign of life. One process
    watches one network at a time.
    """
    path = run.stacks_dir / f"worker-{distributed.rank():04d}.txt"
    last = 0.0
    with _opened(path) as file:

        def beat(*_: object) -> None:
            nonlocal last
            if time.monotonic() - last >= _BEAT_EVERY:
                last = time.monotonic()
                # Its timer is a thread without Python's lock, so code that never gives it back is seen too.
                faulthandler.dump_traceback_later(seconds, file=file)

        handle = network.register_forward_pre_hook(beat)
        beat()
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            handle.remove()
    if not path.stat().st_size:
        path.unlink()
    with contextlib.suppress(OSError):  # another worker's is there
        path.parent.rmdir()


def _opened(path: Path) -> TextIO:
    """The file, in a directory that a worker which has just ended may be removing."""
    while True:
        # Not exist_ok: that looks again after it has failed, when the directory may be gone.
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir()
        with contextlib.suppress(FileNotFoundError):
            return path.open("w")
