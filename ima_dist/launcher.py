"""The driver's side of Ray: start or join a cluster, and run a task on its workers (``worker.work``)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ima_dist.config import Config, ConfigError, to_dict
from ima_dist.head import LOOK_EVERY, Head
from ima_dist.results.rundir import RunDir, write_json
from ima_dist.worker import PAUSE_FILE, STOP_FILE, work

# So often workers that come and go may fail in a row without a new checkpoint: what fails again and again is not
# a node.
_TRIES = 3
# OpenMP's threads wait for work by spinning. On a node that others use too, a spinning thread keeps the one
# it waits for from running: an attack on a small network took 40 times as long (docs/log.md).
_WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
# Seconds after which a second signal ends the driver at once, and that Ray has for its own end.
_IMPATIENT_AFTER, _LAST_WAIT = 1.0, 20.0
# Seconds after which the driver gives up a silent head of the cluster; its workers wait longer.
_HEAD_LOST_AFTER = 30.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Stopped(BaseException):
    """The driver was told to stop before there was anything to be saved."""


@dataclass(frozen=True)
class Cluster:
    """Workers that the run gets and the CPUs of each. least: their smallest number, if it may change."""

    workers: int
    cpus_per_worker: int
    use_gpu: bool
    least: int | None = None

    def __str__(self) -> str:
        count = f"{self.workers}" if self.least is None else f"{self.least} to {self.workers}"
        return f"{count} {'GPU' if self.use_gpu else 'CPU'} worker{'s' * (self.workers != 1)}"


def set_environment() -> str | None:
    """Set what Ray reads when it is imported, and return the address of the cluster to join, if there is one."""
    # Ray writes to people who run Ray; what concerns our user we say ourselves.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return address


@contextlib.contextmanager
def cluster(config: Config) -> Iterator[Cluster]:
    """Join the cluster named by RAY_ADDRESS (as under ``ray job submit``) or start one on this machine.

    Raises ConfigError if it cannot give what the configuration asks for. A cluster that was started here
    is stopped at the end.
    """
    address = set_environment()
    import ray

    # The dashboard must run: Ray Train's clean-up asks it about the state of the group and waits if it is absent.
    local: dict[str, Any] = {} if address else {"include_dashboard": True}
    if address:
        _ask_for_admission(address)
    try:
        with _signals_for_us_alone():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:
        where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
        raise ConfigError(f"Could not reach or start {where}: {_one_line(error)}.") from error
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        from ima_dist.elastic import usable_nodes

        yield fit_to(config, [node["Resources"] for node in usable_nodes()])
    finally:
        # A head that has gone would be waited for.
        ending = threading.Thread(target=ray.shutdown, daemon=True)
        ending.start()
        ending.join(_LAST_WAIT)


def _ask_for_admission(address: str) -> None:
    """Raise ConfigError if the cluster at ``address`` (host:port) does not know us. Other forms are left to Ray.

    ``ray.init`` takes half a minute of warnings to fail, and then does not say why.
    """
    if not re.fullmatch(r"[^/\s]+:\d+", address):
        return
    import ray
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        # Ray's core aborts the process that has no token where one is needed.
        ensure_token_if_auth_enabled(create_token_if_missing=False)
        with _nothing_on_stderr():
            GcsClient(address=address)
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"The Ray cluster at {address} asks for its token, and yours is missing or wrong: set RAY_AUTH_MODE=token, "
            "and RAY_AUTH_TOKEN_PATH to a file that holds it or RAY_AUTH_TOKEN to the token itself."
        ) from error
    except ray.exceptions.RayError as error:
        raise ConfigError(f"No Ray cluster answers at {address}: check RAY_ADDRESS, or leave it out.") from error


@contextlib.contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """Ray's core writes its warnings past Python, and takes no notice of a log level so early."""
    ours = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)
        os.close(nowhere)


