"""``ima_dist.fit`` with several workers: Ray's, which find what a script has given."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ima_dist.rundir.directory import RunDir
from tests.support import commands

pytestmark = pytest.mark.slow
SCRIPT = """
import numpy as np
from torch import nn
import ima_dist

WIDTH = 8

def build(num_classes, input_shape):
    return nn.Sequential(nn.Linear(input_shape[0], WIDTH), nn.Tanh(), nn.Linear(WIDTH, num_classes))

def draw(count):
    x = np.random.default_rng(count).normal(size=(count, 2))
    return x, (x[:, 0] > 0).astype("int64")

settings = {"eval.noise": [0, 0.1], "eval.steps": 2, "batch_size": 32, "dtype": "float64", "device": "cpu"}
for workers in (1, 2):
    run = ima_dist.fit("own", name="halves", data={"train": draw(96), "test": draw(20)}, network=build,
                       out=f"{workers}", eps_max=0.2, epochs=2, workers=workers, cpus_per_worker=1, **settings)
    assert run.status == "finished"
"""


def test_data_and_functions_of_a_script_reach_the_workers(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = commands.environment()
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert "2 CPU workers." in done.stdout
    one, two = ([point.accuracy for point in RunDir(tmp_path / name).points()] for name in "12")
    assert one == two
    assert (tmp_path / "1" / "given" / "data.safetensors").exists()
