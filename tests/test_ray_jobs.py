"""The entry point under ``ray job submit``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from ima_dist.results.rundir import RunDir
from tests import commands, workers
from tests.runs import check_files

pytestmark = pytest.mark.slow


def test_ray_job_submit(tmp_path):
    """The same entry point under ``ray job submit``, on a cluster started with ``ray start --head``."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    port, dashboard, agent = (workers.free_port() for _ in range(3))
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    env = commands.environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0",
        IMA_DIST_HOME=str(tmp_path), RAY_TMPDIR="/tmp",
    )  # fmt: skip
    env.pop("RAY_ADDRESS", None)
    head = subprocess.Popen(
        [*ray, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
         "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
         # Of their own: the usual ones may belong to another cluster on this machine, and jobs then find no agent.
         f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={workers.free_port()}"],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        commands.wait_for(lambda: workers.listens(dashboard), 90, "Ray's job server")
        submit = [
            *ray, "job", "submit", f"--address=http://127.0.0.1:{dashboard}", f"--working-dir={commands.ROOT}", "--",
            sys.executable, "-m", "ima_dist.train", "moons", "--epochs", "2", "--data.subset", "200",
            "--workers", "2", "--out", "results/mine", "--eval.steps", "3",
        ]  # fmt: skip
        # The job server answers before the node's agent that runs the jobs is there.
        for _ in range(30):
            done = subprocess.run(submit, env=env, capture_output=True, text=True, timeout=300)
            if "No available agent" not in done.stderr + done.stdout:
                break
            time.sleep(2)
        assert done.returncode == 0, done.stdout + done.stderr
        check_files(RunDir(tmp_path / "results" / "mine"), epochs=2, samples=20)
    finally:
        family = commands.descendants(head.pid)
        head.terminate()
        head.wait(timeout=60)
        for pid in family:
            if commands.alive(pid):
                os.kill(pid, signal.SIGKILL)
