"""What SLURM wants of a running job, and what becomes of the job once its run has ended.

Nothing here starts a process, reads a file or looks at the clock. The behaviour of SLURM that these rules rest on was
measured on version 22.05 and is in docs/log.md.
"""

import enum
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster import slurm
from ima_dist.config.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE

# Consecutive starts that may fail without the run having saved anything new.
MAX_FAILURES = 3
# Consecutive starts that may end, for whatever reason, without the run having saved anything new.
MAX_IDLE = 10
# SLURM sends SIGKILL KillWait seconds (30 by default) after SIGTERM. Until then the run may save its state, then its
# processes are ended, and what is left is for telling SLURM to requeue the job.
LEAVE_WITHIN = 20.0
REQUEUE_UNTIL = 26.0
# States of a job that SLURM is ending or has ended. Every other state (RUNNING, SIGNALING, SUSPENDED, …) is alive.
_ENDING = {
    "COMPLETING", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "DEADLINE", "NODE_FAIL", "BOOT_FAIL",
    "OUT_OF_MEMORY",
}  # fmt: skip
IDLE = (
    "{why}, but it has started {count} times in a row without saving anything new, so it is not started again: see "
    "{output}. Give a start more time (--time), save more often (--checkpoint-every), or ask for fewer workers; then "
    "submit it again to continue"
)
GIVEN_UP = "It failed {count} times in a row without saving anything new, so it is not started again; see {output}"


class Wants(enum.Enum):
    """What SLURM wants of this start of the job."""

    NOTHING = enum.auto()
    #: Stop soon: the notice before the time limit, or pre-emption with a grace time. The job requeues itself.
    SAVE = enum.auto()
    #: Stop now, at the time limit or for a pre-empting job. SLURM does not start the job again unless told to.
    REQUEUE = enum.auto()
    #: Stop now: SLURM has requeued the job itself.
    AGAIN = enum.auto()
    #: Stop now: somebody cancelled the job.
    CANCEL = enum.auto()
    #: Stop now: SIGTERM came, and the controller does not say why.
    UNKNOWN = enum.auto()


_STOP_NOW = {Wants.REQUEUE, Wants.AGAIN, Wants.CANCEL, Wants.UNKNOWN}


def what_slurm_wants(record: Mapping[str, str], signals: Collection[int], start: int, past_end: bool) -> Wants:
    """Read a job's record.

    record: fields of ``scontrol show job``, {} if the controller did not answer. signals: those received so far.
    start: SLURM_RESTART_COUNT. past_end: whether the end that SLURM had announced while the job was running has passed.
    """
    alive = Wants.SAVE if signals else Wants.NOTHING
    if not record:
        if signal.SIGTERM not in signals:
            return alive
        return Wants.REQUEUE if past_end or signal.SIGUSR2 in signals else Wants.UNKNOWN
    if int(record.get("Restarts", start)) > start:
        return Wants.AGAIN
    state = record.get("JobState", "")
    if state not in _ENDING:
        return alive
    timed_out = state == "TIMEOUT" or record.get("Reason") == "TimeLimit"
    preempted = state == "PREEMPTED" or record.get("PreemptTime", "None") != "None"
    return Wants.REQUEUE if timed_out or preempted else Wants.CANCEL


@dataclass
class Situation:
    """What a start knows of SLURM's intentions. All times are Unix times.

    signals: (number, time) of each signal received; the handler appends to it. end: when SLURM will end the job, as
    announced while it was running. stop_since: when SLURM began to end it.
    """

    start: int
    signals: list[tuple[int, float]] = field(default_factory=list)
    wants: Wants = Wants.NOTHING
    end: float | None = None
    stop_since: float | None = None
    may_requeue: bool = True

    def learn(self, record: Mapping[str, str], now: float) -> bool:
        """Take in the controller's answer ({} for none); returns whether SLURM wants something else than before."""
        before = self.wants
        if not record and before in _STOP_NOW:
            return False
        if record:
            self.may_requeue = record.get("Requeue") != "0"
            if record.get("JobState") not in _ENDING:
                self.end = slurm.end_time(record)
        past_end = self.end is not None and now >= self.end
        self.wants = what_slurm_wants(record, {number for number, _ in self.signals}, self.start, past_end)
        if self.wants not in _STOP_NOW:
            self.stop_since = None
        elif self.stop_since is None:
            self.stop_since = self.signals[-1][1] if self.signals else now
        return self.wants != before

    def stopping(self, now: float, longer_than: float) -> bool:
        """Whether SLURM has been ending the job for so many seconds."""
        return self.stop_since is not None and now - self.stop_since > longer_than


