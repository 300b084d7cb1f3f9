"""Failures planted in one of two gloo workers that run a task, and what the driver makes of them.

The workers are processes, as Ray's; ``group`` takes the part of Ray Train's controller: it ends all of them as soon as
one has raised or died. The processes are forked from one that has imported everything, which saves seconds each.
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import ray.train.torch  # noqa: F401 (imported once, for all workers)
import torch
import torch.distributed as dist
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from ima_dist.rundir.lease import LeaseLost
from ima_dist.training.checkpoint import Damaged
from ima_dist.worker import main
from tests.support.workers import free_port

#: A file in the run directory, written when the worker meets it.
PLANTED = "planted"


class Strange(Exception):
    """An exception that no other process can read: it lacks an argument there."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)


WHAT: dict[str, Callable[[], BaseException]] = {
    "mistake": lambda: KeyError("a mistake"),
    "full": lambda: OSError(28, "No space left on device", "/runs/file"),
    "stale": lambda: OSError(116, "Stale file handle", "/runs/file"),
    "damaged": lambda: Damaged("/runs/file is damaged"),
    "strange": lambda: Strange(1, "what a library throws"),
    "exit": lambda: SystemExit(0),
    "lost": lambda: LeaseLost("/runs has been taken over"),
}


@dataclass(frozen=True)
class Plant:
    """Worker ``rank`` meets ``what`` in its ``call``-th call of ``where``.

    what: a key of WHAT, "dies", or "differs": the call, which loads data, returns other data.
    """

    where: str
    what: str
    rank: int = 1
    call: int = 1

    def __str__(self) -> str:
        return f"{self.where.rpartition(':')[2]}-{self.what}-{self.rank}"


def group(plant: Plant, payload: dict[str, Any]) -> dict[str, Any]:
    """Worker 0's answer. Raises WorkerGroupError with what the workers have raised when the first one is noticed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.plants", "ima_dist.worker.tasks"])
    port = free_port()
    workers, ends = [], []
    for rank in range(2):
        end, other = context.Pipe()
        workers.append(context.Process(target=_worker, args=(rank, port, plant, payload, other), daemon=True))
        workers[-1].start()
        other.close()
        ends.append(end)
    answers: dict[int, Any] = {}
    failures: dict[int, Exception] = {}
    try:
        while len(answers) < 2 and not failures:
            for end in wait([end for rank, end in enumerate(ends) if rank not in answers]):
                rank = ends.index(end)  # type: ignore[arg-type]
                try:
                    kind, found = ends[rank].recv()
                except EOFError:
                    # Ray may hear of what another worker raises before it notices the death.
                    if wait([other for other in ends if other is not end], timeout=1.0):
                        continue
                    kind, found = "failure", WorkerHealthCheckFailedError("It is gone.", RuntimeError())
                (answers if kind == "answer" else failures)[rank] = found
    finally:
        for process in workers:
            process.kill()
            process.join()
    if failures:
        raise WorkerGroupError("", failures)
    return answers[0]


def _worker(rank: int, port: int, plant: Plant, payload: dict[str, Any], end: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        if rank == plant.rank:
            _put(plant, Path(payload["run"], PLANTED), patch)
        try:
            end.send(("answer", main.work_in_group(payload)))
        except Exception as error:
            end.send(("failure", error))
    # As a process of Ray's, it stays until it is ended, with all its connections.
    time.sleep(3600)


def _put(plant: Plant, mark: Path, patch: pytest.MonkeyPatch) -> None:
    real, calls = pkgutil.resolve_name(plant.where), 0

    def planted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != plant.call:
            return real(*arguments, **options)
        mark.touch()
        if plant.what == "dies":
            os._exit(1)
        if plant.what == "differs":
            config, seed = arguments
            return real(config, seed + 1)
        raise WHAT[plant.what]()

    patch.setattr(plant.where.replace(":", "."), planted)
