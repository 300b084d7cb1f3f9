"""One trial of a sweep under Ray Tune: ``ima_dist.train``, then ``ima_dist.evaluate``, each in its own process.

A trial's actor holds no CPU. It starts the command, which joins the same Ray cluster and takes the workers it needs,
and reports to Tune every epoch that appears in the run's history. Epochs of an earlier start are reported in the same
way, so that a continued sweep asks its scheduler and search again without training anything twice.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search.repeater import TRIAL_INDEX

from ima_dist.config.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, EXIT_STOPPED, ConfigError
from ima_dist.launch.cluster import settled
from ima_dist.plans.jobfile import run_path
from ima_dist.plans.pending import next_command
from ima_dist.plans.sweepfile import Sweep
from ima_dist.plans.trial_record import Record
from ima_dist.rundir.directory import RunDir
from ima_dist.worker.main import STOP_FILE

METRIC = "val_robust_accuracy"
LOOK_EVERY = 0.3
# Seconds that a command gets to write its checkpoint.
LEAVE_WITHIN = 120.0
# Of the signals to stop, the command receives only SIGINT: from its trial, or when that dies (PR_SET_PDEATHSIG). Those
# that SLURM sends to all processes would reach it twice, and Ray's processes start with some of them blocked.
_START = f"""
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, signal.SIGINT)
if os.getppid() != parent:
    sys.exit({EXIT_REQUEUE})
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
"""


@dataclass(frozen=True)
class Work:
    """What all trials of a sweep share. root: its directory. cpus: per worker, unless the file gives a number.
    environment, directory: those of the commands.
    """

    sweep: Sweep
    root: Path
    cpus: int
    environment: dict[str, str]
    directory: str


def combination(sweep: Sweep, config: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The swept options of a trial, and its seed. config: Tune's, in which a trial of a plan has one entry, "trial"."""
    if planned := config.get("trial"):
        return planned["values"], planned["seed"]
    return {name: config[name] for name in sweep.space}, sweep.seeds[config.get(TRIAL_INDEX, 0)]


class Trial(tune.Trainable):
    """One run. Each result is an epoch; the last has "done" and a "status": "finished", "interrupted", "failed" with a
    "message", or "stopped" if ASHA stopped it in an earlier start.
    """

    def setup(self, config: dict[str, Any], work: Work) -> None:  # type: ignore[override]
        self.work, self.ended = work, False
        self.process: subprocess.Popen[bytes] | None = None
        self.asked_at: float | None = None
        self.commands: list[tuple[str, list[str]]] = []
        values, seed = combination(work.sweep, config)
        if "trial" in config:
            run_config, self.epochs = work.sweep.runs[config["trial"]["planned"]]
        else:
            point = work.sweep.point(values, seed)
            run_config, self.epochs = point.config, (point.epoch,)
        self.run = RunDir(run_path(work.root, run_config))
        self.settled = settled(run_config, work.cpus)
        self.record = Record(work.root, self.run.path.name)
        self.first = {"values": values, "seed": seed, "began": self.record.read().get("began", time.time())}
        self.told = 0
        self.newest: dict[str, Any] = {METRIC: math.nan}

    def step(self) -> dict[str, Any]:
        while True:
            found = self._next_epoch() or (self._watch(self.process) if self.process else self._start_next())
            if found is not None:
                return found
            time.sleep(LOOK_EVERY)

    def _start_next(self) -> dict[str, Any] | None:
        """Start the next command; returns the outcome if there is none."""
        if (self.work.root / STOP_FILE).exists():
            return self._end("interrupted")
        if not self.record.hold():
            return None
        if self.work.sweep.asha and self.record.read().get("status") == "stopped":
            return self._end("stopped")
        try:
            command = next_command(self.settled, self.run.path, self.epochs)
        except ConfigError as error:
            return self._end("failed", str(error), EXIT_INPUT)
        if command is None:
            return self._end("finished")
        if command in self.commands:
            message = f"{self.run.path} still lacks results after its commands have ended"
            return self._end("failed", message, EXIT_FAILED)
        self.commands.append(command)
        self._start(*command)
        return None

    def _watch(self, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
        """Look after the command; returns the outcome if it has ended without success."""
        status = process.poll()
        if status is None:
            self._pass_on_stop(process)
            return None
        self.process = None
        # After SIGINT: before it had written anything, or while Python was loading it.
        if status in (EXIT_REQUEUE, EXIT_STOPPED, -signal.SIGINT):
            return self._end("interrupted")
        return None if status == EXIT_DONE else self._end("failed", self._sentence(status), status)

    def cleanup(self) -> None:
        """Called by Tune when the trial has ended, or the scheduler or a signal stops it."""
        if not self.ended:
            stopped = not (self.work.root / STOP_FILE).exists()
            # A trial that had finished in an earlier start keeps its status.
            if self.record.read().get("status") != "finished":
                self.record.write(**self.first, status="stopped" if stopped else "interrupted", epoch=self.told)
            self._end_process()
        self.record.release()

    def _next_epoch(self) -> dict[str, Any] | None:
        """The next epoch to report; the last is reported with the outcome."""
        row = None
        with contextlib.suppress(ConfigError, OSError):
            row = next((row for row in self.run.read_history() if row["epoch"] > self.told), None)
        if row is None:
            return None
        metric = row.get(METRIC)
        self.newest = {METRIC: math.nan if metric is None else metric, "val_accuracy": row.get("val_accuracy")}
        if row["epoch"] >= self.settled.epochs:
            return None
        self.told = row["epoch"]
        return {"epoch": self.told, **self.newest}

    def _end(self, status: str, message: str | None = None, code: int = 0) -> dict[str, Any]:
        self.ended = True
        epoch = self.settled.epochs if status == "finished" else self.told
        if self.record.hold():
            self.record.write(**self.first, status=status, message=message, epoch=epoch, code=code)
        self.record.release()
        # The search takes the metric of the last result.
        metric = {METRIC: math.nan} if status == "failed" else self.newest
        return {"done": True, "status": status, "message": message, "epoch": epoch, **metric}

    def _start(self, module: str, words: list[str]) -> None:
        command = [sys.executable, "-c", _START, str(os.getpid()), module, *words]
        with self.record.output.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env=self.work.environment,
                cwd=self.work.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.record.write(**self.first, status="running", message=None)

    def _pass_on_stop(self, process: subprocess.Popen[bytes]) -> None:
        if self.asked_at is None:
            if (self.work.root / STOP_FILE).exists():
                process.send_signal(signal.SIGINT)
                self.asked_at = time.monotonic()
        elif time.monotonic() - self.asked_at > LEAVE_WITHIN:
            process.kill()

    def _end_process(self) -> None:
        if self.process is None:
            return
        if self.process.poll() is None and self.asked_at is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(LEAVE_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _sentence(self, status: int) -> str:
        """Why a command failed: the last error in its output."""
        lines = self.record.output.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else f"It ended with exit status {status}: see {self.record.output}"