class Action(enum.Enum):
    """What a start does last."""

    #: Write a result; the job is over.
    FINISH = enum.auto()
    #: Write the result "cancelled" and leave.
    CANCELLED = enum.auto()
    #: Requeue the job, and leave.
    REQUEUE = enum.auto()
    #: Leave: SLURM starts the job again.
    LEAVE = enum.auto()


@dataclass(frozen=True)
class Decision:
    """What becomes of the job. status and message: of its result. counted: whether this start counts as a failure."""

    action: Action
    message: str = ""
    status: int = EXIT_REQUEUE
    counted: bool = False


def decide(status: int, message: str, situation: Situation, failures: int, output: Any = "", idle: int = 0) -> Decision:
    """What becomes of a job whose run ended with ``status``.

    message: what went wrong, if known. failures: consecutive failures without progress, this start included.
    output: the file that says more. idle: consecutive starts without progress, this one included.
    """
    decision = _decide(status, message, situation, failures, output)
    if decision.action is Action.REQUEUE and idle >= MAX_IDLE:
        return Decision(Action.FINISH, IDLE.format(why=decision.message, count=idle, output=output))
    return decision


def _decide(status: int, message: str, situation: Situation, failures: int, output: Any) -> Decision:
    if status in (EXIT_DONE, EXIT_INPUT):
        return Decision(Action.FINISH, message, status)
    if situation.wants is Wants.AGAIN:
        return Decision(Action.LEAVE, "SLURM starts the job again")
    if situation.wants is Wants.CANCEL:
        return Decision(Action.CANCELLED, "Cancelled; submit the job again to continue from its last checkpoint")
    if situation.wants is Wants.UNKNOWN:
        unexplained = "SLURM ended the job and did not say why; submit it again to continue from its last checkpoint"
        return Decision(Action.FINISH, unexplained)
    if situation.signals or situation.wants is Wants.REQUEUE:
        return Decision(Action.REQUEUE, "The run was told to stop")
    if status == EXIT_REQUEUE:
        # Somebody else told it so, or there was no time left for another pass.
        return Decision(Action.REQUEUE, "The run has stopped")
    if failures >= MAX_FAILURES:
        return Decision(Action.FINISH, GIVEN_UP.format(count=failures, output=output), EXIT_FAILED, counted=True)
    what = message.rstrip(".") or f"The run failed with status {status}"
    what = f"{what} (failure {failures} of {MAX_FAILURES} without progress)"
    return Decision(Action.REQUEUE, what, status, counted=True)


def failures_after(tries: Mapping[str, Any], progress: list[Any]) -> int:
    """Consecutive failures without progress, if the start that wrote ``tries`` failed with ``progress`` saved."""
    return (int(tries["failures"]) if tries["progress"] == progress else 0) + 1


def idle_after(tries: Mapping[str, Any], progress: list[Any]) -> int:
    """Consecutive starts without progress, if the one that wrote ``tries`` ended with ``progress`` saved."""
    return int(tries.get("idle", 0)) + 1 if tries["progress"] == progress else 0


def failures_before(tries: Mapping[str, Any] | None, progress: list[Any]) -> int:
    """Consecutive failures before a new start.

    tries: what the last start has written, None before the first. A start that vanished without a word has failed.
    """
    if tries is None:
        return 0
    return failures_after(tries, progress) - bool(tries["asked"])
