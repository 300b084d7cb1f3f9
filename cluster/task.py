"""What runs on every node of a job, as one task per node: the Ray cluster comes up, the run runs, everything stops.

Task 0 starts Ray's head and, when the other nodes have joined, the run; the other tasks join and wait for its end.
SLURM's signals are for the tasks only. They do not reach Ray, and the run gets exactly one (SIGINT), because it takes a
second one for impatience. ``cluster.policy`` has the rules.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from cluster import policy, processes, ray_node, slurm
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE
from cluster.policy import Action, Situation, Wants
from cluster.records import Row, RowRecord, progress_of, write_private
from ima_dist.config import ConfigError
from ima_dist.results.rundir import read_json, write_text_atomic

_LOOK_EVERY = 0.2
# Seconds that a start needs until it trains, where none has been measured.
_START_SECONDS = 60.0
# Patience with the controller: for an answer; between two requests to requeue; for a requeue while there is time.
_ANSWER_SECONDS, _ASK_EVERY, _REQUEUE_SECONDS = 10.0, 2.0, 180.0
_SAID = {
    Wants.SAVE: "the run saves its state, then the job is requeued",
    Wants.REQUEUE: "SLURM is ending the job, which asks to be requeued; until it is killed the run saves its state",
    Wants.AGAIN: "SLURM has requeued the job; the run saves its state",
    Wants.CANCEL: "the job was cancelled; the run saves its state",
    Wants.UNKNOWN: "SLURM is ending the job and does not say why; the run saves its state",
}


class RunFailed(RuntimeError):
    """The run ended with a status other than 0; submitit's result file shows the message."""


class _Leave(Exception):
    """End this task now. One sentence says why."""


class _Unready(RuntimeError):
    """The Ray cluster did not come up, or a part of it has ended; another start may succeed. One sentence."""


class _Stopped(Exception):
    """The job was told to stop before the run had started."""


@dataclass(frozen=True)
class Task:
    """The function that submitit runs on every node.

    folder: of the job's records. submitted: Unix time. notice, join_timeout (seconds), interface, temp: as in
    partitions.toml.
    """

    folder: Path
    row: Row
    submitted: float
    notice: int
    join_timeout: int
    interface: str | None = None
    temp: str | None = None

    def __call__(self) -> dict[str, Any]:
        """Returns {"status": 0, "run": …}; raises RunFailed, or SystemExit if SLURM starts the job again."""
        rank = int(os.environ.get("SLURM_PROCID", 0))
        start = OtherStart(self, rank) if rank else FirstStart(self, rank)
        processes.adopt_orphans()
        start.take_signals()
        try:
            return start.run()
        except _Leave as reason:
            start.note(f"{reason}.")
            sys.exit(0)
        except _Stopped:
            sys.exit(0)


