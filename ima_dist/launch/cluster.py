"""Start or join a Ray cluster, and fit a run, or the trials of a sweep, to its nodes."""

import contextlib
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError, complain, one_line, printable
from ima_dist.config.schema import Config
from ima_dist.config.values import with_options
from ima_dist.launch import ray_variables
from ima_dist.launch.signals import LAST_WAIT, starting_ray
from ima_dist.launch.temporary import private_directory, usual_base


@dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    least: their smallest number, if the number may change; ``workers`` is the largest then. local: there is one, and it
    is this process. guest: this process is a program or notebook of the user's, which must not be ended.
    """

    workers: int
    cpus_per_worker: int
    use_gpu: bool
    least: int | None = None
    local: bool = False
    guest: bool = False

    def __str__(self) -> str:
        count = f"{self.workers}" if self.least is None else f"{self.least} to {self.workers}"
        where = " in this process" if self.local else ""
        return f"{count} {'GPU' if self.use_gpu else 'CPU'} worker{'s' * (self.workers != 1)}{where}"


def set_environment() -> str | None:
    """Set the variables that Ray reads on import; returns the address of the cluster to join, if there is one."""
    address = os.environ.get("RAY_ADDRESS")
    ours = {} if address else ray_variables.OWN_CLUSTER
    for name, value in {**ray_variables.TRAINING, **ray_variables.DRIVER, **ours}.items():
        os.environ.setdefault(name, value)
    return address


@contextlib.contextmanager
def _undrained() -> Iterator[None]:
    """Ray Train without the actor that looks for drained nodes: nobody drains that of a cluster which ends with us."""
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    given = name in os.environ
    os.environ.setdefault(name, "0")
    try:
        yield
    finally:
        # This process may go on to join a cluster with nodes that are drained.
        if not given:
            os.environ.pop(name, None)


def _check_names() -> None:
    """Raise ConfigError for a path that Ray, which records the command, cannot write down."""
    for word in (*sys.argv, os.getcwd()):
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"Ray takes no names that are not UTF-8: rename {printable(word)}, or make a link to it."
            ) from None


@contextlib.contextmanager
def ray_cluster(config: Config) -> Iterator[Cluster]:
    """Join the cluster named by RAY_ADDRESS (as under ``ray job submit``) or start one on this machine.

    Yields the workers that fit the configuration; raises ConfigError if it cannot be met. A cluster that was started
    here is stopped at the end.
    """
    _check_names()
    address = set_environment()
    import ray

    from ima_dist.worker import ray_internals

    if complaint := ray_internals.warning(ray.__version__):
        complain(f"warning: {complaint}")
    if address:
        _check_admission(address)
    # Ray's usual directory may be another user's, or too long for its sockets, and Ray does not clean up.
    own = contextlib.nullcontext() if address else private_directory(usual_base(), str(os.getpid()))
    with own as temp, contextlib.nullcontext() if address else _undrained():
        _connect(address, temp)
        try:
            if not address:
                ray_internals.end_daemons_at_once()
            from ima_dist.launch.elastic import usable_nodes

            yield fit_to(config, [node["Resources"] for node in usable_nodes()])
        finally:
            # If the head has gone, ray.shutdown waits for it.
            shutdown = threading.Thread(target=ray.shutdown, daemon=True)
            shutdown.start()
            shutdown.join(LAST_WAIT)


def _connect(address: str | None, temp: Path | None) -> None:
    """Join the cluster at ``address``, or start one with its files in ``temp``. Raises ConfigError."""
    import ray

    try:
        # Ray gives workers the driver's directory as the first place for modules: under SLURM that of the job's code.
        code = os.environ.get("IMA_DIST_CODE") if address else None
        with starting_ray(), contextlib.chdir(code) if code else contextlib.nullcontext():
            options: dict[str, Any] = {} if temp is None else {"include_dashboard": False, "_temp_dir": str(temp)}
            usual = os.environ.get("TMPDIR")
            if temp is not None:
                # Ray's dashboard makes further sockets there.
                os.environ["TMPDIR"] = str(temp)
            try:
                ray.init(address or "local", **options, log_to_driver=False, logging_level=logging.ERROR)
            finally:
                os.environ.pop("TMPDIR", None)
                os.environ.update({"TMPDIR": usual} if usual is not None else {})
    except Exception as error:
        what = f"reach the Ray cluster at {address}" if address else "start Ray on this machine"
        raise ConfigError(f"Could not {what}: {one_line(error)}.") from error
    # Its controller reports failures of workers, which we say in a sentence of our own.
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)


def _check_admission(address: str) -> None:
    """Raise ConfigError if no cluster at ``address`` (host:port) accepts our token. Other forms are left to Ray.

    ``ray.init`` fails only after half a minute of warnings, and does not say why.
    """
    if not re.fullmatch(r"[^/\s]+:\d+", address):
        return
    import ray

    from ima_dist.worker.ray_internals import GcsClient, ensure_token_if_auth_enabled

    try:
        # Without this check, Ray's core aborts a process that lacks a required token.
        ensure_token_if_auth_enabled(create_token_if_missing=False)
        with _stderr_discarded():
            GcsClient(address=address)
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"The Ray cluster at {address} requires its token, and yours is missing or wrong: set RAY_AUTH_MODE=token, "
            "and either RAY_AUTH_TOKEN_PATH to the file with the token or RAY_AUTH_TOKEN to the token itself."
        ) from error
    except ray.exceptions.RayError as error:
        raise ConfigError(f"No Ray cluster answers at {address}: correct RAY_ADDRESS, or unset it.") from error


@contextlib.contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Discard what is written to file descriptor 2: Ray's core bypasses Python, and ignores log levels this early."""
    ours = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)


