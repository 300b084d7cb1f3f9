"""A wheel, installed outside any checkout: it trains, reports, finds its job files and plans submissions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import ROOT

pytestmark = pytest.mark.slow

Run = Callable[..., str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, in a directory of its own; dependencies stay those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source, place = folder / "source", folder / "installed"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("ima_dist", "cluster", "jobs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", place, wheel], check=True)
    return place


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Runs a command line in an empty directory, with the installed package before the checkout."""

    def call(*words: str) -> str:
        done = subprocess.run(
            words,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_what_is_installed_is_what_runs_and_is_complete(installed: Path, run: Run) -> None:
    code = "import ima_dist, cluster; print(ima_dist.__file__, cluster.__file__)"
    assert run(sys.executable, "-c", code).split() == [
        str(installed / package / "__init__.py") for package in ("ima_dist", "cluster")
    ]
    for package in ("ima_dist", "cluster"):
        kept = {p.relative_to(ROOT) for p in (ROOT / package).rglob("*") if p.is_file() and p.suffix != ".pyc"}
        assert not [path for path in kept if not (installed / path).is_file()]
    assert not (installed / "ima_dist" / "jobs").is_symlink()
    assert len(list((installed / "ima_dist" / "jobs").glob("*.yaml"))) == len(list((ROOT / "jobs").glob("*.yaml")))


def test_job_files_are_found_by_name(installed: Path, run: Run, tmp_path: Path) -> None:
    program = str(installed / "bin" / "ima-dist")
    rows = run(program, "job", "table02", "--list").splitlines()
    assert rows[0].startswith("ima: python -m ima_dist.train fashion_mnist ")
    planned = run(program, "submit", "table02", "--partition", "v100", "--dry-run")
    assert planned.count("-m ima_dist.job") == len(rows)
    assert "ima_dist.sweep" in run(
        sys.executable, "-m", "cluster.submit", "sweep_moons", "--partition=v100", "--dry-run"
    )
    assert list(tmp_path.iterdir()) == []


def test_training_and_report(installed: Path, run: Run, tmp_path: Path) -> None:
    program = str(installed / "bin" / "ima-dist")
    tiny = "--data.subset 40 --epochs 1 --attack.steps 2 --eval.steps 2 --eval.samples 8 --device cpu --out runs/a"
    assert "Results: runs/a" in run(program, "train", "moons", *tiny.split())
    run(program, "report", "runs", "--out", "report")
    assert "<html" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
