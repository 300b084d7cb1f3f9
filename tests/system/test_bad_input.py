"""A mistake gets one sentence and status 2, and nothing is written."""

from __future__ import annotations

import gzip
import os
import shutil
from functools import partial

import pytest

from ima_dist import evaluate, train
from ima_dist.rundir.files import write_json
from tests.support import commands, workers
from tests.support.fashion_mnist import FASHION_MNIST, needs_fashion_mnist


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Gives the sentence with which a command is refused in an empty directory that stays empty."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def check(*options, main=train.main):
        before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
        status = main([str(o) for o in options])
        out, err = capsys.readouterr()
        assert status == 2, err
        assert out == ""
        lines = err.strip().splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        assert lines[0].endswith(".")
        assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
        return lines[0]

    return check


def _train(config, run):
    """Train ``run`` without a driver, which would have begun with a summary."""
    workers.train(config, run.path)
    write_json(run.summary_path, {"status": "interrupted"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "Give a preset (moons, "),
        (("mons",), "did you mean moons?"),
        (("moons", "--beta", "1.5"), "--beta must lie between 0 and 1"),
        (("moons", "--beta", "nan"), "--beta must lie between 0 and 1"),
        (("moons", "--beta", "much"), "must be a number"),
        (("moons", "--eps-max", "0"), "--eps-max must be above 0"),
        (("moons", "--eps-max", "-1"), "--eps-max must be above 0"),
        (("moons", "--eps-max", "inf"), "--eps-max must be above 0"),
        (("moons", "--delta-eps", "0.5"), "--delta-eps must be above 0 and at most --eps-max"),
        (("moons", "--method", "imaa"), "did you mean ima?"),
        (("moons", "--norm", "l1"), "must be one of linf, l2"),
        (("moons", "--method", "ddn"), "add --norm l2"),
        (("moons", "--trades.inverse-lambda", "0"), "--trades.inverse-lambda must be above 0"),
        (("moons", "--epochs", "0"), "--epochs must be at least 1"),
        (("moons", "--epochs", "1.5"), "whole number"),
        (("moons", "--batch-size", "0"), "--batch-size must be at least 1"),
        (("moons", "--workers", "0"), "--workers must be at least 1"),
        (("moons", "--workers", "4-1"), "--workers must be a whole number, or a range such as 1-4"),
        (("moons", "--workers", "two"), "--workers must be a whole number, or a range such as 1-4"),
        (("moons", "--epsmax", "0.3"), "did you mean --eps-max?"),
        (("moons", "--beta"), "expected one argument"),
        (("moons", "extra"), "Unknown option 'extra'"),
        (("moons", "--eval.noise", "0.2,0.1"), "ascending"),
        (("moons", "--eval.noise", ""), "at least one level"),
        (("moons", "--eval.attacks", "pgd"), "must be one of pgd100"),
        (("moons", "--eval.attacks", "worst,worst"), "each once"),
        (("moons", "--data.subset", "30000"), "give at most 20000"),
        (("moons", "--data.source", "nowhere:load"), "nowhere"),
        (("moons", "--data.source", "no reference"), "pkg.module:function"),
        (("moons", "--model.factory", "tests.support.user_code:three"), "tests.support.user_code"),
        (
            ("moons", "--model.factory", "ima_dist.models:fashion_mnist_cnn"),
            "does not take samples of shape (2,)",
        ),
        (("covid_ct", "--norm", "l2"), "--eps-max and --eval.noise"),
        (("svhn", "--data.dir", "."), "train_32x32.mat is in none of"),
        (("covid_ct", "--data.dir", "."), "kaggle.com/datasets"),
        (("fashion_mnist", "--data.dir", "nowhere"), "nowhere"),
        (("--resume", "nowhere"), "not a run directory"),
        (("moons", "--resume", "nowhere", "--out", "x"), "--out cannot be combined with --resume"),
    ],
)
def test_a_mistake_gets_one_sentence(refused, options, says):
    assert says in refused(*options)


def test_cuda_asked_for_and_absent(refused):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert "no CUDA device" in refused("moons", "--device", "cuda")


