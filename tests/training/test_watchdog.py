"""A worker that hangs is noticed, and its stack trace kept."""

from __future__ import annotations

import io
import time

import torch
from torch import nn

from ima_dist.cli.progress import ProgressView
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from ima_dist.worker.watchdog import watched
from tests.support import workers


def hang_here(seconds):
    time.sleep(seconds)


def test_a_stack_trace_is_written_after_the_time_and_announced(tmp_path):
    _, run = workers.start_run(tmp_path, "moons")
    network = nn.Linear(2, 2)
    out = io.StringIO()
    write_json(run.progress_path, {"stage": "training", "epoch": 1, "epochs": 2})
    with ProgressView(run, out):
        with watched(run, network, 0.4):
            network(torch.zeros(1, 2))
            hang_here(1.0)
        time.sleep(0.7)
    (file,) = run.stacks_dir.iterdir()
    assert file.name == "worker-0000.txt"
    assert "hang_here" in file.read_text()
    assert f"Worker 0 has made no progress; its stack trace is in {file}." in out.getvalue()
    assert out.getvalue().count("has made no progress") == 1


def test_nothing_is_left_where_the_network_keeps_running(tmp_path, monkeypatch):
    monkeypatch.setattr("ima_dist.worker.watchdog._BEAT_EVERY", 0.0)
    _, run = workers.start_run(tmp_path, "moons")
    network = nn.Linear(2, 2)
    with watched(run, network, 0.4):
        for _ in range(10):
            network(torch.zeros(1, 2))
            time.sleep(0.1)
    time.sleep(0.5)  # nor is anything armed
    assert not run.stacks_dir.exists()
    assert not network._forward_pre_hooks


def _hang_on_one(path):
    from ima_dist.core import distributed

    run, network = RunDir(path), nn.Linear(2, 2)
    with watched(run, network, 1.0):
        if distributed.rank() == 1:
            hang_here(3.0)
        distributed.gather_objects(None)


def test_the_stacks_tell_who_waits_and_who_is_waited_for(tmp_path):
    workers.start_run(tmp_path, "moons")
    workers.run_on(2, _hang_on_one, tmp_path)
    texts = [(tmp_path / "stacks" / f"worker-{rank:04d}.txt").read_text() for rank in (0, 1)]
    assert "gather_objects" in texts[0]
    assert "hang_here" in texts[1]
    assert "hang_here" not in texts[0]


def _comes_and_goes(path):
    run, network = RunDir(path), nn.Linear(2, 2)
    for _ in range(600):
        with watched(run, network, 60.0):
            pass


def test_a_worker_that_begins_while_another_ends(tmp_path):
    """One makes the directory of stacks while the other removes it."""
    workers.start_run(tmp_path, "moons")
    workers.run_on(2, _comes_and_goes, tmp_path)
    assert not (tmp_path / "stacks").exists()
