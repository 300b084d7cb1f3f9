"""Sweeps on a real Ray cluster: stopped, killed and continued; a trial that fails; searches that go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from ima_dist.config.errors import ConfigError
from ima_dist.plans.trial_record import earlier_records
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json
from tests.support import commands
from tests.support.clusters import ray_cluster
from tests.support.slurm import position

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
WAIT = 600
SMALL = {"model.factory": "tests.support.user_code:unhurried", "data.subset": 128, "batch_size": 32, "eval.steps": 2}


def sweep_file(path: Path, **entries: Any) -> Path:
    path.write_text(yaml.safe_dump({"title": "test", "preset": "moons", **entries}))
    return path


def runs_by(root: Path, option: str) -> dict[Any, RunDir]:
    """The runs of a sweep that have a configuration, by the value of an option."""
    found = {}
    for path in root.glob("moons-*"):
        try:
            config = RunDir(path).config()
        except ConfigError:
            continue
        found[getattr(config, option)] = RunDir(path)
    return found


def gone(family: list[int]) -> bool:
    return not any(map(commands.alive, family))


def test_stopped_killed_and_continued_without_training_anything_twice(tmp_path, monkeypatch):
    """A short trial and a long one; then two more."""
    root = tmp_path / "sweep"
    options = {**SMALL, "method": "ce", "eval.noise": [0.0, 0.1]}
    file = sweep_file(tmp_path / "s.yaml", options=options, sweep={"epochs": [1, 15]})
    # An epoch of the long one takes as long as the short one's whole training.
    monkeypatch.setenv("TEST_PAUSE", "2")
    words = [file, "--out", root, "--workers", 1, "--device", "cpu"]
    driver = commands.start("ima_dist.sweep", *words, cwd=tmp_path)

    def said() -> str:
        return (tmp_path / "stdout.txt").read_text() + (tmp_path / "stderr.txt").read_text()

    def ready() -> bool:
        assert driver.poll() is None, said()
        runs = runs_by(root, "epochs")
        return {1, 15} <= set(runs) and runs[1].status == "finished" and position(runs[15].path)[1] > 0

    commands.wait_for(ready, WAIT, "one trial to end and the other to train")
    quick, long = (runs_by(root, "epochs")[n] for n in (1, 15))
    commands.wait_for(lambda: "finished: epochs=1 " in said(), WAIT, "the line of the finished trial")
    family = commands.descendants(driver.pid)
    os.killpg(driver.pid, signal.SIGTERM)  # as a user or SLURM does: to all that do not belong to themselves
    assert driver.wait(timeout=300) == 75, said()
    assert "Run the same command again to continue." in said()
    assert long.status == "interrupted"
    assert any("-step=" in path.name for path in long.checkpoints_dir.iterdir())
    commands.wait_for(lambda: gone(family), 180, "all processes to end")
    before = {path: path.stat().st_mtime_ns for path in quick.path.rglob("*")}
    statuses = {record["values"]["epochs"]: record["status"] for record in earlier_records(root)}
    assert statuses == {1: "finished", 15: "interrupted"}

    driver = commands.start("ima_dist.sweep", "--resume", root, cwd=tmp_path)
    reached = position(long.path)
    saved = len(long.read_history())
    commands.wait_for(
        lambda: position(long.path) > reached and len(long.read_history()) > saved, WAIT, "the long one to go on"
    )
    family = commands.descendants(driver.pid)
    driver.kill()
    driver.wait()
    commands.wait_for(lambda: gone(family), 180, "all processes to end")
    assert (read_json(root / "trials" / f"{long.path.name}.json") or {})["status"] == "running"

    # To the end, with trials more, of which one fails: the network turns NaN in its eleventh step.
    monkeypatch.setenv("TEST_PAUSE", "0")
    networks = ["tests.support.user_code:unhurried", "tests.support.user_code:turns_nan"]
    sweep_file(file, options=options, sweep={"epochs": [1, 15], "model.factory": networks})
    done = commands.run("ima_dist.sweep", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("became NaN or infinite in epoch 3, step 3") == 1
    assert {path: path.stat().st_mtime_ns for path in quick.path.rglob("*")} == before
    assert long.status == "finished"
    assert [row["epoch"] for row in long.read_history()] == list(range(1, 16))
    lines = [line.split() for line in done.stdout.splitlines() if line.split()[2:3] in (["worst"], ["-"])]
    assert [line[:4] for line in lines] == [
        ["1", networks[0], "worst", "1/1"], ["1", networks[1], "worst", "1/1"],
        ["15", networks[0], "worst", "1/1"], ["15", networks[1], "-", "0/1"],
    ]  # fmt: skip
    assert not (root / "stop-requested").exists()


def test_a_search_goes_on_where_it_was_and_asha_stops(tmp_path):
    """On a cluster that is there already, and full with one worker; more samples continue the same search."""
    with ray_cluster(tmp_path) as cluster:
        names = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
        searched_and_continued(tmp_path, {name: cluster.environment[name] for name in names})


def searched_and_continued(tmp_path: Path, there: dict[str, str]) -> None:
    root = tmp_path / "sweep"
    entries = {
        "options": {**SMALL, "method": "ce", "epochs": 3, "eval.noise": [0.0, 0.1], "eval.val_noise": 0.1,
                    "model.factory": "tests.support.user_code:three_way"},
        "sweep": {"optimizer.lr": {"loguniform": [0.0001, 0.1]}}, "search": "optuna", "asha": {"reduction": 2},
    }  # fmt: skip
    file = sweep_file(tmp_path / "s.yaml", **entries, samples=2)
    words = [file, "--out", root, "--device", "cpu"]
    done = commands.run("ima_dist.sweep", *words, cwd=tmp_path, **there)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Up to 1 trial at a time" in done.stdout
    first = earlier_records(root)
    assert len(first) == 2
    assert {record["status"] for record in first} <= {"finished", "stopped"}
    before = {path: path.stat().st_mtime_ns for path in root.glob("moons-*/checkpoints/*/model.safetensors")}

    sweep_file(file, **entries, samples=3)
    done = commands.run("ima_dist.sweep", *words, cwd=tmp_path, **there)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Up to 1 trial at a time" in done.stdout
    records = earlier_records(root)
    assert len(records) == 3
    assert [record["values"] for record in records[:2]] == [record["values"] for record in first]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    finished = [record for record in records if record["status"] == "finished"]
    assert finished
    for record in records:
        run = RunDir(root / record["name"])
        metrics = [row["val_robust_accuracy"] for row in run.read_history()]
        assert all(0 <= value <= 1 for value in metrics)
        if record["status"] == "stopped":
            # Half of those that had come as far were better.
            others = [RunDir(root / r["name"]).read_history() for r in records if r is not record]
            there = [row[record["epoch"] - 1]["val_robust_accuracy"] for row in others if len(row) >= record["epoch"]]
            assert max(there) >= metrics[record["epoch"] - 1]
            assert f"Stopped by ASHA after epoch {record['epoch']}: {record['name']}" in done.stdout
