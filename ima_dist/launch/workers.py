"""Run a task on the workers of a Ray cluster (``worker.main.work``), and hand signals on to them."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import sys
import threading
import time
from typing import Any

from ima_dist.config.schema import Config
from ima_dist.config.values import to_dict
from ima_dist.launch.cluster import Cluster, one_line
from ima_dist.launch.signals import handing_on_signals
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from ima_dist.worker.main import PAUSE_FILE, STOP_FILE, work
from ima_dist.worker.ray_head import LOOK_EVERY, Head

# So often workers that come and go may fail in a row without a new checkpoint: what fails again and again is not
# a node.
_TRIES = 3
# OpenMP's threads wait for work by spinning. On a node that others use too, a spinning thread keeps the one
# it waits for from running: an attack on a small network took 40 times as long (docs/log.md).
_WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
# Seconds after which the driver gives up a silent head of the cluster; its workers wait longer.
_HEAD_LOST_AFTER = 30.0


def run_workers(
    task: str, config: Config, run: RunDir, cluster: Cluster, arguments: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run ``task`` ("train", "evaluate" or "audit", with ``arguments``) on the workers; returns worker 0's answer.

    The answer has "status" ("finished", "interrupted", "failed", or "lost" if another process has taken the run
    over) and "message". A signal that asks the
    driver to stop is handed on to the workers through a file in the run directory.

    When a node is drained, the workers write a checkpoint; then the run is interrupted. If their number may
    change, it goes on with the workers that are left, also when one has died.

    Raises:
        RuntimeError: a worker died or failed in a way it could not report; one sentence.
    """
    import ray

    stop, pause = run.path / STOP_FILE, run.path / PAUSE_FILE
    tries = 0
    stop.unlink(missing_ok=True)

    def note() -> None:
        write_json(run.summary_path, {**run.summary(), "status": "interrupted", "message": None})

    with handing_on_signals(stop, note):
        try:
            while True:
                before = _saved(run)
                pause.unlink(missing_ok=True)
                try:
                    answer = _run_once(task, config, run, cluster, arguments)
                    if answer["status"] != "paused":
                        return answer
                    reason, tries, ended = "A node is being drained", 0, cluster.least is None
                except ray.train.TrainingFailedError as error:
                    reason = _worker_error(error).rstrip(".")
                    preempted = isinstance(error, ray.train.PreemptionError)
                    tries = 1 if _saved(run) != before else tries + 1
                    ended = _too_few(error) or (preempted and cluster.least is None)
                    if not ended and (cluster.least is None or stop.exists() or tries >= _TRIES):
                        raise RuntimeError(reason) from error
                except ray.exceptions.RayError as error:
                    lost = f"The connection to the Ray cluster was lost ({type(error).__name__})"
                    raise RuntimeError(lost) from error
                if ended:
                    print(f"{reason}.", file=sys.stderr, flush=True)
                    return {"status": "interrupted", "message": reason}
                print(f"{reason}. Going on with the workers that are left.", file=sys.stderr, flush=True)
                # A worker on a node that is out of reach may still be writing.
                run.shake_off()
        finally:
            stop.unlink(missing_ok=True)
            pause.unlink(missing_ok=True)
            _remove_ray_files(run)


def _run_once(
    task: str, config: Config, run: RunDir, cluster: Cluster, arguments: dict[str, Any] | None
) -> dict[str, Any]:
    """One group of workers, or several if Ray changes their number; returns worker 0's answer."""
    import ray.train

    from ima_dist.launch.elastic import CheckpointFirst, Trainer
    from ima_dist.launch.network_interface import NodeInterface

    resources = {"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.use_gpu else {})}
    # The type checker sees the classes of Ray Train V1; what runs is V2 (RAY_TRAIN_V2_ENABLED, above).
    v2: Any = ray.train
    trainer: Any = Trainer(
        work,  # type: ignore[arg-type]
        train_loop_config=payload(task, config, run, arguments),
        torch_config=NodeInterface(),
        scaling_config=v2.ScalingConfig(
            num_workers=(cluster.least, cluster.workers) if cluster.least else cluster.workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker=resources,
        ),
        # Ray restores a run by its name, without a word; ours resumes from the run directory alone.
        run_config=v2.RunConfig(
            name=f"ima_dist-{task}-{time.time_ns()}",
            storage_path=str(run.path / ".ray"),
            # What is tried again is ours to decide: Ray cannot tell whether a run gets on between two failures.
            failure_config=v2.FailureConfig(max_failures=0, max_preemption_failures=0),
            worker_runtime_env={"env_vars": _WORKER_ENVIRONMENT},
            callbacks=[CheckpointFirst(run.path / PAUSE_FILE)],
        ),
    )
    answer: dict[str, Any] = fit_while_connected(trainer).return_value
    return answer


def _saved(run: RunDir) -> set[str]:
    """What a new group of workers would not have to do again."""
    done = [*run.checkpoints_dir.glob("epoch=*"), *run.path.glob("evaluation/*/from-*.parquet")]
    return {str(path) for path in done}


def _too_few(error: Exception) -> bool:
    from ima_dist.launch.elastic import TooFew

    return isinstance(getattr(error, "controller_failure", None), TooFew)


def payload(task: str, config: Config, run: RunDir, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a worker is told."""
    return {
        "task": task,
        "config": to_dict(config),
        "run": str(run.path),
        "mark": run.mark,
        "arguments": arguments or {},
        "paths": [os.getcwd(), *(p for p in sys.path if p)],
    }


def fit_while_connected(trainer: Any) -> Any:
    """``trainer.fit()``, given up when the cluster's head no longer answers.

    Ray would end this process after a minute, without a word to its user. In a thread of its own, ``fit`` also
    leaves Ctrl-C to us, which Ray would answer without a checkpoint.
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
        if head.silent_for() > _HEAD_LOST_AFTER:
            raise RuntimeError(f"The head of the Ray cluster, at {head}, has been silent for half a minute")
    return result.result()


def _remove_ray_files(run: RunDir) -> None:
    shutil.rmtree(run.path / ".ray", ignore_errors=True)


def _worker_error(error: Exception) -> str:
    """One sentence. A worker that has died explains what the others complain of, so it comes first."""
    failures = sorted((getattr(error, "worker_failures", None) or {}).items())
    for rank, failure in failures:
        if hasattr(failure, "health_check_failure"):
            return f"Worker {rank} is gone: it was killed, by a lack of memory perhaps, or its node was lost"
    for rank, failure in failures:
        raised = getattr(failure, "_base_exc", failure)
        return f"The workers ended; what worker {rank} reported first: {one_line(raised)}"
    return f"The workers failed: {one_line(error)}"