class Start:
    """One start of the job, as one of its tasks sees it."""

    def __init__(self, task: Task, rank: int) -> None:
        self.task, self.row, self.rank = task, task.row, rank
        self.number = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.job = slurm.own_job()
        self.nodes = submitit.JobEnvironment().hostnames
        self.record = RowRecord(task.folder, task.row.name)
        self.place = self.record.start(self.number)
        self.situation = Situation(self.number)
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
        base = ray_node.temporary_base(self.task.temp)
        with ray_node.private_directory(base, os.environ.get("SLURM_JOB_ID", "0")) as temp:
            try:
                yield temp
            finally:
                ray_node.end_descendants()

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
        self._heard, self._ask_next = new, time.time() + _ASK_EVERY
        return self.situation.learn(slurm.job(self.job, self.patience()), time.time())

    def must_leave(self) -> bool:
        return self.situation.must_leave(time.time())

    def check_newest(self) -> None:
        """A task whose node was given up for dead must not go on beside the job's next start."""
        if self.record.newest_start() > self.number:
            ray_node.end_descendants()
            raise _Leave(f"Start {self.number} on {socket.gethostname()} ends: the job has been started again")

    def told_to_stop(self) -> bool:
        """Whether waiting is of no use any more."""
        raise NotImplementedError

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for a part of the Ray cluster; raises _Unready with ``what`` did not happen after so many seconds."""

        def over() -> bool:
            self.check_newest()
            if self.told_to_stop():
                raise _Stopped
            return condition()

        if not processes.wait_for(over, seconds, _LOOK_EVERY):
            raise _Unready(f"{what} within {self.task.join_timeout} s.")

    def over(self, how: str) -> None:
        """Tell the other tasks that they are no longer needed; the first word counts."""
        if not (self.place / "over").exists():
            write_text_atomic(self.place / "over", how)

    def note(self, text: str) -> None:
        os.makedirs(self.record.path, mode=0o700, exist_ok=True)
        self.record.say(text)
        print(text, flush=True)


class OtherStart(Start):
    """A start as seen by a task that only joins the Ray cluster."""

    def run(self) -> dict[str, Any]:
        try:
            with self.private_directory() as temp:
                return self._follow(temp)
        except (_Unready, ray_node.RayEnded, ConfigError, OSError) as error:
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
        node = ray_node.RayNode(temp, log, self.place / "token", own, _cpus(), address)
        self.wait(node.up, patience, f"Ray on {name} did not join {address}")
        write_text_atomic(self.place / f"node-{self.rank}", own)
        while not self.told_to_stop():
            self.check_newest()
            if node.process.poll() is not None:
                raise _Leave(f"Ray has ended on {name}")
            self.hear()
            if self.must_leave():
                raise _Stopped
            time.sleep(_LOOK_EVERY)
        if (self.place / "over").read_text() != "done":
            raise _Stopped
        return {"status": EXIT_DONE, "run": self.row.run}


class FirstStart(Start):
    """A start as seen by task 0, which starts the run and decides what becomes of the job."""

    tries: dict[str, Any]

    def run(self) -> dict[str, Any]:
        try:
            self._begin()
            try:
                with self.private_directory() as temp:
                    status, message = self._attempt(temp)
            except OSError as error:
                status, message = EXIT_FAILED, str(error)
            self._write_times()
            self.check_newest()
            try:
                return self._conclude(status, message)
            except OSError as error:
                return self._conclude(EXIT_FAILED, str(error))
        except ConfigError as error:
            self.note(f"error: {error}")
            return self._finish(EXIT_INPUT, str(error))
        except OSError as error:  # failures cannot even be counted
            self.note(f"error: {error}")
            return self._finish(EXIT_FAILED, str(error))
        finally:
            self.over("stopped")

    def told_to_stop(self) -> bool:
        return bool(self.situation.signals)

    def _begin(self) -> None:
        """Count this start. Raises ConfigError after too many failures."""
        self.record.result_path.unlink(missing_ok=True)
        os.makedirs(self.place, mode=0o700, exist_ok=True)
        now = progress_of(Path(self.row.run))
        failures = policy.failures_before(read_json(self.record.tries_path), now)
        if failures >= policy.MAX_FAILURES:
            raise ConfigError(policy.GIVEN_UP.format(count=failures, output=self.record.output))
        self.tries = {"failures": failures, "progress": now, "asked": False, "start": self.number}
        write_private(self.record.tries_path, self.tries)

    # ---- the run

    def _attempt(self, temp: Path) -> tuple[int, str]:
        """Start Ray and run the command; its exit status, and what went wrong if that is known."""
        token = self.place / "token"
        token.unlink(missing_ok=True)
        ray_node.new_token(token)
        try:
            self._start_head(temp, token)
            return self._drive(token), ""
        except _Stopped:
            return EXIT_REQUEUE, ""
        except (_Unready, ray_node.RayEnded) as error:
            return EXIT_FAILED, str(error)
        finally:
            token.unlink(missing_ok=True)

    def _start_head(self, temp: Path, token: Path) -> None:
        others, patience = self.nodes[1:], self.task.join_timeout
        towards = slurm.node_address(others[0]) if others else None
        address = ray_node.own_address(towards, self.task.interface)
        node = self.ray = ray_node.RayNode(temp, self.place / "ray-0.log", token, address, _cpus())
        self.wait(node.up, patience, f"Ray's head on {self.nodes[0]} did not come up")
        self.times["head"] = time.time()
        write_text_atomic(self.place / "address", node.gcs_address)
        for rank, name in enumerate(others, 1):
            left = patience - (time.time() - self.times["head"])
            log = self.place / f"ray-{rank}.log"
            what = f"Node {name} (task {rank}) did not join the Ray cluster, see {log},"
            self.wait(lambda rank=rank: self._joined(rank), max(left, 0), what)  # type: ignore[misc]
        self.times["joined"] = time.time()
        port = node.dashboard_port
        write_text_atomic(self.place / "dashboard", str(port))
        self.note(
            f"Start {self.number} of job {self.job} on {', '.join(self.nodes)}. Ray's dashboard asks for the token in "
            f"{token}: ssh -N -L {port}:127.0.0.1:{port} {socket.gethostname()}, then http://127.0.0.1:{port}"
        )

    def _joined(self, rank: int) -> bool:
        failed = self.place / f"failed-{rank}"
        if failed.exists():
            raise _Unready(failed.read_text())
        return (self.place / f"node-{rank}").exists()

    def _drive(self, token: Path) -> int:
        """Run the command to its end; its exit status."""
        self.hear(ask=True)
        variables = {**ray_node.environment(token), "RAY_ADDRESS": (self.place / "address").read_text()}
        if self.situation.end is not None:
            variables["IMA_DIST_LAST_START"] = str(self.situation.end - self.task.notice - _START_SECONDS)
        # The run hears of SLURM's signals through us; in its processes they stay pending.
        with self.record.output.open("ab") as output, ray_node.blocked(signal.SIGTERM, signal.SIGUSR2):
            driver = subprocess.Popen(
                [sys.executable, *self.row.command],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.times["driver"] = time.time()
        told = False
        while driver.poll() is None:
            self._look()
            if self.situation.signals and not told:
                driver.send_signal(signal.SIGINT)
                told = True
            self._answer()
            if self.must_leave():
                self.note("The run has not ended in time; it continues from the last checkpoint that it has saved.")
                return EXIT_REQUEUE
            time.sleep(_LOOK_EVERY)
        return int(driver.returncode)

    def _look(self) -> None:
        """Notice what may happen while the run runs."""
        self.check_newest()
        if self.ray.process.poll() is not None:
            raise _Unready(f"Ray has ended on {self.nodes[0]}: see {self.place / 'ray-0.log'}")
        if "first_step" not in self.times:
            progress = Path(self.row.run) / "progress.json"
            with contextlib.suppress(OSError, ConfigError):
                state = read_json(progress) or {}
                if state.get("updated", 0) > self.times["driver"] and state.get("step"):
                    self.times["first_step"] = state["updated"]
                    self._write_times()

    def _answer(self) -> None:
        """Listen to SLURM. A job that it is ending is requeued first and saved second: the run may take too long."""
        if self.hear():
            names = dict.fromkeys(signal.Signals(number).name for number, _ in self.situation.signals)
            self.note(f"{' and '.join(names)}: {_SAID[self.situation.wants]}.")
        if self.situation.wants is Wants.REQUEUE and time.time() > self._ask_next:
            self._try_requeue()

    def _write_times(self) -> None:
        # A run is worth more than they are.
        with contextlib.suppress(OSError):
            write_private(self.place / "times.json", self.times)

    # ---- its end

    def _conclude(self, status: int, message: str) -> dict[str, Any]:
        """What becomes of the job, now that the run has ended with ``status``."""
        if status not in (EXIT_DONE, EXIT_INPUT):
            # Asked also without a signal: a node that was given up for dead gets none.
            self.hear(ask=True)
        if status == EXIT_INPUT:
            message = message or self._complaint()
        failures = policy.failures_after(self.tries, progress_of(Path(self.row.run)))
        decision = policy.decide(status, message, self.situation, failures, self.record.output)
        if not decision.counted and (self.situation.signals or decision.action is Action.REQUEUE):
            self._was_asked()
        if decision.action is Action.REQUEUE:
            return self._requeue(decision.message)
        if decision.action is Action.CANCELLED:
            self._write_result(EXIT_REQUEUE, "cancelled")
        if decision.action is not Action.FINISH:
            raise _Leave(decision.message)
        return self._finish(decision.status, decision.message)

    def _was_asked(self) -> None:
        """This start's end is not to be counted as a failure; it will be if that cannot be written."""
        with contextlib.suppress(OSError):
            write_private(self.record.tries_path, {**self.tries, "asked": True})

    def _complaint(self) -> str:
        """The run's first sentence on what is wrong, in this start; "" if there is none to be read."""
        text = ""
        with contextlib.suppress(OSError):
            text = self.record.output.read_text(errors="replace")
        said = re.search(r"^error: (.+)$", text[text.rfind(f"Start {self.number} of job {self.job} ") :], re.MULTILINE)
        return said[1] if said else ""

    def _try_requeue(self) -> str:
        """Ask SLURM to start the job again; "" if it will, else why not."""
        self._ask_next = time.time() + _ASK_EVERY
        if not self.situation.may_requeue:
            return "Requeue=0 in its record"
        try:
            slurm.command("scontrol", "requeue", self.job, timeout=self.patience())
        except ConfigError as error:
            # It may have been heard nevertheless.
            self.hear(ask=True)
            return "" if self.situation.wants is Wants.AGAIN else str(error).rstrip(".")
        self.situation.wants = Wants.AGAIN
        return ""

    def _requeue(self, why: str) -> dict[str, Any]:
        """Have the job started again, and leave; the job ends with a result if SLURM refuses for too long."""
        self.over("stopped")
        until = time.time() + _REQUEUE_SECONDS
        while refusal := self._try_requeue():
            if self.situation.wants is Wants.CANCEL:
                return self._conclude(EXIT_REQUEUE, "")
            late = time.time() > until or self.situation.must_leave(time.time(), policy.REQUEUE_UNTIL)
            if late or not self.situation.may_requeue:
                return self._finish(
                    EXIT_REQUEUE,
                    f"{why}; the job could not be requeued ({refusal}). Its last checkpoint is kept: submit it again.",
                )
            time.sleep(_ASK_EVERY)
        raise _Leave(f"{why}; the job is requeued and continues from its last checkpoint")

    def _finish(self, status: int, message: str) -> dict[str, Any]:
        self._write_result(status, message)
        self.over("done")
        if status != EXIT_DONE:
            message = message or f"see {self.record.output}"
            raise RunFailed(f"{self.row.name} ended with status {status}: {message}")
        return {"status": status, "run": self.row.run}

    def _write_result(self, status: int, message: str) -> None:
        write_private(self.record.result_path, {"status": status, "message": message, "run": self.row.run})


def _cpus() -> int:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return os.cpu_count() or 1