def test_more_workers_than_the_cluster_has(refused):
    cpus = os.cpu_count() or 1
    sentence = refused("moons", "--workers", cpus + 1)
    assert f"--workers {cpus + 1} is too many: the cluster has {cpus} CPU" in sentence


@needs_fashion_mnist
def test_damaged_data_files_are_named(refused, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(FASHION_MNIST, folder)
    images = folder / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[: len(whole) // 2])
    assert images.name in refused("fashion_mnist", "--data.dir", folder)
    images.write_bytes(gzip.compress(b"not an idx file"))
    assert images.name in refused("fashion_mnist", "--data.dir", folder)
    images.unlink()
    assert "train-images-idx3-ubyte" in refused("fashion_mnist", "--data.dir", folder)


def test_out_that_cannot_take_a_run(refused, tmp_path):
    occupied = tmp_path / "occupied"
    workers.start_run(occupied, "moons")
    assert "--resume" in refused("moons", "--out", occupied)
    (tmp_path / "file").write_text("kept")
    assert "is a file" in refused("moons", "--out", tmp_path / "file")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("kept")
    assert "is not a run" in refused("moons", "--out", other)
    assert "cannot be written" in refused("moons", "--out", "/proc/run")


def test_resume_with_another_configuration(refused, tmp_path):
    options = {"data__subset": 100, "epochs": 1, "method": "ce"}
    config, run = workers.start_run(tmp_path / "run", "moons", **options)
    _train(config, run)
    assert "another --beta" in refused("--resume", run.path, "--beta", "0.7")
    assert "is a run of moons" in refused("fashion_mnist", "--resume", run.path)
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("seed: 0", "seed: 1"))
    assert "does not belong to the configuration in" in refused("--resume", run.path)
    run.config_path.write_text(text.replace("beta: 0.5", "beta: [0.5"))
    assert "config.yaml" in refused("--resume", run.path)
    run.config_path.write_text(text.replace("beta:", "beeta:"))
    assert "did you mean beta?" in refused("--resume", run.path)


def test_resume_with_other_data(refused, tmp_path):
    config, run = workers.start_run(tmp_path / "run", "moons", data__subset=100, epochs=1, method="ce")
    _train(config, run)
    state = next(run.checkpoints_dir.glob("*/state.json"))
    state.write_text(state.read_text().replace('"data": "', '"data": "0'))
    assert "was trained on data that differ" in refused("--resume", run.path)
    assert "was trained on data that differ" in refused(run.path, main=evaluate.main)


def test_a_run_has_one_writer(refused, tmp_path):
    config, run = workers.start_run(tmp_path / "run", "moons", data__subset=100, epochs=1, method="ce")
    workers.train(config, run.path)
    with run.writing():
        assert f"is being written by process {os.getpid()}" in refused("--resume", run.path)
        assert "is being written by process" in refused(run.path, main=evaluate.main)
    (run.path / "lock").unlink()
    (run.path / "lock").mkdir()
    assert "cannot be written" in refused("--resume", run.path)


def test_evaluate_refuses_what_it_cannot_do(refused, tmp_path):
    run = partial(refused, main=evaluate.main)
    assert "not a run directory" in run("nowhere")
    workers.start_run(tmp_path / "run", "moons")
    assert "has not finished training" in run(tmp_path / "run")
    assert "must be one of pgd100" in run(tmp_path / "run", "--attack", "pgd7")
    assert "Unknown option '--beta'" in run(tmp_path / "run", "--beta", "0.1")
    config, trained = workers.start_run(tmp_path / "trained", "moons", data__subset=100, epochs=1, method="ce")
    _train(config, trained)
    weights = trained.checkpoints_dir / "epoch=0001" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert f"{weights} is damaged" in run(trained.path)
    weights.unlink()
    assert f"{weights} is missing" in run(trained.path)


def test_status_and_sentence_of_the_real_command(tmp_path):
    done = commands.run("ima_dist.train", "moons", "--beta", "2", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --beta must lie between 0 and 1, not 2.0.\n"
    assert list(tmp_path.iterdir()) == []
