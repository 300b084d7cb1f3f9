"""Run the engine on several gloo workers of this machine, without Ray."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config
from ima_dist.core.distributed import Interrupted
from ima_dist.data.load import load
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training


def run_on(workers: int, function: Callable[..., None], *arguments: Any, leave: bool = True) -> None:
    """Call ``function(*arguments)`` on every worker; raises if one fails.

    leave: the workers wait for each other at the end; not where the function closes their group.
    """
    if workers == 1:
        function(*arguments)
        return
    # Forked from a process that has imported everything and done nothing: an import of torch takes longer than most
    # of these tests train.
    mp.get_context("forkserver").set_forkserver_preload(["tests.support.workers"])
    as_here = (dict(os.environ), os.getcwd())
    given = (as_here, workers, free_port(), leave, function, arguments)
    mp.start_processes(_enter, given, nprocs=workers, start_method="forkserver")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _enter(
    rank: int,
    as_here: tuple[dict[str, str], str],
    workers: int,
    port: int,
    leave: bool,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    environment, directory = as_here
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    function(*arguments)
    # Not destroy_process_group(): in torch 2.7 it may hold Python's lock while it waits for a thread that wants it.
    if leave:
        dist.barrier()
    # Not an ordinary exit: now and then one of torch's threads asks for the dying interpreter and aborts.
    sys.stderr.flush()
    os._exit(0)


def train(config: Config, path: Path, stop_after: int | None = None) -> None:
    """One worker's whole training; asks to stop at the ``stop_after``-th look, each step being one."""
    looks = 0

    def should_stop() -> bool:
        nonlocal looks
        looks += 1
        return stop_after is not None and looks >= stop_after

    training = Training(config, RunDir(path), load(config.data, config.seed), torch.device("cpu"), should_stop)
    if stop_after is not None:
        training.reporter.due = lambda: True  # type: ignore[method-assign]
    try:
        training.fit()
    except Interrupted:
        assert stop_after is not None


def train_all(made: list[tuple[Config, Path]], stop_after: int | None) -> None:
    """``train`` for several runs, one after another, in one start of the workers."""
    for config, path in made:
        train(config, path, stop_after)


def start_run(path: Path, preset: str, **options: Any) -> tuple[Config, RunDir]:
    """A run directory for the preset with ``options`` (double underscores for dots)."""
    config = make_config(preset, {name.replace("__", "."): value for name, value in options.items()})
    return config, RunDir.create(config, path)


def final_state(config: Config, path: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Weights and margins after the last epoch."""
    from safetensors.torch import load

    from ima_dist.margins.store import MarginStore

    run = RunDir(path)
    name = f"epoch={config.epochs:04d}"
    weights = load((run.checkpoints_dir / name / "model.safetensors").read_bytes())
    margins = MarginStore.load(run.margins_dir / name).shard if (run.margins_dir / name).exists() else None
    return weights, margins


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference between two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)
