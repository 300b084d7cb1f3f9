"""A run whose process was killed is said to have died; one that may be alive is not."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from ima_dist.rundir.finding import finished_runs
from ima_dist.rundir.liveness import SILENT, death
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection, update
from tests.support.summaries import make_run


def running(path: Path, process: int, host: str, silent: float = 60.0) -> RunDir:
    """A run that says "running", written by this process, and ``silent`` for so many seconds."""
    run = make_run(path, "moons", {})
    write_json(run.summary_path, {"status": "running"})
    write_json(run.progress_path, {"stage": "training"})
    run.lock_path.write_text(f"process {process} on {host} (0a1b2c3d)\n")
    aged(run, silent)
    return run


def aged(run: RunDir, seconds: float) -> None:
    then = time.time() - seconds
    for path in (run.progress_path, run.summary_path, run.lock_path):
        os.utime(path, (then, then))


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_killed_process_on_this_machine_is_known(tmp_path, ended):
    run = running(tmp_path / "run", ended, platform.node())
    assert (
        death(run)
        == f"Its process {ended} on {platform.node()} ended without a word: it was killed, or the machine was."
    )
    assert Run(run).status == "died"
    assert "ended without a word" in (Run(run).message or "")
    aged(run, 1.0)  # somebody has just written
    assert Run(run).status == "running"
    assert Run(run).message is None


def test_a_living_process_may_be_silent(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        run = running(tmp_path / "run", child.pid, platform.node(), 0.0)
        then = time.time() + 10 * SILENT
        assert death(run, then) is None
        aged(run, 10 * SILENT)  # the lease is much older than the process: its number was given again
        assert death(run) is not None
    finally:
        child.communicate()


def test_on_another_machine_silence_tells(tmp_path):
    run = running(tmp_path / "run", 4711, "v100-3", SILENT - 60)
    assert Run(run).status == "running"
    aged(run, 3 * 3600)
    assert death(run) == "Its process 4711 on v100-3 has written nothing for 3 h."
    run.lock_path.write_text("")
    aged(run, 5 * 86400)
    assert death(run) == "Its process has written nothing for 5 days."


def test_everything_that_names_the_status_says_so(tmp_path, ended):
    run = running(tmp_path / "run", ended, platform.node(), 1.0)
    make_run(tmp_path / "other", "moons", {0.1: 0.5})
    assert update(tmp_path).written == 2
    runs = Collection(tmp_path)
    runs.refresh()
    assert runs.runs["run"].status == "running"
    aged(run, 60)
    update(tmp_path)
    stored = pd.read_parquet(tmp_path / "dataset" / "runs").set_index("run")
    assert stored.status.to_dict() == {"other": "finished", "run": "died"}
    assert "ended without a word" in stored.message["run"]
    assert update(tmp_path).written == 0
    runs.refresh()
    assert runs.runs["run"].status == "died"
    assert "ended without a word" in str(runs.runs["run"].message)
    assert any("(status: died)" in text for text in finished_runs([tmp_path])[1])
