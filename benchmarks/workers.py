"""Two workers of one thread against one, and a run on Ray against the same loop in a process of its own.

On a busy machine two workers do not get two cores. ``by_cpu`` is therefore what they would reach on two idle cores:
the processor time of one worker by the sum over steps of that of the slower of two, which holds how unevenly the attack
divides, and what smaller batches cost, but no waiting for the network.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from benchmarks.timing import summary
from ima_dist.config.presets import make_config
from ima_dist.data.load import load
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run
from ima_dist.training.loop import Training

OPTIONS: dict[str, Any] = {"data.subset": 600, "margin_update": "online", "epochs": 4}
SMALL: dict[str, Any] = {"data.subset": 20, "batch_size": 10, "epochs": 2, "attack.steps": 2}


def measure(quick: bool, pairs: int, report: Callable[[dict[str, Any]], None]) -> None:
    """Report two rows: two workers, and Ray."""
    options = {**OPTIONS, **(SMALL if quick else {})}
    with tempfile.TemporaryDirectory() as folder:
        turns = [(epochs_on(1, options, folder), epochs_on(2, options, folder)) for _ in range(pairs)]
        report(
            {
                "what": "one worker over two",
                "of_wall": summary([(one["wall"], two["wall"]) for one, two in turns]).rounded(),
                "by_cpu": summary([(one["slowest"], two["slowest"]) for one, two in turns]).rounded(),
                "cpu_of_two_over_one": summary([(two["cpu"], one["cpu"]) for one, two in turns]).rounded(),
            }
        )
        times = [(_command(options, folder, local=False), _command(options, folder, local=True)) for _ in range(pairs)]
        report({"what": "an epoch on Ray over one without", "of_wall": summary(times).rounded()})


def epochs_on(workers: int, options: dict[str, Any], folder: str) -> dict[str, float]:
    """Seconds of all training steps with so many workers: by the clock, of all processors, of each step's slowest."""
    place = tempfile.mkdtemp(dir=folder)
    RunDir.create(make_config("fashion_mnist", options), Path(place) / "run")
    processes.spawn(_worker, (workers, options, place), nprocs=workers)
    found = [json.loads((Path(place) / f"{rank}.json").read_text()) for rank in range(workers)]
    steps = list(zip(*(each["steps"] for each in found), strict=True))
    return {
        "wall": max(each["wall"] for each in found),
        "cpu": sum(map(sum, steps)),
        "slowest": sum(map(max, steps)),
    }


def _worker(rank: int, workers: int, options: dict[str, Any], place: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=workers)
    config = make_config("fashion_mnist", options)
    training = Training(config, RunDir(Path(place) / "run"), load(config.data, config.seed), torch.device("cpu"))
    steps: list[float] = []
    step = training._step

    def timed(*given: Any, **named: Any) -> None:
        began = time.process_time()
        step(*given, **named)
        steps.append(time.process_time() - began)

    training._step = timed  # type: ignore[method-assign]
    training.fit()
    wall = sum(row["train_seconds"] for row in training.history)
    (Path(place) / f"{rank}.json").write_text(json.dumps({"steps": steps, "wall": wall}))
    dist.barrier()
    dist.destroy_process_group()


def _command(options: dict[str, Any], folder: str, *, local: bool) -> float:
    """Seconds of an epoch of ``python -m ima_dist.train``: the median without the first."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    command = [sys.executable, "-m", "ima_dist.train", *flags(options, out, local)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return statistics.median(row["train_seconds"] for row in Run.open(out).history[1:])


def flags(options: dict[str, Any], out: Path, local: bool) -> list[str]:
    """The arguments of ``ima_dist.train`` for one worker of one thread, here or on Ray, with next to no evaluation."""
    where = ["--local"] if local else ["--workers=1"]
    return [
        "fashion_mnist",
        *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
        *where,
        "--cpus-per-worker=1",
        "--eval.attacks=white-noise",
        f"--out={out}",
    ]
