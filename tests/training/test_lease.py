"""One writer for a run, also where a node that was given up for dead goes on."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from ima_dist import train
from ima_dist.config.errors import ConfigError
from ima_dist.core import distributed
from ima_dist.data.load import load
from ima_dist.rundir import lease
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.lease import Lease, LeaseLost, held
from ima_dist.training.loop import Training
from tests.support import workers
from tests.support.evaluating import evaluate_on_worker
from tests.support.inline import without_ray

SMALL = {"data__subset": 200, "epochs": 2, "batch_size": 50, "dtype": "float64"}
STRANGER = Lease(1, "node9", "0badcafe", "4711", 2)


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def test_a_lease_reads_as_it_was_written(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    assert Lease.read(path) is None
    for variables in ({}, {"SLURM_JOB_ID": "12_3", "SLURM_RESTART_COUNT": "4"}, {"SLURM_JOB_ID": "12"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with held(path) as mine:
            assert Lease.read(path) == mine.lease
            assert (mine.lease.process, mine.lease.job) == (os.getpid(), variables.get("SLURM_JOB_ID", ""))
            lease.check(path, mine.mark)
    path.write_text("rubbish")
    assert Lease.read(path) is None


def test_a_later_start_of_the_same_job_succeeds():
    old = Lease(1, "a", "m", "7", 0)
    assert Lease(2, "b", "n", "7", 1).succeeds(old)
    assert not Lease(2, "b", "n", "7", 0).succeeds(old)
    assert not Lease(2, "b", "n", "8", 1).succeeds(old)
    assert not Lease(2, "b", "n", "", 1).succeeds(Lease(1, "a", "m", "", 0))
    assert not Lease(2, "b", "n", "7", 1).succeeds(None)


def test_a_second_process_is_refused_and_named_the_first(tmp_path):
    path = tmp_path / "lock"
    with held(path) as mine:
        with pytest.raises(ConfigError, match=f"is being written by process {os.getpid()} on .*: wait"), held(path):
            pass
        lease.check(path, mine.mark)  # nothing was taken from us
    with held(path):
        pass


def test_a_requeued_job_takes_over_and_the_leftover_notices(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    let_go = threading.Event()
    noticed = []

    def leftover():
        with held(path) as mine:
            started.set()
            while True:
                try:
                    lease.check(path, mine.mark)
                except LeaseLost as error:
                    noticed.append(str(error))
                    return
                let_go.wait(0.05)

    started = threading.Event()
    thread = threading.Thread(target=leftover)
    thread.start()
    started.wait()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with held(path) as mine:
        thread.join(10)
        assert "has been taken over by process" in noticed[0]
        assert "in job 7, start 1" in noticed[0]
        lease.check(path, mine.mark)


def test_a_leftover_that_does_not_look_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_GRACE", 0.3)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    path = tmp_path / "lock"
    with held(path) as first:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with held(path) as second:
            lease.check(path, second.mark)
            with pytest.raises(LeaseLost):
                lease.check(path, first.mark)


def _train_until_lost(config, path):
    """Lose the run in the third step; every worker must learn of it, and nothing may be written."""
    run = RunDir(path)
    run.mark = "00000000"
    if distributed.rank() == 0:
        run.lock_path.write_text(f"{Lease(1, 'here', run.mark)}\n")
    distributed.barrier()
    training = Training(config, run, load(config.data, config.seed), torch.device("cpu"))
    training.reporter.due = lambda: True
    step, count = training._step, 0

    def stepping(*given):
        nonlocal count
        count += 1
        if count == 7 and distributed.rank() == 0:  # in the second epoch
            run.lock_path.write_text(f"{STRANGER}\n")
        step(*given)

    training._step = stepping
    with pytest.raises(LeaseLost, match="taken over by process 1 on node9 in job 4711, start 2"):
        training.fit()
    assert count == 7


@pytest.mark.parametrize("count", [1, 2])
def test_training_stops_on_all_workers_and_writes_nothing_more(tmp_path, count):
    config, run = workers.start_run(tmp_path, "moons", **SMALL)
    workers.run_on(count, _train_until_lost, config, tmp_path)
    assert [p.name for p in run.checkpoints_dir.iterdir()] == ["epoch=0001"]
    assert [row["epoch"] for row in run.read_history()] == [1]


def test_an_evaluation_stops_too(tmp_path, monkeypatch):
    options = {"data__subset": 1000, "dtype": "float64", "eval__steps": 5, "eval__noise": (0.0, 0.1)}
    config, run = workers.start_run(tmp_path, "moons", **options)
    run.lock_path.write_text(f"{STRANGER}\n")
    monkeypatch.setattr(RunDir, "mark", "00000000", raising=False)
    monkeypatch.setattr(RunDir, "__init__", _with_mark(RunDir.__init__))
    with pytest.raises(LeaseLost):
        evaluate_on_worker(config, run.path)
    assert not list(run.path.rglob("from-*.parquet"))


def _with_mark(original):
    def init(self, path):
        original(self, path)
        self.mark = "00000000"

    return init


def test_the_command_says_so_and_leaves_the_summary_to_the_other(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    finish = Training._finish_epoch

    def losing(self):
        finish(self)
        self.run.lock_path.write_text(f"{STRANGER}\n")
        (tmp_path / "run" / "summary.json").write_text('{"status": "the other\'s"}')

    monkeypatch.setattr(Training, "_finish_epoch", losing)
    options = ["--data.subset", "100", "--epochs", "3", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert train.main(["moons", *options]) == 1
    assert "has been taken over by process 1 on node9" in capsys.readouterr().err
    assert RunDir(tmp_path / "run").summary() == {"status": "the other's"}
