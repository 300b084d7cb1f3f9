"""What runs on every node of a job, one task a node: the Ray cluster comes up, the run runs, everything stops.

Task 0 starts the head and, when the other nodes have joined, the run; the others join and wait for its end.
SLURM's signals concern the tasks alone: they do not reach Ray, and the run gets exactly one (SIGINT), because
it takes a second for impatience. How SLURM ends a job, as seen on version 22.05, is in docs/log.md.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission

from cluster import processes, ray_node, slurm
from cluster.records import Row, RowRecord, failures_after, progress_of, write_private
from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import read_json, write_text_atomic

EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE = 0, 1, 2, 75
# Starts that may fail, one after the other, without the run having saved anything new.
MAX_FAILURES = 3
# SLURM kills what is left KillWait seconds (30, unless the administrator says otherwise) after its SIGTERM.
_LEAVE_WITHIN = 20.0
_LOOK_EVERY = 0.2
# Seconds that a start needs until it trains, where none has been measured.
_START_SECONDS = 60.0


class RunFailed(RuntimeError):
    """The run ended with a status other than 0; the message is what submitit's result file shows."""


class _Leave(Exception):
    """End this task: nothing is to be done by it any more. One sentence says why."""


class _Unready(RuntimeError):
    """The Ray cluster did not come up, or a part of it has ended; another start may succeed. One sentence."""


class _Stopped(Exception):
    """SLURM told the job to stop before the run was started."""


