"""One start of a job, as one of its tasks sees it: signals, waiting, and joining the Ray cluster of task 0."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import submitit

from cluster import policy, processes, ray_node, slurm
from cluster.policy import Situation, Wants
from cluster.records import RowRecord
from ima_dist.config.errors import EXIT_DONE, ConfigError
from ima_dist.rundir.files import write_text_atomic

if TYPE_CHECKING:
    from cluster.task import Task

LOOK_EVERY = 0.2
# Patience with the controller, in seconds: for an answer, and between two questions.
_ANSWER_SECONDS, ASK_EVERY = 10.0, 2.0


class Leave(Exception):
    """End this task now. One sentence says why."""


class Unready(RuntimeError):
    """The Ray cluster did not come up, or a part of it has ended; another start may succeed. One sentence."""


class Stopped(Exception):
    """The job was told to stop before the run had started."""


class Start:
    """One start of the job, as one of its tasks sees it."""

    def __init__(self, task: Task, rank: int) -> None:
        self.task, self.row, self.rank = task, task.row, rank
        self.number = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.job = slurm.own_job()
        self.nodes = submitit.JobEnvironment().hostnames
        self.record = RowRecord(task.folder, task.row.name)
        self.place = self.record.start(self.number)
        # Known also where scontrol is not: since SLURM 22.05.
        ends = os.environ.get("SLURM_JOB_END_TIME", "")
        self.situation = Situation(self.number, end=float(ends) if ends.isdigit() else None)
        self.times = {"submitted": task.submitted, "began": time.time()}
        self._heard = 0
        self._ask_next = 0.0

    def run(self) -> dict[str, Any]:
        raise NotImplementedError

    def take_signals(self) -> None:
        """From now on signals are noted; submitit's own handlers would requeue the job at once, and once only."""

        def note(signum: int, frame: FrameType | None) -> None:
            self.situation.signals.append((signum, time.time()))

        for s in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(s, note)

    @contextlib.contextmanager
    def private_directory(self) -> Iterator[Path]:
        """A temporary directory for Ray. At the end it is gone, and so is every process that this task has started."""
        new = bool(self.task.temp) and not os.path.isdir(os.path.expandvars(str(self.task.temp)))
        base = ray_node.temporary_base(self.task.temp)
        with ray_node.private_directory(base, os.environ.get("SLURM_JOB_ID", "0")) as temp:
            try:
                yield temp
            finally:
                ray_node.end_descendants()
        if new:  # of this job alone; another task may still use it
            with contextlib.suppress(OSError):
                os.rmdir(base)

    def patience(self) -> float:
        """Seconds to wait for an answer of the controller: fewer when SLURM is about to kill this task."""
        since = self.situation.stop_since
        left = _ANSWER_SECONDS if since is None else since + policy.REQUEUE_UNTIL - time.time()
        return min(max(left, 1.0), _ANSWER_SECONDS)

    def hear(self, ask: bool = False) -> bool:
        """Ask what SLURM wants if signals have come, or it is not known; whether that differs from before."""
        new = len(self.situation.signals)
        unknown = self.situation.wants is Wants.UNKNOWN and time.time() > self._ask_next
        if not (ask or unknown or new > self._heard):
            return False
        self._heard, self._ask_next = new, time.time() + ASK_EVERY
        return self.situation.learn(slurm.job(self.job, self.patience()), time.time())

    def must_leave(self) -> bool:
        """Whether SLURM will soon kill what is left of this task."""
        return self.situation.stopping(time.time(), policy.LEAVE_WITHIN)

    def check_newest(self) -> None:
        """A task whose node was given up for dead must not go on beside the job's next start."""
        if self.record.newest_start() > self.number:
            ray_node.end_descendants()
            raise Leave(f"Start {self.number} on {socket.gethostname()} ends: the job has been started again")

    def told_to_stop(self) -> bool:
        """Whether waiting is of no use any more."""
        raise NotImplementedError

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for a part of the Ray cluster; raises Unready with ``what`` did not happen after so many seconds."""

        def over() -> bool:
            self.check_newest()
            if self.told_to_stop():
                raise Stopped
            return condition()

        if not processes.wait_for(over, seconds, LOOK_EVERY):
            raise Unready(f"{what} within {self.task.join_timeout} s.")

    def over(self, how: str) -> None:
        """Tell the other tasks that they are no longer needed; the first word counts."""
        if not (self.place / "over").exists():
            write_text_atomic(self.place / "over", how)

    def note(self, text: str) -> None:
        os.makedirs(self.record.path, mode=0o700, exist_ok=True)
        self.record.say(text)
        print(text, flush=True)


class Follower(Start):
    """A start as seen by a task that only joins the Ray cluster."""

    def run(self) -> dict[str, Any]:
        try:
            with self.private_directory() as temp:
                return self._follow(temp)
        except (Unready, ray_node.RayEnded, ConfigError, OSError) as error:
            self.note(f"error: {error}")
            write_text_atomic(self.place / f"failed-{self.rank}", str(error))
            raise RuntimeError(str(error)) from error

    def told_to_stop(self) -> bool:
        return (self.place / "over").exists()

    def _follow(self, temp: Path) -> dict[str, Any]:
        head, patience, name = self.place / "address", self.task.join_timeout, self.nodes[self.rank]
        self.wait(head.exists, 2 * patience, f"Task 0 on {self.nodes[0]} did not write its address")
        address = head.read_text()
        own = ray_node.own_address(address.rsplit(":", 1)[0], self.task.interface)
        log = self.place / f"ray-{self.rank}.log"
        node = ray_node.RayNode(temp, log, self.place / "token", own, cpus(), address)
        self.wait(node.up, patience, f"Ray on {name} did not join {address}")
        write_text_atomic(self.place / f"node-{self.rank}", own)
        while not self.told_to_stop():
            self.check_newest()
            if node.process.poll() is not None:
                raise Leave(f"Ray has ended on {name}")
            self.hear()
            if self.must_leave():
                raise Stopped
            time.sleep(LOOK_EVERY)
        if (self.place / "over").read_text() != "done":
            raise Stopped
        return {"status": EXIT_DONE, "run": self.row.run}


def cpus() -> int:
    granted = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
    return int(granted or os.cpu_count() or 1)