def fit_to(config: Config, nodes: list[dict[str, float]]) -> Cluster:
    """Workers and their CPUs on nodes with the given resources ("CPU", "GPU"). Raises ConfigError.

    Each worker gets as many CPUs as can be had if all get equally many. Where the number of workers may change,
    all that there is room for now are counted.
    """
    use_gpu = config.device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes)
    if config.device == "cuda" and not use_gpu:
        raise ConfigError("--device cuda was asked for, but Ray sees no CUDA device: use --device cpu or auto.")
    if config.model.sync_batch_norm and not use_gpu:
        raise ConfigError("--model.sync-batch-norm works on GPUs alone: leave it out, or use --device cuda.")

    def room(cpus: int) -> int:
        """Workers that the nodes hold if each takes ``cpus``; a worker does not span nodes."""
        return sum(
            min(int(node.get("CPU", 0)) // cpus, int(node.get("GPU", 0)) if use_gpu else sys.maxsize) for node in nodes
        )

    least, most_workers = config.worker_range or (None, None)
    workers = least or int(config.workers or (room(1) if use_gpu else 1))
    if workers > room(1) or not room(1):
        unit = "GPU" if use_gpu else "CPU"
        raise ConfigError(
            f"--workers {config.workers or workers} was asked for, but the cluster has {room(1)} "
            f"{unit}{'s' * (room(1) != 1)}: use at most {room(1)}."
        )
    if config.batch_size < (most_workers or workers):
        raise ConfigError(
            f"--batch-size {config.batch_size} is smaller than the number of workers ({most_workers or workers}): "
            "raise it."
        )
    now = min(most_workers, room(1)) if most_workers else workers
    if config.cpus_per_worker:
        if room(config.cpus_per_worker) < workers:
            raise ConfigError(
                f"--cpus-per-worker {config.cpus_per_worker} leaves no room for {workers} "
                f"worker{'s' * (workers != 1)} on this cluster: give a smaller one."
            )
        return Cluster(most_workers or workers, config.cpus_per_worker, use_gpu, least=least)
    most = int(max(node.get("CPU", 0) for node in nodes))
    return Cluster(most_workers or workers, next(c for c in range(most, 0, -1) if room(c) >= now), use_gpu, least=least)


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

    from ima_dist.elastic import CheckpointFirst, Trainer
    from ima_dist.interfaces import NodeInterface

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
    from ima_dist.elastic import TooFew

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


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """While there is nothing to be saved, a signal to stop raises Stopped. Main thread only."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped

    with _handlers(stop):
        yield


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {s: signal.signal(s, handler) for s in STOP_SIGNALS}
    try:
        yield
    finally:
        for s, previous in before.items():
            signal.signal(s, previous)


@contextlib.contextmanager
def _signals_for_us_alone() -> Iterator[None]:
    """Ray's processes, started inside, never get the signals that ask the driver to stop.

    SLURM and ``timeout`` send a signal to all processes of a job: it would end Ray before the workers have
    written their checkpoint. A blocked signal stays blocked in the processes that one starts. Ray also
    replaces the driver's own handlers, which are put back.
    """
    before = {s: signal.getsignal(s) for s in STOP_SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def handing_on_signals(stop: Path, before_the_end: Callable[[], None]) -> Iterator[None]:
    """A signal to stop makes the file ``stop``, at which those who work look; a later one ends this process at once,
    with status 75, after ``before_the_end()``. Main thread only.
    """
    first: float | None = None

    def ask(signum: int, frame: FrameType | None) -> None:
        # Not by raising: the workers would have no time for a checkpoint.
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            stop.touch()
            print("Stopping: saving what has been done.", file=sys.stderr, flush=True)
        elif now - first > _IMPATIENT_AFTER:
            # A hung worker would keep a polite driver waiting for ever.
            print("Stopped at once; the last checkpoint is kept.", file=sys.stderr, flush=True)
            before_the_end()
            threading.Thread(target=_end_now, daemon=True).start()

    with _handlers(ask):
        yield


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


def _end_now() -> None:
    import ray

    threading.Timer(_LAST_WAIT, os._exit, [75]).start()
    with contextlib.suppress(Exception):
        ray.shutdown()
    os._exit(75)


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
        return f"The workers ended; what worker {rank} reported first: {_one_line(raised)}"
    return f"The workers failed: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
