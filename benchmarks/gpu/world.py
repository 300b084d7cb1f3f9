"""Two workers, each with a card, over NCCL: the weights and margins of one worker, in float64."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor

from benchmarks.gpu.check import Check, Skip
from benchmarks.gpu.runs import prepared
from ima_dist.config.presets import make_config
from ima_dist.core import distributed
from ima_dist.data.load import load
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training

_CLOSE = 1e-6
_CASES: list[dict[str, Any]] = [
    {"method": "ima", "margin_update": "online"},
    {"method": "ima", "margin_update": "epoch"},
    {"method": "mma"},
]


def run(check: Check) -> None:
    """Without a card, two processes and gloo."""
    cards = torch.cuda.device_count() if check.on_card else 2
    if cards < 2:
        raise Skip("needs two cards: this machine has one")
    for case in _CASES[:1] if check.quick else _CASES:
        with check.attempt("world", **case):
            check.need_time()
            _compare(check, case)


def _compare(check: Check, case: dict[str, Any]) -> None:
    options: dict[str, Any] = {
        **case,
        "data.source": "benchmarks.gpu.data:moons",
        "data.subset": 41 if check.quick else 401,  # the last batch does not divide by two
        "epochs": 2,
        "batch_size": 16 if check.quick else 64,
        "dtype": "float64",
        "delta_eps": 0.1,
        "attack.steps": 3 if check.quick else 6,
        "attack.bisections": 2 if check.quick else 4,
    }
    with prepared(check, "moons", options, check.device) as training:
        training.fit()
        expected = _state(training)
    with tempfile.TemporaryDirectory() as folder:
        RunDir.create(make_config("moons", options), Path(folder) / "run")
        began = time.perf_counter()
        processes.spawn(_worker, (options, folder, check.device.type), nprocs=2)
        seconds = time.perf_counter() - began
        found = torch.load(Path(folder) / "state.pt", weights_only=True)
    apart = {name: float((expected[name] - found[name]).abs().max()) for name in expected}
    largest = max(apart.values())
    check.judge("world", largest < _CLOSE, **case, largest_difference=largest, seconds_with_start=seconds)


def _worker(rank: int, options: dict[str, Any], folder: str, kind: str) -> None:
    on_card = kind == "cuda"
    device = torch.device(kind, rank) if on_card else torch.device(kind)
    if on_card:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    backend = "nccl" if on_card else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=2)
    config = make_config("moons", options)
    training = Training(config, RunDir(Path(folder) / "run"), load(config.data, config.seed), device)
    training.fit()
    state = _state(training)
    if rank == 0:
        torch.save(state, Path(folder) / "state.pt")
    dist.barrier()
    dist.destroy_process_group()


def _state(training: Training) -> dict[str, Tensor]:
    """Weights, and the margins of all samples (N,), on the CPU. Collective."""
    state = {name: value.detach().cpu() for name, value in training.network.state_dict().items()}
    store = training.state.store
    assert store is not None
    blocks = distributed.gather_objects(store.shard.cpu())
    return {**state, "margins": torch.cat(blocks)}
