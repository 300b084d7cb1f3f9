"""Other data, methods and networks through the command line, on real Ray clusters of this machine."""

from __future__ import annotations

import os
import subprocess

import pytest

from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from tests.support import commands, workers
from tests.support.fashion_mnist import needs_fashion_mnist
from tests.support.runs import check_files, pgd100_accuracies

pytestmark = pytest.mark.slow


TABLE_1_CE = [1.0, 1.0, 0.9975, 0.9855, 0.935]


def test_ce_reproduces_table_1(tmp_path):
    done = commands.run(
        "ima_dist.train", "moons", "--local", "--method", "ce", "--out", "run", "--eval.attacks", "pgd100", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    ours = pgd100_accuracies(RunDir(tmp_path / "run"))
    for mine, theirs in zip(ours, TABLE_1_CE, strict=False):
        assert mine == pytest.approx(theirs, abs=0.02)


@needs_fashion_mnist
def test_fashion_mnist_on_two_workers(tmp_path):
    done = commands.run(
        "ima_dist.train", "fashion_mnist", "--norm", "l2", "--data.subset", "40", "--epochs", "2",
        "--workers", "2", "--attack.steps", "3", "--eval.steps", "3", "--eval.samples", "20", "--eval.order", "first",
        "--eval.noise", "0,1", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "run")
    check_files(run, epochs=2, samples=20)
    assert sorted(p.name for p in (run.margins_dir / "epoch=0002").glob("shard-*")) == [
        "shard-0000-of-0002.parquet",
        "shard-0001-of-0002.parquet",
    ]


def test_own_data_and_network(tmp_path):
    (tmp_path / "mine.py").write_text((commands.ROOT / "tests" / "support" / "user_code.py").read_text())
    done = commands.run(
        "ima_dist.train", "moons", "--local", "--data.source", "mine:blobs", "--model.factory", "mine:three_way",
        "--epochs", "12", "--optimizer.lr", "0.03", "--norm", "l2", "--out", "run",
        "--eval.noise", "0,0.2", "--eval.steps", "10",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_files(RunDir(tmp_path / "run"), epochs=12, samples=90)
    summary = RunDir(tmp_path / "run").summary()
    assert summary["clean_accuracy"] > 0.9
    assert summary["paper_table"] is None
    assert "paper" not in done.stdout


def test_a_closed_pipe_and_an_ascii_terminal_show_no_traceback(tmp_path):
    _, run = workers.start_run(tmp_path / "r\u00fcn", "moons")
    write_json(run.summary_path, {"status": "finished"})
    command = commands.command("ima_dist.train", "--resume", run.path)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, env=commands.environment(PYTHONIOENCODING="ascii"), stdout=writer, stderr=subprocess.PIPE, timeout=120
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    done = commands.run("ima_dist.train", "--resume", run.path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "r?n is finished" in done.stdout
