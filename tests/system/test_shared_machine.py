"""Ray on a machine or cluster that others use too."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ima_dist.rundir.files import read_json
from tests.support import commands
from tests.support.clusters import ray_cluster

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


# Takes a CPU of the cluster until it is told to end.
_HOLD = """
import sys, ray
ray.init(log_to_driver=False, logging_level="ERROR")
held = ray.remote(num_cpus=1)(type("Held", (), {"there": lambda self: "held"})).remote()
print(ray.get(held.there.remote()), flush=True)
sys.stdin.readline()
"""


def test_a_busy_cluster_is_waited_for_and_one_signal_is_enough(tmp_path):
    run = tmp_path / "run"
    words = commands.command("ima_dist.train", "moons", "--method", "ce", *TINY, "--workers", "1", "--out", run)
    with (
        ray_cluster(tmp_path) as cluster,
        subprocess.Popen(
            [sys.executable, "-c", _HOLD],
            env=cluster.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with subprocess.Popen(words, env=cluster.environment, stderr=subprocess.PIPE, text=True) as driver:
            wanted = "waiting for 1 CPU; 0 of 1 are free"
            commands.wait_for(
                lambda: (read_json(run / "progress.json") or {}).get("message") == wanted, 240, "the driver to wait"
            )
            driver.send_signal(signal.SIGTERM)
            _, said = driver.communicate(timeout=120)
        assert driver.returncode == 75, said
        assert "Stopped before the training began; nothing is lost." in said
        holder.communicate("\n")
