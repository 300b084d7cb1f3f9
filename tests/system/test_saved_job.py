"""A job that an earlier version submitted runs, as SLURM starts it again."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from ima_dist import job
from tests.saved import copied_to, files_below
from tests.support.commands import ROOT
from tests.support.inline import without_ray

PROGRAM = """
import dataclasses, subprocess, sys
from cluster import ray_node
from submitit.core.utils import DelayedSubmission

class Stub:
    def __init__(self, temp, log, token, address, cpus, head=None):
        self.process = subprocess.Popen(["sleep", "600"])
        self.dashboard_port, self.gcs_address = 1, "127.0.0.1:2"
    def up(self):
        return True

ray_node.RayNode = Stub
task = DelayedSubmission.load("runs/cluster/job/1000_0_submitted.pkl").function
task = dataclasses.replace(task, interface="lo", temp=sys.argv[1])
print("answer", task()["status"])
"""


def test_a_row_that_has_finished_is_left_as_it_is(tmp_path, monkeypatch):
    """Its Ray cluster comes up at once, and there is nothing to do."""
    runs = copied_to(tmp_path)
    without_ray(monkeypatch)  # the attacks that have a new version since
    file = str(runs / "cluster" / "job" / "job.yaml")
    assert job.main([file, "--scale", "tiny", "--device", "cpu", "--out", str(runs / "jobs")]) == 0
    before = [files_below(path) for path in sorted((runs / "jobs").glob("moons-*"))]
    assert before
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:  # as the paths of sockets must be
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "1001",
            "SLURM_JOB_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_RESTART_COUNT": "1",
        }  # fmt: skip
        words = [sys.executable, "-c", PROGRAM, short]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["answer 0"]), done.stderr
    said = (runs / "cluster" / "job" / "ima" / "output.txt").read_text()
    assert "seed0-50fc7a36 is finished." in said[said.index("Start 1 of job 1001") :]
    assert [files_below(path) for path in sorted((runs / "jobs").glob("moons-*"))] == before
