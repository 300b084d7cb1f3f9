"""What SLURM wants of a job, and what becomes of the job: the rules, without processes."""

from __future__ import annotations

import signal
from datetime import datetime

import pytest

from cluster import slurm
from cluster.policy import (
    MAX_FAILURES,
    MAX_IDLE,
    Action,
    Situation,
    Wants,
    decide,
    failures_before,
    idle_after,
    what_slurm_wants,
)

USR2, TERM = signal.SIGUSR2, signal.SIGTERM
# As scontrol showed them on SLURM 22.05.
RUNNING = {"JobState": "RUNNING", "Reason": "None", "Restarts": "0", "Requeue": "1", "PreemptTime": "None"}
GRACE = {**RUNNING, "PreemptTime": "2026-11-27T06:43:16"}
ENDING = {**RUNNING, "JobState": "COMPLETING"}
LIMIT = {**ENDING, "Reason": "TimeLimit"}
PREEMPTED = {**ENDING, "PreemptTime": "2026-11-27T06:43:51"}
REQUEUED = {**ENDING, "Restarts": "1"}


@pytest.mark.parametrize(
    ("record", "signals", "past_end", "wants"),
    [
        (RUNNING, [], False, Wants.NOTHING),
        (RUNNING, [USR2], False, Wants.SAVE),  # the notice before the limit
        (GRACE, [TERM], False, Wants.SAVE),
        ({**RUNNING, "JobState": "SIGNALING"}, [USR2], False, Wants.SAVE),
        ({**RUNNING, "JobState": "SUSPENDED"}, [], False, Wants.NOTHING),
        (LIMIT, [USR2, TERM], True, Wants.REQUEUE),  # the run took too long to save
        (LIMIT, [TERM], True, Wants.REQUEUE),  # a limit that was lowered comes without notice
        ({**RUNNING, "JobState": "TIMEOUT"}, [TERM], True, Wants.REQUEUE),
        (PREEMPTED, [TERM], False, Wants.REQUEUE),  # PreemptMode=CANCEL
        (PREEMPTED, [TERM, TERM], True, Wants.REQUEUE),  # the grace time is over
        ({**RUNNING, "JobState": "PREEMPTED"}, [TERM], False, Wants.REQUEUE),
        (REQUEUED, [TERM], False, Wants.AGAIN),  # by hand, or PreemptMode=REQUEUE
        ({**LIMIT, "Restarts": "1"}, [USR2, TERM], True, Wants.AGAIN),
        ({**RUNNING, "Restarts": "1"}, [], False, Wants.AGAIN),  # this node was given up for dead
        (ENDING, [TERM], False, Wants.CANCEL),
        (ENDING, [USR2, TERM], False, Wants.CANCEL),  # cancelled while it saved
        ({**ENDING, "JobState": "CANCELLED"}, [], False, Wants.CANCEL),
        ({}, [], False, Wants.NOTHING),
        ({}, [USR2], False, Wants.SAVE),
        ({}, [USR2, TERM], False, Wants.REQUEUE),
        ({}, [TERM], True, Wants.REQUEUE),
        ({}, [TERM], False, Wants.UNKNOWN),
    ],
)
def test_what_slurm_wants(record, signals, past_end, wants):
    assert what_slurm_wants(record, signals, 0, past_end) is wants


def test_an_earlier_restart_is_not_this_one():
    assert what_slurm_wants({**LIMIT, "Restarts": "3"}, [TERM], 3, True) is Wants.REQUEUE
    assert what_slurm_wants({**LIMIT, "Restarts": "4"}, [TERM], 3, True) is Wants.AGAIN


def heard(situation: Situation, number: int, at: float, record: dict[str, str]) -> bool:
    situation.signals.append((number, at))
    return situation.learn(record, at + 0.5)


def test_the_time_limit_with_a_run_that_saves_slowly():
    """The notice leaves all the time there is; SLURM's patience begins with its SIGTERM."""
    situation = Situation(0)
    assert not situation.learn(RUNNING, 0)
    assert heard(situation, USR2, 100, RUNNING)
    assert not situation.stopping(1000, 0)
    assert heard(situation, TERM, 160, LIMIT)
    assert not heard(situation, TERM, 170, LIMIT)
    assert (situation.wants, situation.stop_since) == (Wants.REQUEUE, 160)
    assert (situation.stopping(179, 20), situation.stopping(181, 20)) == (False, True)
    # Its own request to be requeued shows.
    assert situation.learn({**LIMIT, "Restarts": "1"}, 182)
    assert (situation.wants, situation.stop_since) == (Wants.AGAIN, 160)


def test_what_is_known_is_not_forgotten_when_the_controller_does_not_answer():
    for record, wants in ((REQUEUED, Wants.AGAIN), (ENDING, Wants.CANCEL), (LIMIT, Wants.REQUEUE)):
        situation = Situation(0)
        assert heard(situation, TERM, 1, record)
        assert not heard(situation, TERM, 2, {})
        assert situation.wants is wants
    situation = Situation(0)
    assert heard(situation, TERM, 1, {})
    assert situation.wants is Wants.UNKNOWN
    assert situation.learn(REQUEUED, 5)
    assert (situation.wants, situation.stop_since) == (Wants.AGAIN, 1)


