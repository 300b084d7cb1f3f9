"""How a run is fitted to a cluster's nodes, and what its workers check first."""

from __future__ import annotations

import platform
import socket
import threading
from types import SimpleNamespace

import pytest

from ima_dist import distributed, launcher
from ima_dist.config import ConfigError
from ima_dist.launcher import Cluster, fit_to
from ima_dist.presets import make_config
from ima_dist.results.rundir import RunDir
from tests import workers

CPU_NODE, GPU_NODE = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("options", "nodes", "expected"),
    [
        ({}, [CPU_NODE], Cluster(1, 8, False)),
        ({"workers": 3}, [CPU_NODE], Cluster(3, 2, False)),
        # 16 // 3 = 5 CPUs each would leave the third worker without a node that holds it.
        ({"workers": 3}, [CPU_NODE, CPU_NODE], Cluster(3, 4, False)),
        ({}, [GPU_NODE, GPU_NODE], Cluster(8, 4, True)),
        ({}, [CPU_NODE, GPU_NODE], Cluster(4, 4, True)),
        ({"workers": 2}, [GPU_NODE], Cluster(2, 8, True)),
        ({"device": "cpu"}, [GPU_NODE], Cluster(1, 16, False)),
        # A node with more cards than CPUs gives each worker one CPU and leaves cards over.
        ({}, [{"CPU": 2.0, "GPU": 4.0}], Cluster(2, 1, True)),
    ],
)
def test_workers_and_cpus(options, nodes, expected):
    assert fit_to(make_config("moons", options), nodes) == expected


@pytest.mark.parametrize(
    ("options", "nodes", "says"),
    [
        ({"workers": 9}, [CPU_NODE], "cluster has 8 CPUs: use at most 8"),
        ({"workers": 9}, [GPU_NODE, GPU_NODE], "cluster has 8 GPUs: use at most 8"),
        ({"device": "cuda"}, [CPU_NODE], "sees no CUDA device"),
        ({"model.sync_batch_norm": True}, [CPU_NODE], "works on GPUs alone"),
        ({"model.sync_batch_norm": True, "device": "cpu"}, [GPU_NODE], "works on GPUs alone"),
        ({"workers": 4, "batch_size": 3}, [CPU_NODE], "smaller than the number of workers"),
    ],
)
def test_what_cannot_be_had(options, nodes, says):
    with pytest.raises(ConfigError, match=says):
        fit_to(make_config("moons", options), nodes)


def _look(path):
    launcher._VISIBLE_WITHIN = 0.1
    assert launcher._unseen(RunDir(path)) is None
    elsewhere = RunDir(path / "elsewhere") if distributed.rank() else RunDir(path)
    sentence = launcher._unseen(elsewhere)
    assert sentence is not None
    assert sentence.endswith(f"is not there on {platform.node()}: give an --out on storage that all nodes share")


def test_a_run_directory_that_one_worker_does_not_see(tmp_path):
    workers.start_run(tmp_path, "moons")
    workers.run_on(2, _look, tmp_path)


def test_a_worker_that_died_comes_before_those_that_complain_of_it():
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
    from ray.train.v2.api.exceptions import WorkerGroupError

    complains = UserExceptionWithTraceback(OSError(28, "No space left on device"), "Traceback")
    died = WorkerHealthCheckFailedError("A worker health check failed.", failure=ValueError("a page of text"))
    assert launcher._worker_error(WorkerGroupError("", {0: complains, 1: died})).startswith("Worker 1 is gone: ")
    sentence = launcher._worker_error(WorkerGroupError("", {1: complains}))
    assert sentence == "The workers ended; what worker 1 reported first: OSError: [Errno 28] No space left on device"


def test_a_head_that_is_gone_is_not_waited_for(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "127.0.0.1:{1}".format(*server.getsockname())
        monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        monkeypatch.setattr(launcher, "_HEAD_LOST_AFTER", 0.2)
        monkeypatch.setattr(launcher, "_LOOK_AT_HEAD_EVERY", 0.05)
        never = threading.Event()
        assert launcher._fit(SimpleNamespace(fit=lambda: never.wait(1) or "done")) == "done"
    with pytest.raises(RuntimeError, match=f"head of the Ray cluster, at {address}, has been silent"):
        launcher._fit(SimpleNamespace(fit=lambda: never.wait(60)))
    never.set()
    with pytest.raises(ValueError, match="what fit raises"):
        launcher._fit(SimpleNamespace(fit=lambda: int("what fit raises")))
