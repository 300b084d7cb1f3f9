"""Run a task on the workers of a Ray cluster (``worker.main.work_in_group``), and forward signals to them."""

import concurrent.futures
import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError, complain, one_line
from ima_dist.config.schema import Config
from ima_dist.config.values import to_dict
from ima_dist.launch.cluster import Cluster
from ima_dist.launch.signals import forwarding_signals, heeding_signals
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json
from ima_dist.rundir.lease import LeaseLost
from ima_dist.worker.failure import Failure, first_cause
from ima_dist.worker.main import PAUSE_FILE, STOP_FILE, work_in_group
from ima_dist.worker.ray_head import LOOK_EVERY, Head

# How often in a row workers may fail without a new checkpoint, if their number may change: a failure that repeats is
# not the fault of a node.
_TRIES = 3
# OpenMP's threads spin while they wait. On a node that others use too, a spinning thread keeps the one that it waits
# for from running: an attack on a small network took 40 times as long (docs/log.md).
_WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
# Seconds after which the driver gives up on a silent head of the cluster; its workers wait longer.
_HEAD_LOST_AFTER = 30.0


def run_workers(
    task: str, config: Config, run: RunDir, cluster: Cluster, arguments: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run ``task`` ("train", "evaluate" or "audit", with ``arguments``) on the workers; returns worker 0's answer.

    The answer has a "message" and a "status": "finished", "interrupted" or "failed", also if another process has taken
    over the run. A signal to stop reaches the workers through a file in the run directory.

    When a node is drained, the workers write a checkpoint and the run is interrupted. If the number of workers may
    change, it continues with those that are left, also after one has died.

    Raises:
        RuntimeError: a worker died, or failed in a way that it could not report; one sentence.
    """
    import ray

    stop = run.path / STOP_FILE
    run.remove(stop)

    def before_exit() -> None:
        # An evaluation that has not begun leaves the run as it was.
        if task == "train" or not _starting(run):
            with contextlib.suppress(LeaseLost, OSError):
                run.write_json(run.summary_path, {**run.summary(), "status": "interrupted", "message": None})
        ray.shutdown()

    def nothing() -> bool:
        return _starting(run)

    with heeding_signals(stop, nothing) if cluster.guest else forwarding_signals(stop, before_exit, nothing):
        try:
            return _until_answered(run, cluster, lambda: _run_once(task, config, run, cluster, arguments))
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"The connection to the Ray cluster was lost ({type(error).__name__})") from error
        finally:
            _tidy(run)


def _tidy(run: RunDir) -> None:
    """Remove what is of no use without the workers; if another process has the run by now, it is that one's."""
    from ima_dist.training.aside import clear_unfinished

    with contextlib.suppress(LeaseLost, OSError):
        # Workers out of reach may live for another half a minute, and must not move what is removed meanwhile.
        run.shake_off()
        for name in (STOP_FILE, PAUSE_FILE):
            run.remove(run.path / name)
        shutil.rmtree(run.path / ".ray", ignore_errors=True)
        clear_unfinished(run)


def _until_answered(run: RunDir, cluster: Cluster, run_once: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Start groups of workers until one has an answer, or it is of no use to start another."""
    import ray.train

    from ima_dist.launch.elastic import TooFew

    failures = 0
    while True:
        before = _saved(run)
        run.remove(run.path / PAUSE_FILE)
        try:
            answer = run_once()
            if answer["status"] != "paused":
                return answer
            reason, failures, give_up = "A node is being drained", 0, cluster.least is None
        except ray.train.TrainingFailedError as error:
            told = _told(error)
            if told is not None and told.final:
                return {"status": "failed", "message": told.sentence}
            reason = _worker_error(error).rstrip(".")
            failures = 1 if _saved(run) != before else failures + 1
            too_few = isinstance(getattr(error, "controller_failure", None), TooFew)
            give_up = too_few or (isinstance(error, ray.train.PreemptionError) and cluster.least is None)
            hopeless = cluster.least is None or (run.path / STOP_FILE).exists() or failures >= _TRIES
            if hopeless and not give_up:
                raise RuntimeError(reason) from error
        if give_up:
            complain(f"{reason}.")
            return {"status": "interrupted", "message": reason}
        complain(f"{reason}. Continuing with the remaining workers.")
        # A worker on an unreachable node may still be writing.
        run.shake_off()


def _run_once(
    task: str, config: Config, run: RunDir, cluster: Cluster, arguments: dict[str, Any] | None
) -> dict[str, Any]:
    """One group of workers, or several in a row if Ray changes their number; returns worker 0's answer."""
    import ray.train

    from ima_dist.launch.elastic import CheckpointFirst, NodeInterface, Trainer

    # The type checker sees the classes of Ray Train V1; RAY_TRAIN_V2_ENABLED selects V2.
    v2: Any = ray.train
    trainer: Any = Trainer(
        work_in_group,  # type: ignore[arg-type]
        train_loop_config=payload(task, config, run, arguments),
        torch_config=NodeInterface(),
        scaling_config=v2.ScalingConfig(
            num_workers=(cluster.least, cluster.workers) if cluster.least else cluster.workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.use_gpu else {})},
        ),
        # Ray silently restores a run of the same name; ours resumes only from the run directory.
        run_config=v2.RunConfig(
            name=f"ima_dist-{task}-{time.time_ns()}",
            storage_path=str(run.path / ".ray"),
            # Retrying is left to us: Ray cannot tell whether a run makes progress between two failures.
            failure_config=v2.FailureConfig(max_failures=0, max_preemption_failures=0),
            worker_runtime_env={"env_vars": _WORKER_ENVIRONMENT},
            callbacks=[CheckpointFirst(run.path / PAUSE_FILE, run.check_lease)],
        ),
    )
    return fit_while_connected(trainer, Waiting(run, cluster).look).return_value


