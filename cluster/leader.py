"""Task 0 of a start: it starts Ray's head and the run, and decides what becomes of the job."""

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from cluster import policy, processes, ray_node, slurm
from cluster.policy import Action, Wants
from cluster.records import REQUEUE_FILE, progress_of, write_private
from cluster.start import ASK_EVERY, LOOK_EVERY, Leave, Start, Stopped, Unready, cpus
from ima_dist.config.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, ConfigError
from ima_dist.rundir.files import read_json, write_text_atomic

# Seconds that a start needs until it trains, where none has been measured.
_START_SECONDS = 60.0
# Seconds for which a requeue that the controller refuses is tried again, while SLURM is not ending the job.
_REQUEUE_SECONDS = 180.0
_KEPT = "Its last checkpoint is kept: submit it again."
_SAID = {
    Wants.SAVE: "the run saves its state, then the job is requeued",
    Wants.REQUEUE: "SLURM is ending the job, which asks to be requeued; until it is killed the run saves its state",
    Wants.AGAIN: "SLURM has requeued the job; the run saves its state",
    Wants.CANCEL: "the job was cancelled; the run saves its state",
    Wants.UNKNOWN: "SLURM is ending the job and does not say why; the run saves its state",
}


class RunFailed(RuntimeError):
    """The run ended with a status other than 0; submitit's result file shows the message."""


