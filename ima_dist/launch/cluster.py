"""The driver's side of Ray: start or join a cluster, and run a task on its workers (``worker.work``)."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.launch.signals import LAST_WAIT, signals_for_us_alone


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
def ray_cluster(config: Config) -> Iterator[Cluster]:
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
        with signals_for_us_alone():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:
        where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
        raise ConfigError(f"Could not reach or start {where}: {one_line(error)}.") from error
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        from ima_dist.launch.elastic import usable_nodes

        yield fit_to(config, [node["Resources"] for node in usable_nodes()])
    finally:
        # A head that has gone would be waited for.
        ending = threading.Thread(target=ray.shutdown, daemon=True)
        ending.start()
        ending.join(LAST_WAIT)


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


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