@dataclass
class Task:
    """The function that submitit runs. folder: the job's; the rest as in partitions.toml."""

    folder: Path
    row: Row
    submitted: float
    notice: int
    join_timeout: int
    interface: str | None = None
    temp: str | None = None
    signals: list[int] = field(default_factory=list, init=False)
    heard: int = field(default=0, init=False)
    heard_at: float = field(default=0.0, init=False)
    will: str = field(default="", init=False)
    tries: dict[str, Any] = field(default_factory=dict, init=False)
    requeue: Callable[[int, FrameType | None], Any] | None = field(default=None, init=False)

    def checkpoint(self, *arguments: Any) -> DelayedSubmission:
        """What submitit stores for the next start: the same again; the run directory knows how far it is."""
        return DelayedSubmission(Task(**{name: getattr(self, name) for name in _FIELDS}))

    def __call__(self) -> dict[str, Any]:
        """Returns {"status": 0, "run": …}; raises RunFailed, or SystemExit if SLURM starts the job again."""
        processes.adopt_orphans()
        self.rank = int(os.environ.get("SLURM_PROCID", 0))
        self.number = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.job = os.environ.get("SLURM_JOB_ID", "0")
        self.nodes = submitit.JobEnvironment().hostnames
        self.record = RowRecord(self.folder, self.row.name)
        self.place = self.record.start(self.number)
        self.times = {"submitted": self.submitted, "began": time.time()}
        try:
            self._take_signals()
            try:
                return self._in_private_directory()
            except OSError as error:
                if self.rank:
                    raise
                return self._failed(error)
        except _Leave as reason:
            self._note(f"{reason}.")
            sys.exit(0)
        except (_Unready, ray_node.RayEnded, ConfigError, OSError) as error:
            self._note(f"error: {error}")
            if self.rank:
                write_text_atomic(self.place / f"failed-{self.rank}", str(error))
                raise RuntimeError(str(error)) from error
            return self._ended(EXIT_INPUT, str(error))
        except _Stopped:
            sys.exit(0)
        finally:
            if self.rank == 0:
                self._over("stopped")

    def _in_private_directory(self) -> dict[str, Any]:
        with ray_node.private_directory(ray_node.temporary_base(self.temp), self.job) as temp:
            try:
                return self._lead(temp) if self.rank == 0 else self._follow(temp)
            finally:
                ray_node.end_descendants()

    # ---- task 0

    def _failed(self, error: OSError) -> dict[str, Any]:
        """A file could not be read or written: a failure like others, as long as these can be counted."""
        try:
            if not self.tries:
                self._begin()
            return self._conclude(EXIT_FAILED, str(error))
        except OSError as again:
            self._note(f"error: {again}")
            return self._ended(EXIT_FAILED, str(again))

    def _begin(self) -> None:
        self.record.result_path.unlink(missing_ok=True)
        os.makedirs(self.place, mode=0o700, exist_ok=True)
        self.tries = self._count_tries()

    def _lead(self, temp: Path) -> dict[str, Any]:
        self._begin()
        token = self.place / "token"
        token.unlink(missing_ok=True)
        ray_node.new_token(token)
        message = ""
        try:
            self._start_head(temp, token)
            status = self._drive(token)
        except _Stopped:
            status = EXIT_REQUEUE
        except (_Unready, ray_node.RayEnded, OSError) as error:
            status, message = EXIT_FAILED, str(error)
        finally:
            token.unlink(missing_ok=True)
        ray_node.end_descendants()
        self._write_times()
        self._check_newest()
        return self._conclude(status, message)

    def _count_tries(self) -> dict[str, Any]:
        """Failures so far; a start that ended without a word counts as one. Raises ConfigError after too many."""
        now = progress_of(Path(self.row.run))
        tries = read_json(self.record.tries_path) or {"failures": 0, "progress": now, "asked": True}
        same = tries["progress"] == now
        failures = (tries["failures"] if same else 0) if tries["asked"] else failures_after(tries, now)
        if failures >= MAX_FAILURES:
            raise ConfigError(_GIVEN_UP.format(count=failures, output=self.record.output))
        tries = {"failures": failures, "progress": now, "asked": False, "start": self.number}
        write_private(self.record.tries_path, tries)
        return tries

    def _start_head(self, temp: Path, token: Path) -> None:
        others = self.nodes[1:]
        address = ray_node.own_address(slurm.node_address(others[0]) if others else None, self.interface)
        node = self.ray = ray_node.RayNode(temp, self.place / "ray-0.log", token, address, _cpus())
        self._wait(node.up, self.join_timeout, f"Ray's head on {self.nodes[0]} did not come up")
        self.times["head"] = time.time()
        write_text_atomic(self.place / "address", node.gcs_address)
        for rank, name in enumerate(others, 1):
            left = self.join_timeout - (time.time() - self.times["head"])
            what = f"Node {name} (task {rank}) did not join the Ray cluster, see {self.place / f'ray-{rank}.log'},"
            self._wait(lambda rank=rank: self._joined(rank), max(left, 0), what)  # type: ignore[misc]
        self.times["joined"] = time.time()
        port = node.dashboard_port
        write_text_atomic(self.place / "dashboard", str(port))
        host = socket.gethostname()
        self._note(
            f"Start {self.number} of job {self.job} on {', '.join(self.nodes)}. Ray's dashboard (it asks for the token "
            f"in {token}): ssh -N -L {port}:127.0.0.1:{port} {host}, then http://127.0.0.1:{port}"
        )

    def _joined(self, rank: int) -> bool:
        failed = self.place / f"failed-{rank}"
        if failed.exists():
            raise _Unready(failed.read_text())
        return (self.place / f"node-{rank}").exists()

    def _drive(self, token: Path) -> int:
        """Run the command to its end; its exit status."""
        end = slurm.end_time(self.job)
        variables = {**ray_node.environment(token), "RAY_ADDRESS": (self.place / "address").read_text()}
        if end is not None:
            variables["IMA_DIST_LAST_START"] = str(end - self.notice - _START_SECONDS)
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
            if self.signals and not told:
                driver.send_signal(signal.SIGINT)
                told = True
            if self._hear():
                self._note(f"{signal.Signals(self.signals[-1]).name}: {_SAID[self.will]}.")
            if self._must_leave():
                self._note("The run has not ended in time; its last checkpoint counts.")
                return EXIT_REQUEUE
            time.sleep(_LOOK_EVERY)
        return int(driver.returncode)

    def _look(self) -> None:
        """Things that may happen while the run runs."""
        self._check_newest()
        if self.ray.process.poll() is not None:
            raise _Unready(f"Ray has ended on {self.nodes[0]}: see {self.place / 'ray-0.log'}")
        if "first_step" not in self.times:
            progress = Path(self.row.run) / "progress.json"
            with contextlib.suppress(OSError, ConfigError):
                state = read_json(progress) or {}
                if state.get("updated", 0) > self.times["driver"] and state.get("step"):
                    self.times["first_step"] = state["updated"]
                    self._write_times()

    def _write_times(self) -> None:
        # They are worth no run.
        with contextlib.suppress(OSError):
            write_private(self.place / "times.json", self.times)

    def _what_slurm_wants(self) -> str:
        """ "save": end with a checkpoint and requeue; "again": SLURM has requeued the job itself; "cancel"."""
        known = slurm.job(self.job)
        if int(known.get("Restarts", self.number)) > self.number:
            return "again"
        state = known.get("JobState", "CANCELLED" if signal.SIGTERM in self.signals else "RUNNING")
        return "save" if state == "RUNNING" or self.signals[-1:] == [signal.SIGUSR2] else "cancel"

    def _conclude(self, status: int, message: str) -> dict[str, Any]:
        """What becomes of the job, now that the run has ended with ``status``."""
        if status == EXIT_DONE:
            return self._ended(status, message)
        if status == EXIT_INPUT:
            return self._ended(status, message or self._complaint())
        # Asked also without a signal: a node that was given up for dead gets none.
        will = self.will or self._what_slurm_wants()
        if self.signals:
            self._was_asked()
        if will == "again":
            raise _Leave("SLURM starts the job again")
        if will == "cancel":
            self._write_result(EXIT_REQUEUE, "cancelled")
            raise _Leave("Cancelled; another submission continues from the last checkpoint")
        if self.signals:
            self._requeue("Saved")
        if status == EXIT_REQUEUE:
            # Told so by someone else, or too late for another pass.
            self._was_asked()
            self._requeue("The run has stopped")
        failures = failures_after(self.tries, progress_of(Path(self.row.run)))
        if failures < MAX_FAILURES:
            what = message.rstrip(".") or f"The run failed with status {status}"
            self._requeue(f"{what} (failure {failures} of {MAX_FAILURES} without progress)")
        return self._ended(EXIT_FAILED, _GIVEN_UP.format(count=failures, output=self.record.output))

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

    def _requeue(self, why: str) -> None:
        self._note(f"{why}; the job is requeued and continues from the last checkpoint.")
        if self.requeue is None:
            raise _Leave("Not started by submitit, so not requeued")
        self._over("stopped")
        # submitit's own handler: stores what checkpoint() returns, calls scontrol requeue, and exits.
        self.requeue(signal.SIGUSR2, None)

    def _ended(self, status: int, message: str) -> dict[str, Any]:
        self._write_result(status, message)
        self._over("done")
        if status != EXIT_DONE:
            message = message or f"see {self.record.output}"
            raise RunFailed(f"{self.row.name} ended with status {status}: {message}")
        return {"status": status, "run": self.row.run}

    def _write_result(self, status: int, message: str) -> None:
        write_private(self.record.result_path, {"status": status, "message": message, "run": self.row.run})

    # ---- the other tasks

    def _follow(self, temp: Path) -> dict[str, Any]:
        head = self.place / "address"
        self._wait(head.exists, 2 * self.join_timeout, f"Task 0 on {self.nodes[0]} gave no address")
        address = head.read_text()
        own = ray_node.own_address(address.rsplit(":", 1)[0], self.interface)
        log = self.place / f"ray-{self.rank}.log"
        node = ray_node.RayNode(temp, log, self.place / "token", own, _cpus(), address)
        self._wait(node.up, self.join_timeout, f"Ray on {self.nodes[self.rank]} did not join {address}")
        write_text_atomic(self.place / f"node-{self.rank}", own)
        over = self.place / "over"
        while not over.exists():
            self._check_newest()
            if node.process.poll() is not None:
                raise _Leave(f"Ray has ended on {self.nodes[self.rank]}")
            self._hear()
            if self._must_leave():
                break
            time.sleep(_LOOK_EVERY)
        if over.exists() and over.read_text() == "done":
            return {"status": EXIT_DONE, "run": self.row.run}
        raise _Stopped

    # ---- both

    def _over(self, how: str) -> None:
        """Tell the other tasks that they are no longer needed; the first word counts."""
        if not (self.place / "over").exists():
            write_text_atomic(self.place / "over", how)

    def _take_signals(self) -> None:
        handler = signal.getsignal(signal.SIGUSR2)
        self.requeue = handler if callable(handler) else None

        def note(signum: int, frame: FrameType | None) -> None:
            self.signals.append(signum)

        for s in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(s, note)

    def _hear(self) -> bool:
        """Ask what is wanted if signals have come; whether that is something else than before."""
        if len(self.signals) == self.heard:
            return False
        before, self.heard, self.heard_at = self.will, len(self.signals), time.monotonic()
        self.will = self._what_slurm_wants()
        return self.will != before

    def _must_leave(self) -> bool:
        """Whether SLURM will soon kill what is left of this task; not while a pre-empted job has its grace time."""
        return bool(self.heard) and self.will != "save" and time.monotonic() - self.heard_at > _LEAVE_WITHIN

    def _check_newest(self) -> None:
        """A task whose node was given up for dead must not go on beside the job's next start."""
        if self.record.newest_start() > self.number:
            ray_node.end_descendants()
            raise _Leave(f"Start {self.number} on {socket.gethostname()} ends: the job has been started again")

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        while not condition():
            self._check_newest()
            if (self.signals and self.rank == 0) or (self.rank and (self.place / "over").exists()):
                raise _Stopped
            if time.monotonic() > until:
                raise _Unready(f"{what} within {self.join_timeout} s.")
            time.sleep(_LOOK_EVERY)

    def _note(self, text: str) -> None:
        os.makedirs(self.record.path, mode=0o700, exist_ok=True)
        self.record.say(text)
        print(text, flush=True)


_FIELDS = ("folder", "row", "submitted", "notice", "join_timeout", "interface", "temp")
_SAID = {
    "save": "the run saves what it has done, and the job is requeued",
    "again": "SLURM has requeued the job; the run saves what it has done",
    "cancel": "SLURM ends the job for good; the run saves what it has done",
}
_GIVEN_UP = "It has failed {count} times without getting further, so it is not started again; see {output}"


def _cpus() -> int:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return os.cpu_count() or 1
