"""How a run is fitted to a cluster's nodes, and what its workers check first."""

from __future__ import annotations

import platform
import socket
import threading
from types import SimpleNamespace

import pytest
from ray.train.v2.api.exceptions import WorkerGroupError

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.core import distributed
from ima_dist.launch import workers as launcher
from ima_dist.launch.cluster import Cluster, fit_to
from ima_dist.launch.workers import Waiting, _worker_error, fit_while_connected, run_workers
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json, write_json
from ima_dist.worker import main
from ima_dist.worker.failure import Failure
from tests.support import workers

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
        # As many of a range as there is room for now; the CPUs of each are theirs for the whole run.
        ({"workers": "1-4"}, [CPU_NODE], Cluster(4, 2, False, least=1)),
        ({"workers": "1-4"}, [{"CPU": 1.0}], Cluster(4, 1, False, least=1)),
        ({"workers": "2-9"}, [GPU_NODE], Cluster(9, 4, True, least=2)),
        ({"workers": 3, "cpus_per_worker": 1}, [CPU_NODE], Cluster(3, 1, False)),
    ],
)
def test_workers_and_cpus(options, nodes, expected):
    assert fit_to(make_config("moons", options), nodes) == expected


@pytest.mark.parametrize(
    ("options", "nodes", "says"),
    [
        ({"workers": 9}, [CPU_NODE], "cluster has 8 CPUs, so use at most 8"),
        ({"workers": 9}, [GPU_NODE, GPU_NODE], "cluster has 8 GPUs, so use at most 8"),
        ({"device": "cuda"}, [CPU_NODE], "finds no CUDA device"),
        ({"model.sync_batch_norm": True}, [CPU_NODE], "works only on GPUs"),
        ({"model.sync_batch_norm": True, "device": "cpu"}, [GPU_NODE], "works only on GPUs"),
        ({"workers": 4, "batch_size": 3}, [CPU_NODE], "smaller than the number of workers"),
        ({"workers": "1-4", "batch_size": 3}, [CPU_NODE], r"smaller than the number of workers \(4\)"),
        ({}, [{"CPU": 0.0}], "has no usable CPU: start a node"),
        ({"workers": 2, "cpus_per_worker": 5}, [CPU_NODE], "--cpus-per-worker 5 leaves no room for 2 workers"),
        ({"workers": "9-12"}, [CPU_NODE], "--workers 9-12 is too many: the cluster has 8 CPUs"),
    ],
)
def test_what_cannot_be_had(options, nodes, says):
    with pytest.raises(ConfigError, match=says):
        fit_to(make_config("moons", options), nodes)


