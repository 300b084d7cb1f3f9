"""Writing a checkpoint beside its place, so that neither a full disk nor a process that was stopped can harm others."""

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import make_directory

_T = TypeVar("_T")
#: How the names of directories begin that are being written.
WRITING = ".writing-"


class Asides:
    """The directories in which a checkpoint and its margins are written before they are moved to their places.

    Their names have the mark of the run's lease: a process that was stopped in the middle of writing, and goes on when
    its successor has taken over, never writes into a directory of the successor's.
    """

    def __init__(self, run: RunDir, place: Path, margins_place: Path) -> None:
        mark = f"-{run.mark}" if run.mark else ""
        self.checkpoint, self.margins = (p.with_name(f"{WRITING}{p.name}{mark}") for p in (place, margins_place))

    def make(self) -> None:
        """Make both, empty. Raises OSError."""
        self.clear()
        for path in (self.checkpoint, self.margins):
            make_directory(path)

    def clear(self) -> None:
        for path in (self.checkpoint, self.margins):
            shutil.rmtree(path, ignore_errors=True)


def clear_unfinished(run: RunDir) -> None:
    """Remove what an interrupted save has left behind; for the run's only writer. Raises LeaseLost."""
    run.check_lease()
    for directory in (run.checkpoints_dir, run.margins_dir):
        for path in directory.glob(f"{WRITING}*"):
            run.check_lease()  # or it may be what a successor is writing
            shutil.rmtree(path, ignore_errors=True)


def or_lost(run: RunDir, act: Callable[[], _T], look: bool = True) -> _T:
    """``act()``; LeaseLost in place of its error if a successor has taken the run, and removed what was being written.

    look: False where this would end one worker alone without the others' knowledge.
    """
    try:
        return act()
    except Exception:
        if look:
            run.check_lease()
        raise


@contextlib.contextmanager
def naming(file: Path) -> Iterator[Path]:
    """A file to be written: an error of the disk becomes an OSError that names it."""
    try:
        yield file
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(file)) from error
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
