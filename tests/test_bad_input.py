"""A mistake gets one sentence and status 2, and nothing is written."""

from __future__ import annotations

import gzip
import os
import shutil

import pytest

from tests import commands, workers
from tests.conftest import FASHION_MNIST, needs_fashion_mnist


def refused(tmp_path, *options, module="ima_dist.train"):
    """The sentence with which the command is refused in an empty directory that stays empty."""
    here = tmp_path / "here"
    here.mkdir(exist_ok=True)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    done = commands.run(module, *options, cwd=here)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(".")
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
    return lines[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "Name a preset"),
        (("mons",), "did you mean moons?"),
        (("moons", "--beta", "1.5"), "--beta must lie between 0 and 1"),
        (("moons", "--beta", "nan"), "--beta must lie between 0 and 1"),
        (("moons", "--beta", "much"), "must be a number"),
        (("moons", "--eps-max", "0"), "--eps-max must be above 0"),
        (("moons", "--eps-max", "-1"), "--eps-max must be above 0"),
        (("moons", "--eps-max", "inf"), "--eps-max must be above 0"),
        (("moons", "--delta-eps", "0.5"), "--delta-eps must be above 0 and at most --eps-max"),
        (("moons", "--method", "imma"), "did you mean ima?"),
        (("moons", "--norm", "l1"), "must be one of linf, l2"),
        (("moons", "--epochs", "0"), "--epochs must be at least 1"),
        (("moons", "--epochs", "1.5"), "whole number"),
        (("moons", "--batch-size", "0"), "--batch-size must be at least 1"),
        (("moons", "--workers", "0"), "--workers must be at least 1"),
        (("moons", "--epsmax", "0.3"), "did you mean --eps-max?"),
        (("moons", "--beta"), "expected one argument"),
        (("moons", "extra"), "Unknown option 'extra'"),
        (("moons", "--eval.noise", "0.2,0.1"), "ascending"),
        (("moons", "--eval.noise", ""), "at least one level"),
        (("moons", "--eval.attacks", "pgd"), "must be one of pgd100"),
        (("moons", "--data.subset", "30000"), "give at most 20000"),
        (("moons", "--data.source", "nowhere:load"), "nowhere"),
        (("moons", "--data.source", "no reference"), "pkg.module:function"),
        (("moons", "--model.factory", "tests.user_code:three"), "tests.user_code"),
        (
            ("moons", "--model.factory", "ima_dist.models:fashion_mnist_cnn"),
            "does not take samples of shape (2,)",
        ),
        (("covid_ct", "--norm", "l2"), "--eps-max and --eval.noise"),
        (("svhn",), "ima_dist.data.svhn"),
        (("fashion_mnist", "--data.dir", "nowhere"), "nowhere"),
        (("--resume", "nowhere"), "not a run directory"),
        (("moons", "--resume", "nowhere", "--out", "x"), "exclude one another"),
    ],
)
def test_a_mistake_gets_one_sentence(tmp_path, options, says):
    assert says in refused(tmp_path, *options)


def test_cuda_asked_for_and_absent(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert "no CUDA device" in refused(tmp_path, "moons", "--device", "cuda")


def test_more_workers_than_the_cluster_has(tmp_path):
    cpus = os.cpu_count() or 1
    sentence = refused(tmp_path, "moons", "--workers", cpus + 1)
    assert f"--workers {cpus + 1} was asked for, but the cluster has {cpus} CPU" in sentence


@needs_fashion_mnist
def test_damaged_data_files_are_named(tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(FASHION_MNIST, folder)
    images = folder / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[: len(whole) // 2])
    assert images.name in refused(tmp_path, "fashion_mnist", "--data.dir", folder)
    images.write_bytes(gzip.compress(b"not an idx file"))
    assert images.name in refused(tmp_path, "fashion_mnist", "--data.dir", folder)
    images.unlink()
    assert "train-images-idx3-ubyte" in refused(tmp_path, "fashion_mnist", "--data.dir", folder)


def test_out_that_cannot_take_a_run(tmp_path):
    occupied = tmp_path / "occupied"
    workers.start_run(occupied, "moons")
    assert "--resume" in refused(tmp_path, "moons", "--out", occupied)
    (tmp_path / "file").write_text("kept")
    assert "is a file" in refused(tmp_path, "moons", "--out", tmp_path / "file")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("kept")
    assert "is not a run" in refused(tmp_path, "moons", "--out", other)
    assert "cannot be written" in refused(tmp_path, "moons", "--out", "/proc/run")


def test_resume_with_another_configuration(tmp_path):
    options = {"data__subset": 100, "epochs": 1, "method": "ce"}
    config, run = workers.start_run(tmp_path / "run", "moons", **options)
    workers.train(config, run.path)
    assert "another --beta" in refused(tmp_path, "--resume", run.path, "--beta", "0.7")
    assert "is a run of moons" in refused(tmp_path, "fashion_mnist", "--resume", run.path)
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("seed: 0", "seed: 1"))
    assert "another configuration" in refused(tmp_path, "--resume", run.path)
    run.config_path.write_text(text.replace("beta: 0.5", "beta: [0.5"))
    assert "config.yaml" in refused(tmp_path, "--resume", run.path)
    run.config_path.write_text(text.replace("beta:", "beeta:"))
    assert "did you mean beta?" in refused(tmp_path, "--resume", run.path)


def test_evaluate_refuses_what_it_cannot_do(tmp_path):
    run = lambda *o: refused(tmp_path, *o, module="ima_dist.evaluate")  # noqa: E731
    assert "not a run directory" in run("nowhere")
    workers.start_run(tmp_path / "run", "moons")
    assert "has not finished training" in run(tmp_path / "run")
    assert "must be one of pgd100" in run(tmp_path / "run", "--attack", "pgd7")
    assert "Unknown option '--beta'" in run(tmp_path / "run", "--beta", "0.1")
