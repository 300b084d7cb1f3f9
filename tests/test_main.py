"""The commands as a user runs them, on real Ray clusters of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from ima_dist.results.rundir import RunDir
from tests import commands, workers
from tests.conftest import needs_fashion_mnist

pytestmark = pytest.mark.slow

TABLE_1_IMA = [1.0, 0.999, 0.9975, 0.9915, 0.9755, 0.927, 0.823]
TABLE_1_CE = [1.0, 1.0, 0.9975, 0.9855, 0.935]


def pgd100_accuracies(run: RunDir) -> list[float]:
    curve = [c for c in run.summary()["curves"] if (c["attack"], c["loss"]) == ("pgd100", "both")]
    return [c["accuracy"] for c in sorted(curve, key=lambda c: c["noise"])]


def check_files(run: RunDir, epochs: int, samples: int) -> None:
    """Every file of a run directory is there and agrees with the others."""
    summary = run.summary()
    assert summary["status"] == "finished"
    assert yaml.safe_load(run.config_path.read_text())["versions"]["torch"]
    assert [row["epoch"] for row in run.read_history()] == list(range(1, epochs + 1))
    outcomes = pq.read_table(run.outcomes_path).to_pandas()
    for curve in summary["curves"]:
        rows = outcomes[
            (outcomes.attack == curve["attack"]) & (outcomes.loss == curve["loss"]) & (outcomes.noise == curve["noise"])
        ]
        assert sorted(rows["index"]) == list(range(samples))
        assert curve["samples"] == samples
        assert curve["accuracy"] == pytest.approx((rows.label == rows.prediction).mean())
    weights = sorted(p.parent.name for p in run.checkpoints_dir.glob("*/model.safetensors"))
    assert weights == [f"epoch={e:04d}" for e in range(1, epochs + 1)]
    assert (run.figures_dir / "accuracy.png").exists()
    leftovers = [p.name for p in run.path.rglob("*") if p.name.startswith(".") or p.name == "stop-requested"]
    assert leftovers == []


@pytest.fixture(scope="module")
def moons_run(tmp_path_factory):
    """The main job with all its defaults, once."""
    here = tmp_path_factory.mktemp("main")
    done = commands.run("ima_dist.train", "moons", cwd=here)
    assert done.returncode == 0, done.stderr
    (path,) = (here / "runs").iterdir()
    return RunDir(path), done


@pytest.mark.xdist_group("moons")
def test_main_job_reproduces_table_1(moons_run):
    run, _ = moons_run
    for ours, theirs in zip(pgd100_accuracies(run), TABLE_1_IMA, strict=True):
        assert ours >= theirs - 0.02
    check_files(run, epochs=30, samples=2000)
    figures = {p.name for p in run.figures_dir.iterdir()}
    assert figures == {"decision_boundary.png", "accuracy.png", "margins.png", "training.png"}
    worst = {c["noise"]: c["accuracy"] for c in run.summary()["curves"] if c["attack"] == "worst"}
    for ours, (_, strict) in zip(pgd100_accuracies(run), sorted(worst.items()), strict=True):
        assert strict <= ours


@pytest.mark.xdist_group("moons")
def test_main_job_shows_progress_table_and_paths(moons_run):
    run, done = moons_run
    assert "epoch 30/30" in done.stderr
    assert "samples/s" in done.stderr
    assert "paper (Table 1)" in done.stdout
    assert "0.9270" in done.stdout
    assert str(run.figures_dir.relative_to(run.path.parent.parent)) in done.stdout
    # Ray is quiet: what is on the error stream is ours.
    for line in done.stderr.splitlines():
        assert line.startswith(("epoch", "starting", "training", "margins", "evaluation", "done")), line


@pytest.mark.xdist_group("moons")
def test_a_finished_run_is_left_alone(moons_run):
    run, _ = moons_run
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    done = commands.run("ima_dist.train", "--resume", run.path)
    assert done.returncode == 0
    assert "is finished" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


@pytest.mark.xdist_group("moons")
def test_evaluate_adds_to_a_finished_run(moons_run):
    run, _ = moons_run
    before = pgd100_accuracies(run)
    done = commands.run(
        "ima_dist.evaluate", run.path, "--attack", "worst", "--eval.noise", "0,0.1", "--eval.samples", "300",
        "--eval.steps", "20", "--workers", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert pgd100_accuracies(run) == before
    worst = [c for c in run.summary()["curves"] if c["attack"] == "worst"]
    assert [(c["noise"], c["samples"], c["steps"]) for c in worst] == [(0.0, 300, 20), (0.1, 300, 20)]


def test_ce_reproduces_table_1(tmp_path):
    done = commands.run(
        "ima_dist.train", "moons", "--method", "ce", "--out", "run", "--eval.attacks", "pgd100", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    ours = pgd100_accuracies(RunDir(tmp_path / "run"))
    for mine, theirs in zip(ours, TABLE_1_CE, strict=False):
        assert mine == pytest.approx(theirs, abs=0.02)


@needs_fashion_mnist
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fashion_mnist_on_two_workers(tmp_path, norm):
    done = commands.run(
        "ima_dist.train", "fashion_mnist", "--norm", norm, "--data.subset", "200", "--epochs", "2",
        "--workers", "2", "--attack.steps", "5", "--eval.steps", "5", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "run")
    check_files(run, epochs=2, samples=100)
    assert sorted(p.name for p in (run.margins_dir / "epoch=0002").iterdir()) == [
        "shard-0000-of-0002.parquet",
        "shard-0001-of-0002.parquet",
    ]


def test_own_data_and_network(tmp_path):
    (tmp_path / "mine.py").write_text((commands.ROOT / "tests" / "user_code.py").read_text())
    done = commands.run(
        "ima_dist.train", "moons", "--data.source", "mine:blobs", "--model.factory", "mine:three_way",
        "--epochs", "12", "--optimizer.lr", "0.03", "--norm", "l2", "--out", "run",
        "--eval.noise", "0,0.2", "--eval.steps", "10",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_files(RunDir(tmp_path / "run"), epochs=12, samples=90)
    assert RunDir(tmp_path / "run").summary()["clean_accuracy"] > 0.9


def test_stopped_killed_and_resumed_equals_undisturbed(tmp_path):
    """SIGTERM in mid-epoch, then kill -9 of driver and workers in mid-epoch, then to the end."""
    options = {
        "dtype": "float64", "data__subset": 6000, "epochs": 4, "batch_size": 32, "margin_update": "online",
        "eval__steps": 2, "eval__noise": (0.0, 0.1),
    }  # fmt: skip
    config, _ = workers.start_run(tmp_path / "whole", "moons", **options)
    workers.train(config, tmp_path / "whole")
    weights, margins = workers.final_state(config, tmp_path / "whole")
    assert margins is not None

    path = tmp_path / "broken"
    run = RunDir(path)
    flags = [
        "--dtype", "float64", "--data.subset", "6000", "--epochs", "4", "--batch-size", "32",
        "--margin-update", "online", "--eval.steps", "2", "--eval.noise", "0,0.1",
    ]  # fmt: skip

    def position() -> tuple[int, int]:
        try:
            progress = json.loads(run.progress_path.read_text())
        except OSError:
            return 0, 0
        return (progress.get("epoch", 0), progress.get("step", 0)) if progress["stage"] == "training" else (0, 0)

    driver = commands.start("ima_dist.train", "moons", *flags, "--workers", "2", "--out", path, cwd=tmp_path)
    commands.wait_for(lambda: position()[0] == 2 and 5 < position()[1] < 150, 180, "the second epoch")
    family = commands.descendants(driver.pid)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=60) == 75
    assert "Continue with" in (tmp_path / "stdout.txt").read_text()
    assert run.status == "interrupted"
    assert any("-step=" in p.name for p in run.checkpoints_dir.iterdir())
    commands.wait_for(lambda: not any(map(commands.alive, family)), 30, "Ray's processes to end")

    driver = commands.start("ima_dist.train", "--resume", path, "--workers", "1", cwd=tmp_path)
    commands.wait_for(lambda: position()[0] == 3 and 5 < position()[1] < 150, 180, "the third epoch")
    family = commands.descendants(driver.pid)
    for pid in [driver.pid, *family]:
        if commands.alive(pid):
            os.kill(pid, signal.SIGKILL)
    driver.wait(timeout=30)
    commands.wait_for(lambda: not any(map(commands.alive, family)), 30, "all processes to end")

    done = commands.run("ima_dist.train", "--resume", path, "--workers", "2")
    assert done.returncode == 0, done.stderr
    weights_2, margins_2 = workers.final_state(config, path)
    assert workers.largest_difference(weights, weights_2) < 1e-9
    assert float((margins - margins_2).abs().max()) < 1e-9
    check_files(run, epochs=4, samples=600)


def test_ray_job_submit(tmp_path):
    """The same entry point under ``ray job submit``, on a cluster started with ``ray start --head``."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    port, dashboard = workers.free_port(), workers.free_port()
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    env = commands.environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0",
        IMA_DIST_HOME=str(tmp_path), RAY_TMPDIR="/tmp",
    )  # fmt: skip
    env.pop("RAY_ADDRESS", None)
    head = subprocess.Popen(
        [*ray, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
         "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        commands.wait_for(lambda: workers.listens(dashboard), 90, "Ray's job server")
        submit = [
            *ray, "job", "submit", f"--address=http://127.0.0.1:{dashboard}", f"--working-dir={commands.ROOT}", "--",
            sys.executable, "-m", "ima_dist.train", "moons", "--epochs", "2", "--data.subset", "200",
            "--workers", "2", "--out", "results/mine", "--eval.steps", "3",
        ]  # fmt: skip
        # The job server answers before the node's agent that runs the jobs is there.
        for _ in range(30):
            done = subprocess.run(submit, env=env, capture_output=True, text=True, timeout=300)
            if "No available agent" not in done.stderr + done.stdout:
                break
            time.sleep(2)
        assert done.returncode == 0, done.stdout + done.stderr
        check_files(RunDir(tmp_path / "results" / "mine"), epochs=2, samples=20)
    finally:
        family = commands.descendants(head.pid)
        head.terminate()
        head.wait(timeout=60)
        for pid in family:
            if commands.alive(pid):
                os.kill(pid, signal.SIGKILL)


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
