"""``python -m benchmarks.data``: the pipeline that reads samples from the disk.

``pipeline``: images per second that a consumer gets which only takes, as a share of bare torchvision decoding on as
many cores; and the share of an IMA step of ResNet-18 at 224×224 that waits for data. ``large``: a set of JPEG files'
contents, larger than the memory once decoded, is trained on by two workers for some steps and part of a margin pass,
killed on the way, and continued.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config
from ima_dist.core import distributed
from ima_dist.core.distributed import Interrupted
from ima_dist.data.load import load
from ima_dist.data.order import batches
from ima_dist.data.pipeline import reading_threads, stream
from ima_dist.data.types import DataSet, Split
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training
from tests.support.workers import free_port

SIDE, CLASSES = 224, 10
_HELD_OUT = 64


# ---- the set ---------------------------------------------------------------------------------------------


def make(directory: Path, count: int) -> None:
    """``count`` JPEG images of 224×224 in one file, one after another, with their ends."""
    generator, ends, end = torch.Generator().manual_seed(0), [], 0
    with open(directory / "images.bin", "wb") as file, ThreadPoolExecutor(reading_threads()) as pool:
        for first in range(0, count, 256):
            coarse = torch.rand(min(256, count - first), 3, 28, 28, generator=generator)
            smooth = functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
            images = (smooth * 255).to(torch.uint8)
            for content in pool.map(lambda image: encode_jpeg(image, quality=85).numpy().tobytes(), images):
                file.write(content)
                ends.append(end := end + len(content))
    np.save(directory / "ends.npy", np.array(ends))


class Packed:
    """The images of ``make``: a ``Fetched``."""

    shape: tuple[int, ...] = (3, SIDE, SIDE)
    dtype = torch.uint8

    def __init__(self, directory: Path) -> None:
        self.file = directory / "images.bin"
        self.ends = np.load(directory / "ends.npy")

    def __len__(self) -> int:
        return len(self.ends)

    def content(self, file: int, row: int) -> torch.Tensor:
        start = int(self.ends[row - 1]) if row else 0
        return torch.frombuffer(bytearray(os.pread(file, int(self.ends[row]) - start, start)), dtype=torch.uint8)

    def fetch(self, rows: np.ndarray) -> torch.Tensor:
        found = np.empty((len(rows), *self.shape), np.uint8)
        with open(self.file, "rb") as file:
            for place, row in enumerate(rows.tolist()):
                found[place] = decode_jpeg(self.content(file.fileno(), row), ImageReadMode.RGB).numpy()
        return torch.from_numpy(found)


def packed(config: Any, seed: int) -> DataSet:
    samples = Packed(Path(config.dir))
    y = torch.arange(len(samples)) % CLASSES
    held, rest = torch.arange(_HELD_OUT), torch.arange(_HELD_OUT, len(samples))
    whole = Split(samples, y)
    return DataSet(whole.view(rest), whole.view(held), whole.view(held), (0.0, 1.0), CLASSES)


def small_network(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """A network that costs little, so that many steps are made."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8 * 7 * 7, num_classes)
    )


def configured(directory: Path, factory: str, **options: Any) -> Config:
    return make_config(
        "own",
        {
            "name": "packed", "data.source": "benchmarks.data:packed", "data.dir": str(directory),
            "data.place": "disk", "model.factory": factory, "eps_max": 8 / 255, "eval.noise": (0.0, 8 / 255),
            "epochs": 2, "device": "cpu", **options,
        },
    )  # fmt: skip


# ---- pipeline --------------------------------------------------------------------------------------------


def measured(work: Callable[[], int]) -> tuple[float, float]:
    """Images per second on the clock, and per second of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    count = work()
    return count / (time.perf_counter() - clock), count / (time.process_time() - cpu)


def against_decoding(directory: Path, count: int, threads: int, rounds: int = 5) -> dict[str, float]:
    """The pipeline with ``threads``, against decoding, and against decoding and stacking into batches, in one."""
    samples = Packed(directory)
    split = Split(samples, torch.zeros(len(samples), dtype=torch.int64))
    with open(samples.file, "rb") as file:
        contents = [samples.content(file.fileno(), row) for row in range(count)]

    def bare() -> int:
        for content in contents:
            decode_jpeg(content, ImageReadMode.RGB)
        return count

    def stacked() -> int:
        for first in range(0, count, 64):
            torch.stack([decode_jpeg(content, ImageReadMode.RGB) for content in contents[first : first + 64]])
        return count

    def piped() -> int:
        return sum(len(x) for _, x in stream(split, torch.arange(count).split(64)))

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(1)
    found = [(measured(bare), measured(stacked), measured(piped)) for _ in range(rounds)]
    return {
        "threads": threads,
        "bare_images_per_second_of_cpu": median(bare[1] for bare, _, _ in found),
        "share_of_bare_by_clock": median(piped[0] / (threads * bare[0]) for bare, _, piped in found),
        "share_of_bare_by_cpu": median(piped[1] / bare[1] for bare, _, piped in found),
        "share_of_stacked_by_cpu": median(piped[1] / stacked[1] for _, stacked, piped in found),
    }


def waiting(directory: Path, steps: int, batch_size: int) -> dict[str, float]:
    """The share of IMA steps of ResNet-18 that waits for data, after the first step."""
    options = {"batch_size": batch_size, "attack.steps": 5}
    config = configured(directory, "ima_dist.models:resnet18_in", **options)
    waited = total = 0.0
    with tempfile.TemporaryDirectory() as place:
        run = RunDir.create(config, Path(place, "run"))
        training = Training(config, run, load(config.data, config.seed), torch.device("cpu"))
        parts = [part for part, _ in zip(batches(len(training.train), batch_size, 0, 0), range(steps), strict=False)]
        with closing(training.train.batches(parts)) as shares:
            for number, part in enumerate(parts):
                began = time.perf_counter()
                share = next(shares)
                taken = time.perf_counter()
                training._step(part, share)
                if number:
                    waited, total = waited + taken - began, total + time.perf_counter() - began
    return {"step_seconds": total / (steps - 1), "waiting_share": waited / total}


# ---- larger than the memory --------------------------------------------------------------------------------


class _Memory:
    """The most private memory of this process since its start here, above what it has by then."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.base = self.most = self.private()
        threading.Thread(target=self._watch, daemon=True).start()

    def private(self) -> int:
        return int(self.process.memory_full_info().uss)

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, self.private())
            time.sleep(0.2)


