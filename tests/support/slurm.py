"""What the tests on a local SLURM share."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import local, processes
from cluster.records import RowRecord
from ima_dist.config.errors import ConfigError
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json
from tests.support.commands import ROOT, wait_for

needs_slurm = pytest.mark.skipif(
    bool(local.missing()) and os.environ.get("CI") != "true",
    reason="needs the Debian packages slurm-wlm and munge",
)


@contextlib.contextmanager
def local_slurm(
    directory: Path, place: Path, prepare: Callable[[Path], None] = lambda directory: None, **environment: str
) -> Iterator[Path]:
    """A local SLURM, and ``place`` as the current directory, from which commands reach it; KEEP_SLURM lets it live.

    prepare: as for ``local.up``.
    """
    local.up(directory, prepare=prepare)
    before, here = dict(os.environ), Path.cwd()
    os.environ.update(local.environment(directory), PYTHONPATH=str(ROOT), **environment)
    os.chdir(place)
    try:
        yield place
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)
        if "KEEP_SLURM" not in os.environ:
            local.down(directory)


def of_job(job_id: str) -> list[int]:
    """Processes that a SLURM job has started and that still live."""
    return processes.started_with("SLURM_JOB_ID", job_id)


def position(run: str | Path) -> tuple[int, int]:
    """(epoch, step) at which a run is training; (0, 0) while it does something else."""
    try:
        now = read_json(RunDir(run).progress_path) or {}
    except ConfigError:
        return 0, 0
    return (now.get("epoch", 0), now.get("step", 0)) if now.get("stage") == "training" else (0, 0)


def training(record: RowRecord, run: str | Path, start: int, steps: int) -> bool:
    """Whether the given start of a job is in the middle of an epoch of so many steps."""
    times = read_json(record.start(start) / "times.json") or {}
    return "first_step" in times and 0 < position(run)[1] < steps


# Seconds, on a machine that may be busy; on an idle one it is less than 15. MLflow's own patience is ten minutes.
LEAVES_WITHIN = 90.0


def seconds_to_leave(record: RowRecord, start: int, heard: str, wait: float) -> float:
    """How long the run of a start goes on after it was told to stop, which the sentence ``heard`` says."""
    wait_for(lambda: heard in record.output.read_text(), wait, "the signal")
    began = time.monotonic()
    wait_for(lambda: (record.start(start) / "over").exists(), wait, "the run to leave")
    return time.monotonic() - began
