"""A training command on two hosts, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.hosts import ROOT, Hosts, processes_on
from ima_dist.config.values import as_flags
from ima_dist.rundir.directory import RunDir

EPOCHS, STEPS, EVERY = 4, 20, 5
OPTIONS = {
    "data.subset": 1000,
    "batch_size": 50,
    "epochs": EPOCHS,
    "checkpoint_every": EVERY,
    "dtype": "float64",
    "workers": 2,
    "optimizer.lr": 0.01,
    "eval.attacks": ("worst",),
    "eval.steps": 2,
    "eval.noise": (0.0, 0.1),
    "model.factory": "benchmarks.slow_network:build",
}
_PATIENCE = 400.0  # seconds for a run to end, or to reach the moment of the fault
_GONE_AFTER = 120.0  # seconds that the workers of a run may outlive its command


class Command:
    """``ima_dist.train`` on the first host, begun or resumed."""

    def __init__(self, hosts: Hosts, run: RunDir, scratch: Path) -> None:
        self.hosts, self.run, self.scratch = hosts, run, scratch
        self._before, self._base = len(read(scratch / "count")), last_whole(run)
        resume = ["--resume", str(run.path)] if run.config_path.exists() else []
        words = resume or ["moons", *as_flags(OPTIONS), "--out", str(run.path)]
        with (scratch / "said.txt").open("wb") as said:
            self.driver = subprocess.Popen(
                hosts.on(0, sys.executable, "-m", "ima_dist.train", *words),
                env=hosts.environment,
                cwd=ROOT,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def record(self) -> str:
        """What ``slow_network`` has written since the command was started."""
        return read(self.scratch / "count")[self._before :]

    def reached(self) -> tuple[int, int]:
        """Training steps begun, those of the checkpoint it started from included, and passes of the margin pass
        since the last one.
        """
        record = self.record()
        return self._base + record.count("t"), len(record.rpartition("t")[2])

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """False if the run ended first."""
        until = time.monotonic() + _PATIENCE
        while not condition():
            if self.driver.poll() is not None:
                return False
            if time.monotonic() > until:
                raise TimeoutError("the run does not get on")
            time.sleep(0.005)
        return True

    def end(self) -> int:
        """Exit status; a command that does not end is killed: 124."""
        try:
            return self.driver.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill_driver()
            return 124

    def sentence(self) -> str:
        """The last that it has said to its user."""
        lines = read(self.scratch / "said.txt").strip().splitlines()
        said = [line for line in lines if line.startswith(("error:", "Interrupted.", "Stopped", "Results:"))]
        return (said or lines or [""])[-1].replace(str(self.run.path), "RUN")

    def warnings(self) -> list[str]:
        """What it has complained of so far."""
        lines = read(self.scratch / "said.txt").splitlines()
        return [line.replace(str(self.run.path), "RUN") for line in lines if line.startswith("warning:")]

    def kill_driver(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()

    def processes(self, host: int, name: str) -> list[int]:
        """Processes of a host whose title, or whose program, begins with ``name``."""
        found = []
        for pid in processes_on(self.hosts.names[host]):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
                if title.split("/")[-1].startswith(name):
                    found.append(pid)
        return found

    def kill(self, host: int, name: str) -> None:
        for pid in self.processes(host, name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_workers(self) -> None:
        for host in (0, 1):
            self.kill(host, _WORKER)

    def left(self) -> int:
        """Processes of the run that are still there when they should be gone."""
        until = time.monotonic() + _GONE_AFTER
        while True:
            found = [pid for host in (0, 1) for pid in self.processes(host, _WORKER)]
            if not found or time.monotonic() > until:
                return len(found)
            time.sleep(0.2)

    def newest(self, pattern: str) -> Path:
        return max(self.run.path.glob(pattern), key=lambda p: p.stat().st_mtime)


def read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


_WORKER = "ray::RayTrainWorker"


# ---- what can break. Each is called at the drawn moment; the run may go on or end.


def last_whole(run: RunDir) -> int:
    """Training steps that the newest undamaged checkpoint holds."""
    found = [0]
    for file in run.checkpoints_dir.glob("epoch=*/state.json"):
        state = json.loads(file.read_text())
        paths = {run.path / name: digest for name, digest in state["files"].items()}
        if all(p.exists() and hashlib.sha256(p.read_bytes()).hexdigest() == d for p, d in paths.items()):
            found.append(state["epoch"] * STEPS + state["step"])
    return max(found)
