"""Ray ends all workers as soon as one has failed, wherever the others are, and tells the driver what it was."""

from __future__ import annotations

import platform
import subprocess
import time

import pytest

from ima_dist.rundir.directory import RunDir
from tests.support import commands
from tests.support.clusters import ray_cluster

OPTIONS = [
    "--workers",
    "2",
    "--data.subset",
    "400",
    "--batch-size",
    "20",
    "--epochs",
    "2",
    "--method",
    "ce",
    "--eval.steps",
    "1",
    "--eval.noise",
    "0",
    "--device",
    "cpu",
    "--model.factory",
    "tests.support.user_code:fails_alone",
]
TOLD = f"The workers failed; worker 1 on {platform.node()} was the first to report: "


@pytest.mark.slow
def test_what_one_worker_meets_ends_the_others_and_is_shown(tmp_path):
    """The other one waits in gloo for the gradients, with a time-out of a day."""
    with ray_cluster(tmp_path, cpus=2, MET=str(tmp_path)) as cluster:
        for what, sentence in {
            "damaged": "its file is damaged",
            "unknown": f"{TOLD}Unknown: a mistake",
            "dies": "Worker 1 died: it was killed, perhaps for lack of memory, or its node was lost",
        }.items():
            out = tmp_path / f"run-{what}"
            done = subprocess.run(
                commands.command("ima_dist.train", "moons", *OPTIONS, f"--model.args.what={what}", f"--out={out}"),
                env=cluster.environment, cwd=commands.ROOT,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            # The driver's own end is part of it.
            assert time.time() - (tmp_path / what).stat().st_mtime < 120, done.stderr
            assert done.returncode == 1
            assert f"error: {sentence}. To continue" in done.stderr
            assert (RunDir(out).summary()["status"], RunDir(out).summary()["message"]) == ("failed", sentence)
