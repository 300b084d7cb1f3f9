"""Run a task in this process: one worker needs no Ray, whose start and end take longer than a small training."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ima_dist.config.errors import ConfigError, one_line
from ima_dist.config.schema import Config
from ima_dist.launch.cluster import Cluster, ray_cluster
from ima_dist.launch.signals import forwarding_signals, heeding_signals
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.lease import LeaseLost
from ima_dist.worker.main import STOP_FILE, in_this_process


def prepare_process() -> None:
    """Set the environment of a worker in this process; before torch is imported.

    OpenMP's threads spin while they wait, which costs much on a machine that others use too (docs/log.md).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextlib.contextmanager
def workers_of(config: Config, local: bool, guest: bool = False) -> Iterator[Cluster]:
    """The workers of a run: this process if ``local``, else those of a Ray cluster (see ``ray_cluster``).

    guest: as in ``Cluster``.
    """
    if not local:
        with ray_cluster(config) as cluster:
            yield replace(cluster, guest=guest)
        return
    import torch

    if config.model.sync_batch_norm:
        raise ConfigError("--model.sync-batch-norm needs several workers: leave it out, or leave out --local.")
    use_gpu = config.device != "cpu" and torch.cuda.is_available()
    yield Cluster(1, config.cpus_per_worker or torch.get_num_threads(), use_gpu, local=True, guest=guest)


def run_here(task: str, config: Config, run: RunDir, cluster: Cluster, arguments: dict[str, Any]) -> dict[str, Any]:
    """As ``launch.workers.run_workers``, in this process.

    Raises:
        RuntimeError: the task failed; one sentence.
    """
    import torch

    from ima_dist.training.network import torch_as_before

    def before_exit() -> None:
        with contextlib.suppress(LeaseLost, OSError):
            run.write_json(run.summary_path, {**run.summary(), "status": "interrupted", "message": None})

    stop = run.path / STOP_FILE
    run.remove(stop)
    try:
        with torch_as_before(), heeding_signals(stop) if cluster.guest else forwarding_signals(stop, before_exit):
            torch.set_num_threads(cluster.cpus_per_worker)
            return in_this_process(task, arguments, run, config, torch.device("cuda" if cluster.use_gpu else "cpu"))
    except Exception as error:
        raise RuntimeError(f"The {task} task failed: {one_line(error)}") from error
    finally:
        with contextlib.suppress(LeaseLost, OSError):  # it is another process's by now, or cannot be removed
            run.remove(stop)
