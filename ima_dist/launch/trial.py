"""Ray Tune: the trials of a sweep. Each is ``ima_dist.train``, and then ``ima_dist.evaluate``, in processes of its own.

A trial's actor holds no CPU: it starts the command, which joins the same Ray cluster and takes the workers it
needs, and tells Tune of every epoch that it finds in the run's history. What an earlier start has done is read
from there as well, so that a continued sweep asks its scheduler and search again without training anything twice.
"""

from __future__ import annotations

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

from ima_dist.config.errors import ConfigError
from ima_dist.launch.tune import settled
from ima_dist.plans.jobfile import run_path
from ima_dist.plans.pending import next_command
from ima_dist.plans.sweepfile import Sweep
from ima_dist.plans.trial_record import Record
from ima_dist.rundir.directory import RunDir

METRIC = "val_robust_accuracy"
STOP_FILE = "stop-requested"
_DONE, _INPUT, _REQUEUE = 0, 2, 75  # exit statuses of the commands
LOOK_EVERY = 0.3
# Seconds that a command has for its checkpoint.
LEAVE_WITHIN = 120.0
# The command hears SIGINT alone, which comes from us, also when we have died (PR_SET_PDEATHSIG): a signal that SLURM
# sends to all processes, or that was blocked where Ray was started, must not reach it a second time, or never.
_START = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, signal.SIGINT)
if os.getppid() != parent:
    sys.exit(75)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
"""


@dataclass(frozen=True)
class Work:
    """What all trials of a sweep share. root: its directory. cpus: of a worker, where the file does not say.
    environment, directory: of the commands.
    """

    sweep: Sweep
    root: Path
    cpus: int
    environment: dict[str, str]
    directory: str


class Trial(tune.Trainable):
    """One run. A result is an epoch of it; the last has "done" and how it ended: "finished", "interrupted",
    "failed" with a "message", or "stopped", by ASHA in an earlier start.
    """

    def setup(self, config: dict[str, Any], work: Work) -> None:  # type: ignore[override]
        self.work, self.ended = work, False
        self.process: subprocess.Popen[bytes] | None = None
        self.asked_at: float | None = None
        self.last_command: tuple[str, list[str]] | None = None
        if "planned" in config:
            values, seed = config["values"], config["seed"]
            run_config, self.epochs = work.sweep.runs[config["planned"]]
        else:
            seed = work.sweep.seeds[config.get(TRIAL_INDEX, 0)]
            values = {name: config[name] for name in work.sweep.space}
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
            row = self._next_epoch()
            if row is not None:
                return row
            if self.process is not None:
                status = self.process.poll()
                if status is None:
                    self._pass_on_stop()
                else:
                    self.process = None
                    if status == _REQUEUE:
                        return self._end("interrupted")
                    if status != _DONE:
                        return self._end("failed", self._sentence(status), status)
                    continue
            elif (self.work.root / STOP_FILE).exists():
                return self._end("interrupted")
            elif self.record.hold():
                if self.work.sweep.asha and self.record.read().get("status") == "stopped":
                    return self._end("stopped")
                try:
                    command = next_command(self.settled, self.run.path, self.epochs)
                except ConfigError as error:
                    return self._end("failed", str(error), _INPUT)
                if command is None:
                    return self._end("finished")
                if command == self.last_command:
                    return self._end("failed", f"{self.run.path} lacks results although its commands have ended", 1)
                self.last_command = command
                self._start(*command)
            time.sleep(LOOK_EVERY)

    def cleanup(self) -> None:
        """Tune wants no more of this trial: it has ended, or the scheduler stops it."""
        if not self.ended:
            stopped = not (self.work.root / STOP_FILE).exists()
            # One that had finished before is only looked at again.
            if self.record.read().get("status") != "finished":
                self.record.write(**self.first, status="stopped" if stopped else "interrupted", epoch=self.told)
            self._end_process()
        self.record.release()

    def _next_epoch(self) -> dict[str, Any] | None:
        """The next epoch that Tune has not heard of; the last is told at the end, with the outcome."""
        rows = []
        with contextlib.suppress(ConfigError, OSError):
            rows = [row for row in self.run.read_history() if row["epoch"] > self.told]
        if not rows:
            return None
        row = min(rows, key=lambda row: row["epoch"])
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
        # To be heard by the search, which takes the last result.
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

    def _pass_on_stop(self) -> None:
        assert self.process is not None
        if self.asked_at is None:
            if (self.work.root / STOP_FILE).exists():
                self.process.send_signal(signal.SIGINT)
                self.asked_at = time.monotonic()
        elif time.monotonic() - self.asked_at > LEAVE_WITHIN:
            self.process.kill()

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
        """Why a command has failed: the last complaint in its output."""
        lines = self.record.output.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else f"It ended with status {status}: see {self.record.output}"
