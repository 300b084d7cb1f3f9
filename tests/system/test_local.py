"""``--local``: one worker in the command's own process, with the same result, signals and statuses as on Ray."""

from __future__ import annotations

import signal

import pytest

from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json
from tests.support import commands, workers
from tests.support.runs import check_files

pytestmark = pytest.mark.slow
OPTIONS = {"dtype": "float64", "data__subset": 600, "epochs": 3, "eval__steps": 2, "eval__noise": (0.0, 0.1)}
FLAGS = ["--dtype", "float64", "--data.subset", 600, "--epochs", 3, "--eval.steps", 2, "--eval.noise", "0,0.1"]


def test_stopped_in_this_process_and_continued_equals_undisturbed(tmp_path, monkeypatch):
    own = ("tests.support.user_code:unhurried", "model.factory")
    config, _ = workers.start_run(tmp_path / "whole", "moons", **OPTIONS, model__factory=own[0])
    workers.train(config, tmp_path / "whole")
    weights, margins = workers.final_state(config, tmp_path / "whole")

    run = RunDir(tmp_path / "broken")
    monkeypatch.setenv("TEST_PAUSE", "0.2")
    driver = commands.start(
        "ima_dist.train", "moons", "--local", f"--{own[1]}", own[0], *FLAGS, "--out", run.path, cwd=tmp_path
    )
    commands.wait_for(lambda: (read_json(run.progress_path) or {}).get("epoch") == 2, 300, "the second epoch")
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=120) == 75
    assert not commands.descendants(driver.pid)
    assert "Continue with" in (tmp_path / "stdout.txt").read_text()
    assert run.status == "interrupted"

    monkeypatch.setenv("TEST_PAUSE", "0")
    done = commands.run("ima_dist.train", "--local", "--resume", run.path)
    assert done.returncode == 0, done.stderr
    assert "Continuing after epoch" in done.stdout
    weights_2, margins_2 = workers.final_state(config, run.path)
    assert workers.largest_difference(weights, weights_2) < 1e-9
    assert float((margins - margins_2).abs().max()) < 1e-9
    check_files(run, epochs=3, samples=60)

    for command, *options in (("evaluate", "--attack", "worst"), ("audit", "--samples", 20)):
        done = commands.run(f"ima_dist.{command}", run.path, "--local", *options)
        assert done.returncode == 0, done.stderr
    refused = commands.run("ima_dist.evaluate", run.path, "--local", "--workers", 2)
    assert refused.returncode == 2
    assert "--workers 2 needs Ray" in refused.stderr


def test_what_fails_in_this_process_is_said_in_one_sentence(tmp_path):
    run = RunDir(tmp_path / "run")
    failed = commands.run(
        "ima_dist.train", "moons", "--local", "--model.factory", "tests.support.user_code:raises",
        "--data.subset", 2000, "--batch-size", 10, "--out", run.path, cwd=tmp_path,
    )  # fmt: skip
    assert failed.returncode == 1
    assert "KeyError: 'a mistake'" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert run.status == "failed"
