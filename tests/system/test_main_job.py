"""The main job with all its defaults, as a user runs it (Table 1)."""

from __future__ import annotations

import pytest

from ima_dist.rundir.directory import RunDir
from tests.support import commands
from tests.support.runs import check_files, pgd100_accuracies

pytestmark = pytest.mark.slow


TABLE_1_IMA = [1.0, 0.999, 0.9975, 0.9915, 0.9755, 0.927, 0.823]


@pytest.fixture(scope="module")
def moons_run(tmp_path_factory):
    """The main job with all its defaults, once."""
    here = tmp_path_factory.mktemp("main")
    done = commands.run("ima_dist.train", "moons", cwd=here)
    assert done.returncode == 0, done.stderr
    (path,) = (p for p in (here / "runs").iterdir() if p.name not in ("dataset", "tensorboard"))
    return RunDir(path), done


def test_main_job_reproduces_table_1(moons_run):
    run, _ = moons_run
    for ours, theirs in zip(pgd100_accuracies(run), TABLE_1_IMA, strict=True):
        assert ours >= theirs - 0.02
    check_files(run, epochs=30, samples=2000)
    figures = {p.name for p in run.figures_dir.iterdir()}
    assert figures == {"decision_boundary.png", "accuracy.png", "margins.png", "training.png", "equilibrium.png"}
    worst = {c["noise"]: c["accuracy"] for c in run.summary()["curves"] if c["attack"] == "worst"}
    for ours, (_, strict) in zip(pgd100_accuracies(run), sorted(worst.items()), strict=True):
        assert strict <= ours


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


def test_a_finished_run_is_left_alone(moons_run):
    run, _ = moons_run
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    done = commands.run("ima_dist.train", "--resume", run.path)
    assert done.returncode == 0
    assert "is finished" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


def test_evaluate_adds_to_a_finished_run(moons_run):
    run, _ = moons_run
    before = pgd100_accuracies(run)
    stronger = [c for c in run.summary()["curves"] if c["attack"] == "worst"]
    done = commands.run(
        "ima_dist.evaluate", run.path, "--attack", "worst", "--eval.noise", "0,0.1", "--eval.samples", "300",
        "--eval.steps", "20", "--workers", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert pgd100_accuracies(run) == before
    worst = [c for c in run.summary()["curves"] if c["attack"] == "worst"]
    # What was measured with more steps and samples stays, and the table shows it.
    assert worst[: len(stronger)] == stronger
    added = [(c["noise"], c["samples"], c["steps"], c["order"]) for c in worst[len(stronger) :]]
    assert added == [(0.0, 300, 20, "stratified"), (0.1, 300, 20, "stratified")]
    assert "Also kept: " in done.stdout
