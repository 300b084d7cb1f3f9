"""Signals that ask the driver to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ima_dist.launch.signals import STOP_SIGNALS, Stopped, blocked, forwarding_signals, stopping_at_once
from tests.support.commands import ROOT

_DRIVER = """
import pathlib, sys, time
from ima_dist.launch.signals import forwarding_signals
stop, left = map(pathlib.Path, sys.argv[1:])
with forwarding_signals(stop, left.touch):
    print("ready", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def driver(tmp_path: Path, nothing_to_save: str = "") -> Iterator[tuple[subprocess.Popen[str], Path, Path]]:
    """A driver that waits, the file by which it asks its workers to stop, and one that it leaves at its end."""
    stop, left = tmp_path / "stop", tmp_path / "left"
    code = _DRIVER.replace("left.touch)", f"left.touch{nothing_to_save})")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(stop), str(left)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        yield process, stop, left


def test_the_second_signal_ends_a_driver_whose_workers_hang(tmp_path: Path) -> None:
    with driver(tmp_path) as (process, stop, left):
        while not stop.exists():
            time.sleep(0.01)
        assert not left.exists()
        while process.poll() is None:
            process.send_signal(signal.SIGUSR2)
            time.sleep(0.1)
        _, said = process.communicate()
    assert process.returncode == 75
    assert left.exists()
    assert said.startswith("Stopping: saving a checkpoint first.\nStopped immediately; the last checkpoint is kept.\n")


def test_one_signal_is_enough_while_there_is_nothing_to_save(tmp_path: Path) -> None:
    with driver(tmp_path, ", lambda: True") as (process, stop, left):
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (75, "Stopped before the training began; nothing is lost.\n")
    assert left.exists()
    assert not stop.exists()


def test_handlers_and_masks_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(s) for s in STOP_SIGNALS]
    with stopping_at_once():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGUSR2)
        with forwarding_signals(tmp_path / "stop", lambda: None):
            os.kill(os.getpid(), signal.SIGUSR2)
        assert (tmp_path / "stop").exists()
        with blocked(signal.SIGUSR2):
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR2}
    assert [signal.getsignal(s) for s in STOP_SIGNALS] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_full_log_does_not_keep_a_signal_from_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None: ...

    monkeypatch.setattr(sys, "stderr", Full())
    with forwarding_signals(tmp_path / "stop", lambda: None):
        os.kill(os.getpid(), signal.SIGUSR2)
    assert (tmp_path / "stop").exists()
