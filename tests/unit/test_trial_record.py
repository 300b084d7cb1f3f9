"""The record of a sweep's trial, and its lock."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from ima_dist.plans.trial_record import Record, earlier_records


def test_a_trial_is_held_by_one_at_a_time(tmp_path):
    """Two combinations may have equal configurations, and so one run."""
    first, second = Record(tmp_path, "run"), Record(tmp_path, "run")
    assert first.hold()
    assert first.hold(), "it keeps what it has"
    assert not second.hold()
    first.release()
    first.release()
    assert second.hold()
    assert not first.hold()


def test_records_are_listed_oldest_first_without_damaged_ones(tmp_path):
    Record(tmp_path, "b").write(began=2.0, status="finished")
    Record(tmp_path, "a").write(began=3.0, status="running")
    Record(tmp_path, "a").write(status="failed")
    Record(tmp_path, "c").write(status="running")
    (tmp_path / "trials" / "d.json").write_text("{")
    assert [(r["name"], r["status"]) for r in earlier_records(tmp_path)] == [("b", "finished"), ("a", "failed")]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (75, "interrupted"),
        (130, "interrupted"),
        (-signal.SIGINT, "interrupted"),
        (1, "failed"),
        (-signal.SIGKILL, "failed"),
    ],
)
def test_a_command_that_was_stopped_before_it_had_written_anything_has_not_failed(status, outcome, monkeypatch):
    from ima_dist.launch.trial import Trial

    trial = Trial.__new__(Trial)
    monkeypatch.setattr(trial, "_end", lambda status, *_: status)
    monkeypatch.setattr(trial, "_sentence", str)
    assert trial._watch(SimpleNamespace(poll=lambda: status)) == outcome