def test_the_end_that_was_announced_tells_a_silent_controller_from_a_cancel():
    end = "2026-11-27T06:43:53"
    at = datetime.fromisoformat(end).timestamp()
    for when, wants in ((at - 60, Wants.UNKNOWN), (at + 1, Wants.REQUEUE)):
        situation = Situation(0)
        situation.learn({**RUNNING, "EndTime": end}, at - 600)
        heard(situation, TERM, when, {})
        assert situation.wants is wants
    # The record of a job that has been cancelled says when that was.
    situation.learn({**ENDING, "EndTime": "2026-11-27T05:00:00"}, at)
    assert situation.end == at


@pytest.mark.parametrize(
    ("status", "wants", "signals", "failures", "action", "counted"),
    [
        (0, Wants.CANCEL, [TERM], 1, Action.FINISH, False),  # done just in time
        (2, Wants.SAVE, [USR2], 1, Action.FINISH, False),
        (75, Wants.SAVE, [USR2], 9, Action.REQUEUE, False),
        (1, Wants.SAVE, [USR2], 9, Action.REQUEUE, False),  # failed while it was told to stop
        (130, Wants.SAVE, [USR2], 9, Action.REQUEUE, False),  # told to stop before it had written anything
        (75, Wants.REQUEUE, [USR2, TERM], 9, Action.REQUEUE, False),
        (75, Wants.AGAIN, [TERM], 9, Action.LEAVE, False),
        (1, Wants.AGAIN, [], 9, Action.LEAVE, False),  # the node was given up for dead
        (75, Wants.CANCEL, [TERM], 1, Action.CANCELLED, False),
        (75, Wants.UNKNOWN, [TERM], 1, Action.FINISH, False),
        (75, Wants.NOTHING, [], 9, Action.REQUEUE, False),  # too late for another pass
        (1, Wants.NOTHING, [], MAX_FAILURES - 1, Action.REQUEUE, True),
        (1, Wants.NOTHING, [], MAX_FAILURES, Action.FINISH, True),
        (-9, Wants.NOTHING, [], 1, Action.REQUEUE, True),
    ],
)
def test_what_becomes_of_a_job(status, wants, signals, failures, action, counted):
    situation = Situation(0, [(s, 0.0) for s in signals], wants)
    decision = decide(status, "", situation, failures, "output.txt")
    assert (decision.action, decision.counted) == (action, counted)
    if action is Action.FINISH:
        assert decision.status == {0: 0, 2: 2, 75: 75}.get(status, 1)


def test_starts_without_progress_are_counted_whatever_ends_them():
    """A shortage that lasts, or a time limit in which nothing is ever saved, does not start for ever."""
    old, new = ["epoch=0001", 0, 0], ["epoch=0002", 0, 0]
    tries = {"failures": 0, "progress": old, "asked": True}  # of an older version
    for count in range(1, MAX_IDLE + 1):
        assert idle_after(tries, new) == 0
        tries["idle"] = idle_after(tries, old)
        assert tries["idle"] == count
        for situation in (Situation(count), Situation(count, [(USR2, 0.0)], Wants.SAVE)):
            decision = decide(75, "", situation, 1, "output.txt", tries["idle"])
            assert decision.action is (Action.FINISH if count == MAX_IDLE else Action.REQUEUE)
    assert (decision.status, decision.counted) == (75, False)
    assert "started 10 times in a row without saving anything new" in decision.message
    assert decide(0, "", Situation(0), 1, "", 99).status == 0
    assert decide(75, "", Situation(0, [], Wants.AGAIN), 1, "", 99).action is Action.LEAVE


def test_failures_are_counted_until_something_new_is_saved():
    old, new = ["epoch=0001", 0, 0], ["epoch=0002", 0, 0]
    assert failures_before(None, old) == 0
    for asked, progress, failures in ((True, old, 2), (True, new, 0), (False, old, 3), (False, new, 1)):
        assert failures_before({"failures": 2, "progress": old, "asked": asked}, progress) == failures


# The last element of an array has the array's own id, and then scontrol shows all of them.
ARRAY = """\
JobId=2 ArrayJobId=2 ArrayTaskId=2 JobState=RUNNING Reason=None Restarts=0 EndTime=2026-11-27T06:48:39
JobId=4 ArrayJobId=2 ArrayTaskId=1 JobState=CANCELLED Reason=None Restarts=0 EndTime=2026-11-27T06:43:09
JobId=3 ArrayJobId=2 ArrayTaskId=0 JobState=COMPLETING Reason=TimeLimit Restarts=4 EndTime=2026-11-27T06:47:53
"""


def test_the_record_of_one_element_of_an_array(monkeypatch):
    for element, state, second in (("2", "RUNNING", 39), ("1", "CANCELLED", 9), ("0", "COMPLETING", 53)):
        record = slurm.own_record(ARRAY, f"2_{element}")
        assert record["JobState"] == state
        assert datetime.fromtimestamp(slurm.end_time(record)).second == second
    assert slurm.own_record(ARRAY, "2_7") == slurm.own_record("", "2") == {}
    assert slurm.own_record("JobId=12 JobState=RUNNING\n", "12")["JobState"] == "RUNNING"
    assert slurm.end_time({"EndTime": "Unknown"}) is slurm.end_time({}) is None
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    assert slurm.own_job() == "2"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert slurm.own_job() == "2_0"
