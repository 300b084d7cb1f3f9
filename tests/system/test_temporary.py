"""Ray's files on a machine that others use too: a long TMPDIR, another user's /tmp/ray, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import commands

pytestmark = pytest.mark.slow
TINY = ["--data.subset", "40", "--epochs", "1", "--eval.steps", "2", "--attack.steps", "2", "--device", "cpu"]


def test_ray_gets_a_short_private_directory_and_leaves_nothing(tmp_path):
    long = tmp_path / ("x" * 98)
    long.mkdir()
    before = set(Path("/tmp").glob("ima-*"))
    words = ["moons", "--method", "ce", *TINY, "--workers", "1", "--out", tmp_path / "run"]
    done = commands.run("ima_dist.train", *words, cwd=tmp_path, TMPDIR=str(long))
    assert done.returncode == 0, done.stderr
    assert not list(long.glob("ima-*"))
    # Tests that run beside this one make directories, but no links.
    assert not [path for path in set(Path("/tmp").glob("ima-*")) - before if (path / "r").is_symlink()]
