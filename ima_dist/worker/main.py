"""The worker's side of Ray: one task on one device, in step with the other workers."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ima_dist.config.values import from_dict
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from ima_dist.rundir.lease import LeaseLost
from ima_dist.worker.ray_head import LOOK_EVERY, Head

STOP_FILE = "stop-requested"
PAUSE_FILE = "pause-requested"  # a checkpoint is wanted, because the number of workers is about to change
# Seconds after which a file of the driver's must be visible on all nodes; NFS may take half a minute.
_VISIBLE_WITHIN = 60.0
# Seconds after which a worker gives up a silent head of the cluster; the driver has then long ended.
_END_AFTER = 60.0


def work(payload: dict[str, Any]) -> dict[str, Any]:
    """One worker: the whole task. All workers return together, or one raises and Ray ends the others."""
    for path in reversed(payload["paths"]):
        if path not in sys.path:
            sys.path.insert(0, path)
    import torch

    from ima_dist.core import distributed
    from ima_dist.training.checkpoint import Damaged
    from ima_dist.training.numerics import NumericalError
    from ima_dist.worker.leaving import node_is_leaving
    from ima_dist.worker.tasks import audit_task, evaluate_task, train_task

    config = from_dict(payload["config"])
    run = RunDir(payload["run"])
    run.mark = payload["mark"]
    stop, pause = run.path / STOP_FILE, run.path / PAUSE_FILE

    import ray.train.torch

    def should_stop() -> bool:
        return stop.exists() or pause.exists() or (ray.is_initialized() and node_is_leaving())

    device = torch.device("cpu") if config.device == "cpu" else ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ray.is_initialized():
        threading.Thread(target=_end_with_head, args=(Head(),), daemon=True).start()
    unseen = _unseen(run)
    if unseen:
        return {"status": "failed", "message": unseen}
    tasks: dict[str, Callable[..., dict[str, Any]]] = {
        "train": train_task,
        "evaluate": evaluate_task,
        "audit": audit_task,
    }
    # Ray may start workers anew that have done everything, just before it noticed.
    if payload["task"] == "train" and distributed.share_object(run.status == "finished"):
        return {"status": "finished", "message": None}
    try:
        return tasks[payload["task"]](config, run, device, should_stop, **payload["arguments"])
    except distributed.Interrupted as error:
        status = {"status": "interrupted" if stop.exists() else "paused", "message": str(error)}
        if status["status"] == "paused":
            return status
    except (NumericalError, Damaged) as error:
        status = {"status": "failed", "message": str(error)}
    except LeaseLost as error:
        return {"status": "lost", "message": str(error)}
    finally:
        if distributed.rank() == 0:
            pause.unlink(missing_ok=True)
    if distributed.rank() == 0 and payload["task"] == "train":
        write_json(run.summary_path, {**run.summary(), **status})
    return status


def _unseen(run: RunDir) -> str | None:
    """A sentence if not all workers see the run directory, which would train, and write elsewhere. All call it."""
    from ima_dist.core import distributed

    until = time.monotonic() + _VISIBLE_WITHIN
    while not run.config_path.exists() and time.monotonic() < until:
        time.sleep(0.5)
    mine = None if run.config_path.exists() else platform.node()
    hosts = sorted({host for host in distributed.gather_objects(mine) if host})
    if not hosts:
        return None
    return f"{run.path} is not there on {', '.join(hosts)}: give an --out on storage that all nodes share"


def _end_with_head(head: Head) -> None:
    """End this process when it is cut off: it may wait for the other workers for half an hour, and Ray lets it."""
    while head.silent_for() < _END_AFTER:
        time.sleep(LOOK_EVERY)
    os._exit(1)