def _saved(run: RunDir) -> set[Path]:
    """The checkpoints and evaluated batches, which a new group of workers would not repeat."""
    return {*run.checkpoints_dir.glob("epoch=*"), *run.path.glob("evaluation/*/from-*.parquet")}


def payload(task: str, config: Config, run: RunDir, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """The argument of ``worker.main.work_in_group``."""
    return {
        "task": task,
        "config": to_dict(config),
        "run": str(run.path),
        "mark": run.mark,
        "arguments": arguments or {},
        "paths": [os.getcwd(), *(p for p in sys.path if p)],
    }


def _starting(run: RunDir) -> bool:
    """Whether no worker has begun."""
    with contextlib.suppress(ConfigError, OSError):
        return (read_json(run.progress_path) or {}).get("stage") == "starting"
    return False


class Waiting:
    """Says in progress.json what the workers wait for while the cluster has no room for them."""

    def __init__(self, run: RunDir, cluster: Cluster) -> None:
        self._run, self._cluster, self._said = run, cluster, ""

    def look(self) -> None:
        """To be called every few seconds."""
        if not _starting(self._run):
            return
        message = self._shortage()
        if message != self._said:
            self._said = message
            progress = {"stage": "starting", **({"message": message} if message else {})}
            self._run.write_progress(progress)

    def _shortage(self) -> str:
        """What is lacking; "" once the workers have their place."""
        import ray
        from ray.util import placement_group_table

        cluster = self._cluster
        unit, each = ("GPU", 1) if cluster.use_gpu else ("CPU", cluster.cpus_per_worker)
        if not any(_waits(group, unit, each) for group in placement_group_table().values()):
            return ""
        wanted = (cluster.least or cluster.workers) * each
        free, there = (int(amounts.get(unit, 0)) for amounts in (ray.available_resources(), ray.cluster_resources()))
        return f"waiting for {wanted} {unit}{'s' * (wanted != 1)}; {free} of {there} are free"


def _waits(group: dict[str, Any], unit: str, each: int) -> bool:
    """Whether a group of Ray's placement_group_table waits for workers like ours."""
    return group["state"] == "PENDING" and any(bundle.get(unit) == each for bundle in group["bundles"].values())


def fit_while_connected(trainer: Any, look: Callable[[], None] = lambda: None) -> Any:
    """Result of ``trainer.fit()``. Raises RuntimeError, one sentence, when the cluster's head no longer answers.

    look: called every few seconds.

    Ray would end this process after a minute without telling the user. In a thread of its own, ``fit`` also leaves
    Ctrl-C to us; Ray would react to it without writing a checkpoint.
    """
    result: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def fit() -> None:
        try:
            result.set_result(trainer.fit())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=fit, name="fit", daemon=True).start()
    head = Head()
    while not concurrent.futures.wait([result], timeout=LOOK_EVERY).done:
        look()
        if head.silent_for() > _HEAD_LOST_AFTER:
            raise RuntimeError(f"The head of the Ray cluster, at {head}, has not answered for half a minute")
    return result.result()


def _told(error: Exception) -> Failure | None:
    """The first cause of those that workers have told, if any could."""
    from ima_dist.worker.ray_internals import UserExceptionWithTraceback

    raised = (getattr(error, "worker_failures", None) or {}).values()
    bare = (r._base_exc if isinstance(r, UserExceptionWithTraceback) else r for r in raised)
    return first_cause([failure for failure in bare if isinstance(failure, Failure)])


def _worker_error(error: Exception) -> str:
    """One sentence. A dead worker comes first, since it explains what the others complain of."""
    from ima_dist.worker.ray_internals import WorkerHealthCheckFailedError

    failures = dict(sorted((getattr(error, "worker_failures", None) or {}).items()))
    for rank, failure in failures.items():
        if isinstance(failure, WorkerHealthCheckFailedError):
            return f"Worker {rank} died: it was killed, perhaps for lack of memory, or its node was lost"
    told = _told(error)
    if told is None:
        return f"The workers failed: {one_line(next(iter(failures.values()), error))}"
    return f"The workers failed; worker {told.rank} on {told.host} was the first to report: {told.sentence}"