def fit_to(config: Config, nodes: list[dict[str, float]]) -> Cluster:
    """The workers of a run on nodes with the given resources ("CPU", "GPU"). Raises ConfigError.

    All workers get equally many CPUs, as many as possible. If the number of workers may change, that is worked out for
    the largest number that fits now.
    """
    use_gpu = config.device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes)
    if config.device == "cuda" and not use_gpu:
        raise ConfigError("--device cuda was given, but Ray finds no CUDA device: use --device cpu or auto.")
    if config.model.sync_batch_norm and not use_gpu:
        raise ConfigError("--model.sync-batch-norm works only on GPUs: leave it out, or use --device cuda.")

    room = functools.partial(_room, nodes, use_gpu)
    least, most = config.worker_range or (None, None)
    workers = least or int(config.workers or (room(1) if use_gpu else 1))
    largest = most or workers
    unit = "GPU" if use_gpu else "CPU"
    if not room(1):
        raise ConfigError(f"The Ray cluster has no usable {unit}: start a node that has one.")
    if workers > room(1):
        there = f"{room(1)} {unit}{'s' * (room(1) != 1)}"
        given = config.workers or workers
        raise ConfigError(f"--workers {given} is too many: the cluster has {there}, so use at most {room(1)}.")
    if config.batch_size < largest:
        raise ConfigError(
            f"--batch-size {config.batch_size} is smaller than the number of workers ({largest}): "
            "increase it, or use fewer workers."
        )
    if config.cpus_per_worker:
        if room(config.cpus_per_worker) < workers:
            raise ConfigError(
                f"--cpus-per-worker {config.cpus_per_worker} leaves no room for {workers} "
                f"worker{'s' * (workers != 1)} on this cluster: use a smaller number."
            )
        return Cluster(largest, config.cpus_per_worker, use_gpu, least)
    now, cpus = min(largest, room(1)), int(max(node.get("CPU", 0) for node in nodes))
    return Cluster(largest, next(c for c in range(cpus, 0, -1) if room(c) >= now), use_gpu, least)


def _room(nodes: list[dict[str, float]], use_gpu: bool, cpus: int) -> int:
    """How many workers with this many CPUs, and a GPU each, fit on the nodes; a worker does not span nodes."""
    return sum(min(int(n.get("CPU", 0)) // cpus, int(n.get("GPU", 0)) if use_gpu else sys.maxsize) for n in nodes)


def settled(config: Config, cpus: int) -> Config:
    """``config`` with its numbers of workers and of CPUs fixed: a trial does not take all that the cluster has."""
    return with_options(config, {"workers": config.workers or 1, "cpus_per_worker": config.cpus_per_worker or cpus})


def share_of_cpus(config: Config, nodes: list[dict[str, float]]) -> int:
    """CPUs of a trial's worker: one, or with GPUs the fewest CPUs that a node has per GPU."""
    per_gpu = [int(n.get("CPU", 0)) // int(n["GPU"]) for n in nodes if n.get("GPU", 0) >= 1]
    return max(1, min(per_gpu)) if per_gpu and config.device != "cpu" else 1


def trials_at_once(configs: list[Config], nodes: list[dict[str, float]]) -> int:
    """How many trials of the largest kind fit on the nodes at once. Raises ConfigError if not even one does."""
    needs = [fit_to(config, nodes) for config in configs]
    return min(max(1, _room(nodes, n.use_gpu, n.cpus_per_worker) // (n.least or n.workers)) for n in needs)