def _worker(rank: int, port: int, directory: Path, path: Path, first_steps: int, turns: int, batch_size: int) -> None:
    """Train until ``first_steps`` in all, and then take some turns of a margin pass; report in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    memory, began = _Memory(), time.perf_counter()
    options = {"batch_size": batch_size, "attack.steps": 2, "checkpoint_every": 10}
    config = configured(directory, "benchmarks.data:small_network", **options)
    run, looks = RunDir(path), 0
    data = load(config.data, config.seed)
    training = Training(config, run, data, torch.device("cpu"), lambda: looks >= turns > 0)
    training.begin()
    report: dict[str, Any] = {"from": training.state.position.step, "first_step_after": None}
    step = training._step

    def watched(*arguments: Any) -> None:
        step(*arguments)
        report["first_step_after"] = report["first_step_after"] or time.perf_counter() - began
        if training.state.position.step + 1 >= first_steps > 0:
            raise Interrupted("enough steps")

    training._step = watched  # type: ignore[assignment, method-assign]
    try:
        training._train_epoch()
    except Interrupted:
        report["steps"] = training.state.position.step + 1
    original = training._report

    def counted(stage: str) -> None:
        nonlocal looks
        looks += 1
        original(stage)

    training._report = counted  # type: ignore[method-assign]
    try:
        training._margin_pass()
    except Interrupted:
        assert training.state.store is not None
        report["margins_proposed"] = int(training.state.store.proposed.sum())
    report["private_gb_above_start"] = (memory.most - memory.base) / 1e9
    Path(path, f"report-{rank}.json").write_text(json.dumps(report))
    distributed.together(lambda: None)
    os._exit(0)


def _start(directory: Path, path: Path, steps: int, turns: int, batch_size: int) -> Any:
    arguments = (free_port(), directory, path, steps, turns, batch_size)
    return mp.start_processes(_worker, arguments, nprocs=2, join=False, start_method="spawn")


def large(directory: Path, steps: int, turns: int, batch_size: int) -> dict[str, Any]:
    count = len(Packed(directory))
    found: dict[str, Any] = {
        "images": count,
        "decoded_gb": count * 3 * SIDE * SIDE / 1e9,
        "memory_gb": psutil.virtual_memory().total / 1e9,
    }
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "run")
        options = {"batch_size": batch_size, "attack.steps": 2, "checkpoint_every": 10}
        config = configured(directory, "benchmarks.data:small_network", **options)
        run = RunDir.create(config, path)
        group = _start(directory, path, 0, turns, batch_size)
        # When the next checkpoint appears, this one is known to be whole.
        while not any(run.checkpoints_dir.glob(f"*-step={steps + 10:06d}")):
            if any(not process.is_alive() for process in group.processes):
                group.join()
            time.sleep(0.2)
        for process in group.processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        group = _start(directory, path, 2 * steps + 20, turns, batch_size)
        while not group.join():
            pass
        found["workers_after_the_kill"] = [
            json.loads(Path(path, f"report-{rank}.json").read_text()) for rank in range(2)
        ]
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("part", choices=("pipeline", "large"))
    parser.add_argument("--images", type=int, help="default: 512, or for large 200,000, which are 30 GB")
    parser.add_argument("--steps", type=int, help="default: 6, or for large 40 before the kill, a multiple of 10")
    parser.add_argument("--turns", type=int, default=3, help="large: batches of the margin pass")
    parser.add_argument("--batch-size", type=int, help="default: 8, or for large 64")
    parser.add_argument("--dir", help="where the images are kept (default: a temporary directory)")
    arguments = parser.parse_args(argv)
    is_large = arguments.part == "large"
    count = arguments.images or (200_000 if is_large else 512)
    batch_size = arguments.batch_size or (64 if is_large else 8)
    directory = Path(arguments.dir or tempfile.mkdtemp())
    directory.mkdir(parents=True, exist_ok=True)
    try:
        if not (directory / "ends.npy").exists():
            began = time.perf_counter()
            make(directory, count)
            print(f"prepared in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        if is_large:
            print(json.dumps(large(directory, arguments.steps or 40, arguments.turns, batch_size), indent=1))
        else:
            for threads in sorted({1, reading_threads()}):
                print(json.dumps(against_decoding(directory, min(count, 512), threads), indent=1), flush=True)
            print(json.dumps(waiting(directory, arguments.steps or 6, batch_size), indent=1))
    finally:
        if not arguments.dir:
            shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
