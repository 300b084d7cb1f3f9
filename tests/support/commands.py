"""Run the project's commands as a user does, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.hosts import descendants as descendants

ROOT = Path(__file__).parent.parent.parent


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, with the checkout importable from any directory."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def command(module: str, *options: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, options)]


def run(module: str, *options: object, cwd: Path | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(module, *options),
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=900,
    )


def start(module: str, *options: object, cwd: Path) -> subprocess.Popen[str]:
    """The command in the background, in a process group of its own; its output goes to files in ``cwd``."""
    with (cwd / "stdout.txt").open("w") as out, (cwd / "stderr.txt").open("w") as err:
        return subprocess.Popen(
            command(module, *options),
            cwd=cwd,
            env=environment(),
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
        )


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
