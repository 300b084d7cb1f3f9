"""What a view reads from a run directory beyond the data set."""

import functools
import os
from pathlib import Path

from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run

Stamps = tuple[tuple[int, int] | None, ...]


def opened(run: Run) -> Run:
    """The run with what its directory holds now. The last few are kept, as one page asks several times."""
    dir = run.dir
    files = (dir.config_path, dir.summary_path, dir.history_path, dir.margins_dir, dir.outcomes_path, dir.audit_path)
    examples = (dir.boundary_path, dir.noisy_path, dir.extremes_path)
    return _opened(dir.path, run.name, tuple(map(_stamp, (*files, *examples))))


@functools.lru_cache(maxsize=8)
def _opened(path: Path, name: str, stamps: Stamps) -> Run:
    return Run(RunDir(path), name)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
        return found.st_mtime_ns, found.st_size
    except OSError:
        return None
