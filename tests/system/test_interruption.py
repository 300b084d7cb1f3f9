"""Stopped, killed and resumed, on real Ray clusters; and the same answer on one worker and two."""

from __future__ import annotations

import os
import platform
import signal
import time
from typing import Any

import pytest
import torch

from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json
from tests.support import commands, workers
from tests.support.runs import check_files

pytestmark = pytest.mark.slow


def test_stopped_killed_and_resumed_equals_undisturbed(tmp_path, monkeypatch):
    """SIGTERM in mid-epoch, kill -9 of driver and workers in mid-epoch, SIGTERM in the evaluation, to the end."""
    options = {
        "model__factory": "tests.support.user_code:unhurried", "dtype": "float64", "data__subset": 4000, "epochs": 4,
        "batch_size": 32, "margin_update": "online", "attack__steps": 10, "eval__steps": 2, "eval__noise": (0.0, 0.1),
    }  # fmt: skip
    # Few steps, so that rounding has no time to grow; the network makes the epochs long, so that none ends between
    # the news of a step and the effect of a signal.
    config, _ = workers.start_run(tmp_path / "whole", "moons", **options)
    workers.train(config, tmp_path / "whole")
    weights, margins = workers.final_state(config, tmp_path / "whole")
    assert margins is not None

    path = tmp_path / "broken"
    run = RunDir(path)
    flags = [
        "--model.factory", "tests.support.user_code:unhurried", "--dtype", "float64", "--data.subset", "4000",
        "--epochs", "4", "--batch-size", "32", "--margin-update", "online", "--attack.steps", "10",
        "--eval.steps", "2", "--eval.noise", "0,0.1",
    ]  # fmt: skip
    monkeypatch.setenv("TEST_PAUSE", "0.1")

    def progress() -> dict[str, Any]:
        return read_json(run.progress_path) or {}

    def stage() -> str:
        return progress().get("stage", "")

    def position() -> tuple[int, int]:
        now = progress()
        return (now.get("epoch", 0), now.get("step", 0)) if now.get("stage") == "training" else (0, 0)

    driver = commands.start("ima_dist.train", "moons", *flags, "--workers", "2", "--out", path, cwd=tmp_path)
    commands.wait_for(lambda: position()[0] == 2 and 5 < position()[1] < 60, 600, "the second epoch")
    family = commands.descendants(driver.pid)
    # On a machine that others use, workers get as much of it as they.
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in family} == {os.getpriority(os.PRIO_PROCESS, 0)}
    os.killpg(driver.pid, signal.SIGTERM)  # as SLURM and timeout do: to all of Ray as well
    assert driver.wait(timeout=120) == 75
    assert "Continue with" in (tmp_path / "stdout.txt").read_text()
    assert run.status == "interrupted"
    assert any("-step=" in p.name for p in run.checkpoints_dir.iterdir())
    commands.wait_for(lambda: not any(map(commands.alive, family)), 90, "Ray's processes to end")

    driver = commands.start("ima_dist.train", "--resume", path, "--workers", "1", cwd=tmp_path)
    commands.wait_for(lambda: position()[0] == 3 and 5 < position()[1] < 60, 600, "the third epoch")
    family = commands.descendants(driver.pid)
    for pid in [driver.pid, *family]:
        if commands.alive(pid):
            os.kill(pid, signal.SIGKILL)
    driver.wait(timeout=60)
    commands.wait_for(lambda: not any(map(commands.alive, family)), 90, "all processes to end")

    monkeypatch.setenv("TEST_PAUSE", "0")
    driver = commands.start("ima_dist.train", "--resume", path, "--workers", "2", "--eval.steps", "3000", cwd=tmp_path)
    commands.wait_for(lambda: stage() == "evaluation", 600, "the evaluation")
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=120) == 75
    assert run.status == "interrupted"
    assert run.config().eval.steps == 3000

    done = commands.run("ima_dist.train", "--resume", path, "--workers", "2", "--eval.steps", "2")
    assert done.returncode == 0, done.stderr
    assert run.config().eval.steps == 2
    weights_2, margins_2 = workers.final_state(config, path)
    assert workers.largest_difference(weights, weights_2) < 1e-9
    assert float((margins - margins_2).abs().max()) < 1e-9
    check_files(run, epochs=4, samples=400)


@pytest.mark.parametrize(
    ("network", "status"),
    [("tests.support.user_code:three_way", -signal.SIGKILL), ("tests.support.user_code:raises", 1)],
)
def test_no_process_outlives_the_run(tmp_path, network, status):
    """The driver alone is killed, or a worker raises what nobody expected. (Signals: above.)"""
    driver = commands.start(
        "ima_dist.train", "moons", "--model.factory", network, "--data.subset", 2000, "--batch-size", 10,
        "--epochs", 100, "--out", tmp_path / "run", cwd=tmp_path,
    )  # fmt: skip
    family: set[int] = set()
    until = time.monotonic() + 300
    while driver.poll() is None and time.monotonic() < until:
        family |= set(commands.descendants(driver.pid))
        if status < 0 and (read_json(tmp_path / "run" / "progress.json") or {}).get("stage") == "training":
            driver.kill()
        time.sleep(0.2)
    assert driver.wait(timeout=60) == status, (tmp_path / "stderr.txt").read_text()
    assert len(family) > 5  # Ray's gcs, raylet, dashboard, agents and workers
    commands.wait_for(lambda: not any(map(commands.alive, family)), 120, "Ray's processes to end")
    if status == 1:
        told = f"The workers failed; worker 0 on {platform.node()} was the first to report: KeyError: 'a mistake'"
        assert told in (tmp_path / "stderr.txt").read_text()


def test_float32_share_of_margins_that_differ_between_one_and_two_workers(tmp_path, record_property):
    """In float32 a rounding difference may flip a decision and move a margin by Δε: reported, and bounded."""
    options = {"data__subset": 2000, "epochs": 3, "batch_size": 128}
    states = []
    for count in (1, 2):
        config, _ = workers.start_run(tmp_path / str(count), "moons", **options)
        workers.run_on(count, workers.train, config, tmp_path / str(count))
        states.append(workers.final_state(config, tmp_path / str(count))[1])
    share = float(((states[0] - states[1]).abs() > 1e-4).double().mean())
    record_property("share_of_margins_that_differ", share)
    print(f"float32: {share:.4f} of the margins differ by more than 1e-4")
    assert share < 0.05
    assert states[0].dtype == torch.float32
