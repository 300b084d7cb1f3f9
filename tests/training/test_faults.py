"""Two kinds of the failure drill, end to end; all of them: ``python -m benchmarks.faults``."""

from __future__ import annotations

import os
from concurrent.futures import Future

import pytest

from benchmarks.faults.command import OPTIONS
from benchmarks.faults.drill import State, drill, ground_in, state
from benchmarks.faults.outcome import Outcome, table
from benchmarks.hosts import why_not
from ima_dist.config.presets import make_config
from ima_dist.rundir.directory import RunDir
from tests.support import workers


def outcome(kind="worker", **values):
    fine = {"seed": "0", "moment": "", "difference": 0.0, "recounted": True}
    return Outcome(kind, **{**fine, **values})


def test_what_counts_as_harm():
    assert outcome(lost=5).harmless
    assert not outcome(lost=6).harmless
    assert outcome("truncated_checkpoint", lost=10).harmless
    assert not outcome(difference=1e-8).harmless
    assert not outcome(recounted=False).harmless
    assert not outcome(left=1).harmless
    assert "| 6 | 0e+00 | error: a \\| b |" in table([outcome(lost=6, sentence="error: a | b")])


@pytest.mark.slow
def test_a_worker_killed_and_then_a_checkpoint_truncated(tmp_path, monkeypatch):
    reason = why_not()
    if reason:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    monkeypatch.setenv("FAULTS_COUNT", str(tmp_path / "count"))
    config = make_config("moons", OPTIONS)
    run = RunDir.create(config, tmp_path / "whole")
    workers.run_on(2, workers.train, config, run.path)
    reference: Future[State] = Future()
    reference.set_result(state(run))
    planned = [("worker", "0"), ("truncated_checkpoint", "0")]
    with ground_in(tmp_path / "ground") as ground:
        found = drill(lambda: planned.pop(0) if planned else None, reference, ground)
    assert [o.kind for o in found] == ["worker", "truncated_checkpoint"]
    assert all(o.harmless for o in found), found
    assert found[0].sentence.startswith("error: ")
