"""What Ray calls on each worker: one task on one device, in step with the other workers."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.config.values import from_dict
from ima_dist.core.polling import polling
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import VISIBLE_WITHIN
from ima_dist.rundir.lease import LeaseLost
from ima_dist.worker.failure import failing_together
from ima_dist.worker.ray_head import LOOK_EVERY, Head

if TYPE_CHECKING:
    import torch

#: Files by which the driver asks the workers of a run, and a sweep its trials, for a checkpoint and an end.
STOP_FILE = "stop-requested"
#: The same because the number of workers is about to change; the run goes on.
PAUSE_FILE = "pause-requested"
# Seconds after which a worker gives up a silent head of the cluster; the driver has ended long before.
_END_AFTER = 60.0


def work_in_group(payload: dict[str, Any]) -> dict[str, Any]:
    """``work`` as Ray calls it: a worker that fails raises ``Failure``, by which Ray ends the others."""
    return failing_together(work, payload)


def work(payload: dict[str, Any]) -> dict[str, Any]:
    """Carry out a task (see ``launch.workers.payload``); returns {"status", "message"}.

    The status "failed" is one worker's, and any exception; all other answers are agreed on by all workers.
    """
    for path in reversed(payload["paths"]):
        if path not in sys.path:
            sys.path.insert(0, path)
    import ray.train.torch
    import torch

    config = from_dict(payload["config"])
    run = RunDir(payload["run"])
    run.mark = payload["mark"]
    device = torch.device("cpu") if config.device == "cpu" else ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _ending_with_head():
        unseen = _unseen(run)
        if unseen:
            return {"status": "failed", "message": unseen}
        return in_this_process(payload["task"], payload["arguments"], run, config, device, _node_is_drained)


def _node_is_drained() -> bool:
    """Ray Train tells each worker when a node with workers of its group is being drained; asking costs nothing."""
    import ray

    from ima_dist.worker.ray_internals import get_train_context

    return ray.is_initialized() and get_train_context().preemption_context.preemption_info is not None


def in_this_process(
    task: str,
    arguments: dict[str, Any],
    run: RunDir,
    config: Config,
    device: torch.device,
    drained: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Carry out a task in step with the other workers, if there are any; returns as ``work``. Needs no Ray."""
    from ima_dist.core import distributed
    from ima_dist.training.checkpoint import Damaged
    from ima_dist.training.numerics import NumericalError
    from ima_dist.worker.cost import counted
    from ima_dist.worker.tasks import audit_task, evaluate_task, train_task

    stop, pause = run.path / STOP_FILE, run.path / PAUSE_FILE

    def should_stop() -> bool:
        return stop.exists() or pause.exists() or drained()

    # Ray may restart workers that had done everything just before it noticed.
    if task == "train" and distributed.together(lambda: run.status == "finished"):
        return {"status": "finished", "message": None}
    tasks: dict[str, Any] = {"train": train_task, "evaluate": evaluate_task, "audit": audit_task}
    try:
        with counted(run, device):
            return tasks[task](config, run, device, should_stop, **arguments)
    except distributed.Interrupted as error:
        if not stop.exists():
            return {"status": "paused", "message": str(error)}
        answer = {"status": "interrupted", "message": str(error)}
    except (NumericalError, Damaged) as error:
        answer = {"status": "failed", "message": str(error)}
    except LeaseLost as error:
        return {"status": "lost", "message": str(error)}
    finally:
        if distributed.rank() == 0:
            _for_the_driver(lambda: run.remove(pause))
    if distributed.rank() == 0 and task == "train":
        _for_the_driver(lambda: run.write_json(run.summary_path, {**run.summary(), **answer}))
    return answer


def _for_the_driver(*acts: Callable[[], object]) -> None:
    """Do what the driver does, too, unless it has died: a full disk must not take the place of the first cause."""
    with contextlib.suppress(OSError, ConfigError, LeaseLost):
        for act in acts:
            act()


def _unseen(run: RunDir) -> str | None:
    """A sentence if some worker cannot see the run directory: it would train, and write elsewhere. Collective."""
    from ima_dist.core import distributed

    until = time.monotonic() + VISIBLE_WITHIN
    while not run.config_path.exists() and time.monotonic() < until:
        time.sleep(0.5)
    mine = None if run.config_path.exists() else platform.node()
    hosts = sorted({host for host in distributed.gather_objects(mine) if host})
    if not hosts:
        return None
    return f"{run.path} does not exist on {', '.join(hosts)}: give an --out on storage that all nodes share"


def _ending_with_head() -> contextlib.AbstractContextManager[None]:
    """End this process when it is cut off: it could wait for the other workers for a day, and Ray lets it."""
    import ray

    if not ray.is_initialized():
        return contextlib.nullcontext()
    head = Head()

    def look() -> None:
        if head.silent_for() >= _END_AFTER:
            os._exit(1)

    return polling(look, LOOK_EVERY, "head")
