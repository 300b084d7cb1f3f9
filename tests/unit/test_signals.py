"""Signals that ask the driver to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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


def test_the_second_signal_ends_a_driver_whose_workers_hang(tmp_path: Path) -> None:
    stop, left = tmp_path / "stop", tmp_path / "left"
    with subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(stop), str(left)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as driver:  # fmt: skip
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        driver.send_signal(signal.SIGTERM)
        while not stop.exists():
            time.sleep(0.01)
        assert not left.exists()
        while driver.poll() is None:
            driver.send_signal(signal.SIGUSR2)
            time.sleep(0.1)
        _, said = driver.communicate()
    assert driver.returncode == 75
    assert left.exists()
    assert said.startswith("Stopping: saving a checkpoint first.\nStopped immediately; the last checkpoint is kept.\n")


def test_one_signal_is_enough_while_there_is_nothing_to_save(tmp_path: Path) -> None:
    stop, left = tmp_path / "stop", tmp_path / "left"
    waiting = _DRIVER.replace("left.touch)", "left.touch, lambda: True)")
    with subprocess.Popen(
        [sys.executable, "-c", waiting, str(stop), str(left)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as driver:  # fmt: skip
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=60)
    assert (driver.returncode, said) == (75, "Stopped before the training began; nothing is lost.\n")
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