class Groups:
    """Stands in for Ray: each group of workers of a run ends in one of ``ends``, an answer or an exception."""

    def __init__(self, run: RunDir, *ends: object) -> None:
        self.run, self.ends, self.marks = run, list(ends), []

    def once(self, *arguments: object) -> dict[str, object]:
        self.marks.append(self.run.mark)
        if self.ends[0] == "saves":
            self.run.checkpoints_dir.mkdir(exist_ok=True)
            (self.run.checkpoints_dir / f"epoch={len(launcher._saved(self.run)) + 1:04d}").mkdir()
            self.ends.pop(0)
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Call with a range and ends of groups; returns the answer, or what was raised, and the marks they wrote under."""
    config, run = workers.start_run(tmp_path / "run", "moons")

    def call(least, *ends):
        them = Groups(run, *ends)
        monkeypatch.setattr(launcher, "_run_once", them.once)
        with run.writing():
            try:
                answer = run_workers("train", config, run, Cluster(4, 1, False, least=least))
            except RuntimeError as error:
                answer = error
        assert not them.ends
        return answer, them.marks

    return call


DONE, PAUSED = {"status": "finished", "message": None}, {"status": "paused", "message": "stopped"}


def died():
    return WorkerGroupError("", {0: KeyError("gone")})


def test_a_fixed_number_of_workers_ends_with_the_first_that_fails_or_leaves(groups, capsys):
    assert "KeyError" in str(groups(None, "saves", died())[0])
    assert groups(None, PAUSED)[0] == {"status": "interrupted", "message": "A node is being drained"}
    assert capsys.readouterr().err == "A node is being drained.\n"


def test_a_range_of_workers_goes_on_as_long_as_it_gets_on(groups, capsys):
    answer, marks = groups(1, died(), PAUSED, died(), died(), "saves", died(), died(), DONE)
    assert answer == DONE
    assert len(set(marks)) == 7, "a worker that lives on out of reach could write"
    assert capsys.readouterr().err.count("Continuing with the remaining workers.") == 6
    answer, marks = groups(1, "saves", died(), died(), died())
    assert "KeyError" in str(answer)
    assert len(marks) == 3
    # What is the run's own fault is not tried again, though one worker alone has met it, or another has died.
    at_fault = WorkerGroupError("", {0: Failure("its file is damaged", final=True), 1: KeyError("gone")})
    assert groups(1, at_fault)[0] == {"status": "failed", "message": "its file is damaged"}


def test_a_range_of_workers_ends_resumable_when_too_few_are_left(groups):
    from ray.train import ControllerError

    from ima_dist.launch.elastic import TooFew

    answer, _ = groups(2, died(), ControllerError(TooFew("the cluster has had room for fewer than 2 workers")))
    assert answer["status"] == "interrupted"
    assert "fewer than 2" in answer["message"]


def test_nodes_that_are_dead_or_leaving_are_not_counted(monkeypatch):
    import ray
    from ray.train.v2.api.config import ScalingConfig

    from ima_dist.launch import elastic
    from ima_dist.launch.elastic import TooFew, UsableNodes

    nodes = [{"NodeID": name, "Alive": name != "dead", "Resources": {}} for name in ("here", "leaving", "dead")]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: {"leaving": 0})
    policy = UsableNodes(ScalingConfig(num_workers=(2, 4), resources_per_worker={"CPU": 1}))
    reserved = {name: {"CPU": 2.0} for name in ("here", "leaving", "dead")}
    assert policy._count_possible_workers(reserved) == 2

    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: reserved)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    nodes.clear()
    clock = iter(range(0, 1000, 25))
    quick = SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None)
    monkeypatch.setattr(elastic, "time", quick)
    with pytest.raises(TooFew, match="fewer than 2 workers"):
        [policy.make_decision_for_non_running_worker_group() for _ in range(6)]


def _look(path):
    main.VISIBLE_WITHIN = 0.1
    assert main._unseen(RunDir(path)) is None
    elsewhere = RunDir(path / "elsewhere") if distributed.rank() else RunDir(path)
    sentence = main._unseen(elsewhere)
    assert sentence is not None
    assert sentence.endswith(f"does not exist on {platform.node()}: give an --out on storage that all nodes share")


def test_a_run_directory_that_one_worker_does_not_see(tmp_path):
    workers.start_run(tmp_path, "moons")
    workers.run_on(2, _look, tmp_path)


def test_a_worker_that_died_comes_before_those_that_complain_of_it():
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

    told = Failure("OSError: [Errno 28] No space left on device", final=False, rank=1, host="node7")
    complains = UserExceptionWithTraceback(told, "Traceback")
    died = WorkerHealthCheckFailedError("A worker health check failed.", failure=ValueError("a page of text"))
    assert _worker_error(WorkerGroupError("", {0: complains, 1: died})).startswith("Worker 1 died: ")
    sentence = (
        "The workers failed; worker 1 on node7 was the first to report: OSError: [Errno 28] No space left on device"
    )
    assert _worker_error(WorkerGroupError("", {1: complains})) == sentence


def test_a_busy_cluster_is_said_to_be_busy(tmp_path, monkeypatch):
    """As long as no worker has a place; other people's groups, and a run that has begun, are left out."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    write_json(run.progress_path, {"stage": "starting"})
    groups = {
        "a": {"state": "CREATED", "bundles": {0: {"CPU": 2.0}}},
        "b": {"state": "PENDING", "bundles": {0: {"CPU": 9.0}}},
    }
    monkeypatch.setattr("ray.util.placement_group_table", lambda: groups)
    monkeypatch.setattr("ray.available_resources", lambda: {"memory": 1.0})
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    waiting = Waiting(run, Cluster(2, 2, False))
    waiting.look()
    assert read_json(run.progress_path) == {"stage": "starting"}
    groups["c"] = {"state": "PENDING", "bundles": {0: {"CPU": 2.0}, 1: {"CPU": 2.0}}}
    waiting.look()
    assert read_json(run.progress_path) == {"stage": "starting", "message": "waiting for 4 CPUs; 0 of 4 are free"}
    groups["c"]["state"] = "CREATED"
    waiting.look()
    assert read_json(run.progress_path) == {"stage": "starting"}
    write_json(run.progress_path, {"stage": "training"})
    groups["c"]["state"] = "PENDING"
    waiting.look()
    assert read_json(run.progress_path) == {"stage": "training"}


def test_a_head_that_is_gone_is_not_waited_for(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "127.0.0.1:{1}".format(*server.getsockname())
        monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        monkeypatch.setattr(launcher, "_HEAD_LOST_AFTER", 0.2)
        monkeypatch.setattr(launcher, "LOOK_EVERY", 0.05)
        never = threading.Event()
        assert fit_while_connected(SimpleNamespace(fit=lambda: never.wait(1) or "done")) == "done"
    with pytest.raises(RuntimeError, match=f"head of the Ray cluster, at {address}, has not answered"):
        fit_while_connected(SimpleNamespace(fit=lambda: never.wait(60)))
    never.set()
    with pytest.raises(ValueError, match="what fit raises"):
        fit_while_connected(SimpleNamespace(fit=lambda: int("what fit raises")))