class Leader(Start):
    """A start as seen by task 0, which starts the run and decides what becomes of the job."""

    tries: dict[str, Any]
    _try_next = 0.0

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
        except (ConfigError, OSError) as error:  # after an OSError failures cannot even be counted
            self.note(f"error: {error}")
            return self._finish(EXIT_INPUT if isinstance(error, ConfigError) else EXIT_FAILED, str(error))
        finally:
            self.over("stopped")

    def told_to_stop(self) -> bool:
        return bool(self.situation.signals)

    def _begin(self) -> None:
        """Count this start."""
        self.record.result_path.unlink(missing_ok=True)
        os.makedirs(self.place, mode=0o700, exist_ok=True)
        now = progress_of(Path(self.row.run))
        before = read_json(self.record.tries_path)
        failures, idle = policy.failures_before(before, now), policy.idle_after(before, now) if before else 0
        self.tries = {"failures": failures, "idle": idle, "progress": now, "asked": False, "start": self.number}
        write_private(self.record.tries_path, self.tries)

    # ---- the run

    def _attempt(self, temp: Path) -> tuple[int, str]:
        """Start Ray and run the command; its exit status, and what went wrong if that is known.

        Raises ConfigError after too many failures.
        """
        if self.tries["failures"] >= policy.MAX_FAILURES:
            raise ConfigError(policy.GIVEN_UP.format(count=self.tries["failures"], output=self.record.output))
        token = self.place / "token"
        token.unlink(missing_ok=True)
        ray_node.new_token(token)
        try:
            self._start_head(temp, token)
            return self._drive(token), ""
        except Stopped:
            return EXIT_REQUEUE, ""
        except (Unready, ray_node.RayEnded) as error:
            return EXIT_FAILED, str(error)
        finally:
            token.unlink(missing_ok=True)

    def _start_head(self, temp: Path, token: Path) -> None:
        others, patience = self.nodes[1:], self.task.join_timeout
        towards = slurm.node_address(others[0]) if others else None
        address = ray_node.own_address(towards, self.task.interface)
        node = self.ray = ray_node.RayNode(temp, self.place / "ray-0.log", token, address, cpus())
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
            raise Unready(failed.read_text())
        return (self.place / f"node-{rank}").exists()

    def _drive(self, token: Path) -> int:
        """Run the command to its end; its exit status."""
        self.hear(ask=True)
        variables = {**ray_node.environment(token), "RAY_ADDRESS": (self.place / "address").read_text()}
        if self.situation.end is not None:
            variables["IMA_DIST_LAST_START"] = str(self.situation.end - self.task.notice - _START_SECONDS)
        # The run hears of SLURM's signals through us; in its processes they stay pending.
        words, env = [sys.executable, *expanded(self.row.command)], {**os.environ, **variables}
        driver = processes.start(words, env, self.record.output, signal.SIGTERM, signal.SIGUSR2)
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
            time.sleep(LOOK_EVERY)
        return int(driver.returncode)

    def _look(self) -> None:
        """Notice what may happen while the run runs."""
        self.check_newest()
        if self.ray.process.poll() is not None:
            raise Unready(f"Ray has ended on {self.nodes[0]}: see {self.place / 'ray-0.log'}")
        if "first_step" not in self.times:
            with contextlib.suppress(OSError, ConfigError):
                state = read_json(Path(self.row.run) / "progress.json") or {}
                if state.get("updated", 0) > self.times["driver"] and state.get("step"):
                    self.times["first_step"] = state["updated"]
                    self._write_times()

    def _answer(self) -> None:
        """Listen to SLURM. A job that it is ending is requeued first and saved second: the run may take too long."""
        if self.hear():
            names = dict.fromkeys(signal.Signals(number).name for number, _ in self.situation.signals)
            self.note(f"{' and '.join(names)}: {_SAID[self.situation.wants]}.")
        if self.situation.wants is Wants.REQUEUE and time.time() > self._try_next:
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
        now = progress_of(Path(self.row.run))
        failures, idle = policy.failures_after(self.tries, now), policy.idle_after(self.tries, now)
        decision = policy.decide(status, message, self.situation, failures, self.record.output, idle)
        if not decision.counted and (self.situation.signals or decision.action is Action.REQUEUE):
            self._was_asked()
        if decision.action is Action.REQUEUE:
            return self._requeue(decision.message)
        if decision.action is Action.CANCELLED:
            self._write_result(EXIT_REQUEUE, "cancelled")
        if decision.action is not Action.FINISH:
            raise Leave(decision.message)
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
        self._try_next = time.time() + ASK_EVERY
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

    def _hand_over(self, why: str, file: str) -> NoReturn:
        """Leave the requeue to the job's batch script, which runs outside a container that has no scontrol.

        Raises Leave. The result is for a script that SLURM refuses.
        """
        message = f"{why}; the job could not be requeued by its batch script. {_KEPT}"
        write_private(self.record.path / "refused.json", self._result(EXIT_REQUEUE, message))
        write_text_atomic(Path(file), self.row.name)
        raise Leave(f"{why}; there is no scontrol here, so the job's batch script asks SLURM to requeue it")

    def _requeue(self, why: str) -> dict[str, Any]:
        """Have the job started again, and leave; the job ends with a result if SLURM refuses for too long."""
        self.over("stopped")
        file = os.environ.get(REQUEUE_FILE)
        if file and shutil.which("scontrol") is None:
            self._hand_over(why, file)
        until = time.time() + _REQUEUE_SECONDS
        while refusal := self._try_requeue():
            if self.situation.wants is Wants.CANCEL:
                return self._conclude(EXIT_REQUEUE, "")
            late = time.time() > until or self.situation.stopping(time.time(), policy.REQUEUE_UNTIL)
            if late or not self.situation.may_requeue:
                return self._finish(EXIT_REQUEUE, f"{why}; the job could not be requeued ({refusal}). {_KEPT}")
            time.sleep(ASK_EVERY)
        raise Leave(f"{why}; the job is requeued and continues from its last checkpoint")

    def _finish(self, status: int, message: str) -> dict[str, Any]:
        self._write_result(status, message)
        self.over("done")
        if status != EXIT_DONE:
            message = message or f"see {self.record.output}"
            raise RunFailed(f"{self.row.name} ended with status {status}: {message}")
        return {"status": status, "run": self.row.run}

    def _write_result(self, status: int, message: str) -> None:
        write_private(self.record.result_path, self._result(status, message))

    def _result(self, status: int, message: str) -> dict[str, Any]:
        return {"status": status, "message": message, "run": self.row.run}


def expanded(command: list[str]) -> list[str]:
    """A row's command with the variables in its --data.dir replaced by their values here. Raises ConfigError."""
    words = list(command)
    for i, word in enumerate(words[:-1]):
        if word == "--data.dir":
            words[i + 1] = ray_node.expanded(words[i + 1], "--data.dir")
    return words
