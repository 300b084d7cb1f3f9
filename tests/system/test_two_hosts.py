"""Two hosts, each in a network namespace of its own, joined by a cable."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.hosts import two_hosts, why_not
from ima_dist.launch.network_interface import addresses, interface_of
from tests.support import workers
from tests.support.commands import ROOT

OPTIONS = {"data__subset": 400, "epochs": 3, "dtype": "float64", "eval__steps": 2, "optimizer__lr": 1e-2}


def test_interface_of_an_address():
    assert interface_of("127.0.0.1") == "lo"
    assert addresses()["lo"] == "127.0.0.1"
    assert interface_of("192.0.2.255") is None


@pytest.mark.slow
def test_two_hosts_end_with_the_result_of_one(tmp_path):
    reason = why_not()
    if reason:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    config, _ = workers.start_run(tmp_path / "one", "moons", **OPTIONS)
    workers.train(config, tmp_path / "one")
    with two_hosts(tmp_path) as hosts:
        flags = [f"--{name.replace('__', '.').replace('_', '-')}={value}" for name, value in OPTIONS.items()]
        command = [sys.executable, "-m", "ima_dist.train", "moons", *flags, "--workers", "2"]
        done = subprocess.run(
            hosts.on(0, *command, "--out", str(tmp_path / "two")),
            env=hosts.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    (weights_1, margins_1), (weights_2, margins_2) = (
        workers.final_state(config, tmp_path / name) for name in ("one", "two")
    )
    assert workers.largest_difference(weights_1, weights_2) < 1e-9
    assert float((margins_1 - margins_2).abs().max()) < 1e-9
    shards = sorted(p.name for p in (tmp_path / "two" / "margins" / "epoch=0003").glob("shard-*"))
    assert shards == ["shard-0000-of-0002.parquet", "shard-0001-of-0002.parquet"]
