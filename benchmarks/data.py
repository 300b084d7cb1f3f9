"""``python -m benchmarks.data``: the pipeline that reads samples from the disk.

``pipeline``: images per second that a consumer gets which only takes, as a share of bare torchvision decoding on as
many cores; and the share of an IMA step of ResNet-18 at 224×224 that waits for data. ``large``: a set of JPEG files'
contents, larger than the memory once decoded, is trained on by two workers for some steps and part of a margin pass,
killed on the way, continued, and compared with one that is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
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
from ima_dist.data.sources.prepare import prepare
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training
from tests.support.workers import free_port

SIDE, CLASSES = 224, 10


# ---- the set ---------------------------------------------------------------------------------------------


def make(directory: Path, count: int) -> dict[str, float]:
    """``count`` different JPEG files of 224×224 in a folder for each class, then their prepared copy, which stays.

    Returns the seconds of each.
    """
    began = time.perf_counter()
    photos = directory / "photos"
    coarse = torch.rand(256, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    kinds = (functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear") * 255).to(torch.uint8)
    for label in range(CLASSES):
        (photos / f"class{label}").mkdir(parents=True, exist_ok=True)

    def write(number: int) -> None:
        turn, kind = divmod(number, len(kinds))
        image = kinds[kind].roll((turn % SIDE, turn // SIDE), (1, 2))
        path = photos / f"class{number % CLASSES}" / f"{number:07d}.jpg"
        path.write_bytes(encode_jpeg(image, quality=85).numpy().tobytes())

    with ThreadPoolExecutor(reading_threads()) as pool:
        for first in range(0, count, 1024):
            list(pool.map(write, range(first, min(first + 1024, count))))
    made = time.perf_counter()
    prepare(str(photos), "folder", str(directory / "prepared"))
    shutil.rmtree(photos)
    return {"seconds_to_make": made - began, "seconds_to_prepare": time.perf_counter() - made}


def small_network(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """A network that costs little, so that many steps are made."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8 * 7 * 7, num_classes)
    )


def configured(directory: Path, factory: str, **options: Any) -> Config:
    return make_config(
        "own",
        {
            "name": "small", "data.source": "folder", "data.dir": str(directory / "prepared"),
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


def against_decoding(directory: Path, count: int, threads: int, rounds: int = 9) -> dict[str, float]:
    """The pipeline with ``threads``, against as many that decode the same images from memory, and drop them."""
    split = load(configured(directory, "benchmarks.data:small_network").data, 0).train
    chosen = torch.arange(min(len(split), count))
    rows = chosen if split.rows is None else split.rows[chosen]
    kept = split.stored.contents  # type: ignore[union-attr]
    contents = [torch.frombuffer(bytearray(kept[row]), dtype=torch.uint8) for row in rows.tolist()]
    # Several times over, so that the pipeline's buffers are in use again.
    repeated = chosen.repeat(4)

    def decode(first: int) -> None:
        for content in contents[first::threads]:
            decode_jpeg(content, ImageReadMode.RGB)

    def bare() -> int:
        for _ in range(4):
            list(pool.map(decode, range(threads)))
        return len(repeated)

    def piped() -> int:
        return sum(len(x) for _, x in stream(split, repeated.split(64)))

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads) as pool:
        found = [(measured(bare), measured(piped)) for _ in range(rounds)]
    return {
        "threads": threads,
        "bare_images_per_second_of_cpu": median(bare[1] for bare, _ in found),
        "share_of_bare_by_clock": median(piped[0] / bare[0] for bare, piped in found),
        "share_of_bare_by_cpu": median(piped[1] / bare[1] for bare, piped in found),
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
        self.base = self.most = self.private()
        threading.Thread(target=self._watch, daemon=True).start()

    def private(self) -> int:
        """Bytes that are neither shared nor pages of a file."""
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return 1024 * int(line.split()[1])

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, self.private())
            time.sleep(0.2)


def _large_config(directory: Path, batch_size: int) -> Config:
    options = {"batch_size": batch_size, "attack.steps": 2, "checkpoint_every": 10}
    return configured(directory, "benchmarks.data:small_network", **options)


def _worker(
    rank: int, port: int, directory: Path, path: Path, last_step: int, turns: int, batch_size: int, started: float
) -> None:
    """Train until ``last_step`` of the epoch, and then take some turns of a margin pass; report in a file."""
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    memory = _Memory()
    config = _large_config(directory, batch_size)
    run, looks = RunDir(path), 0
    data = load(config.data, config.seed)
    training = Training(config, run, data, torch.device("cpu"), lambda: looks >= turns > 0)
    training.begin()
    report: dict[str, Any] = {"from": training.state.position.step, "first_step_after": None}
    step = training._step

    def watched(*arguments: Any) -> None:
        step(*arguments)
        report["first_step_after"] = report["first_step_after"] or time.time() - started
        if training.state.position.step + 1 >= last_step:
            raise Interrupted("enough steps")

    training._step = watched  # type: ignore[assignment, method-assign]
    try:
        training._train_epoch()
    except Interrupted:
        report["steps"] = training.state.position.step + 1
    weights = sorted(training.state.network.state_dict().items())
    report["weights"] = hashlib.sha256(b"".join(value.numpy().tobytes() for _, value in weights)).hexdigest()
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


def _start(directory: Path, path: Path, last_step: int, turns: int, batch_size: int) -> Any:
    arguments = (free_port(), directory, path, last_step, turns, batch_size, time.time())
    return mp.start_processes(_worker, arguments, nprocs=2, join=False, start_method="spawn")


def _reports(group: Any, path: Path) -> list[dict[str, Any]]:
    while not group.join():
        pass
    return [json.loads(Path(path, f"report-{rank}.json").read_text()) for rank in range(2)]


def large(directory: Path, steps: int, turns: int, batch_size: int) -> dict[str, Any]:
    """Two workers, killed after ``steps`` and continued to twice as many, against two that are left alone."""
    config, last = _large_config(directory, batch_size), 2 * steps + 20
    manifest = json.loads((directory / "prepared" / "prepared.json").read_text())
    (part,) = manifest["parts"].values()
    stored, count = directory / "prepared" / part["file"], part["rows"]
    found: dict[str, Any] = {
        "images": count,
        "decoded_gb": count * 3 * SIDE * SIDE / 1e9,
        "stored_gb": stored.stat().st_size / 1e9,
        "memory_gb": psutil.virtual_memory().total / 1e9,
    }
    with open(stored, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # as after a restart of the machine
    with tempfile.TemporaryDirectory() as place:
        killed, alone = Path(place, "killed"), Path(place, "alone")
        run = RunDir.create(config, killed)
        group = _start(directory, killed, last, turns, batch_size)
        # When the next checkpoint appears, this one is known to be whole.
        while not any(run.checkpoints_dir.glob(f"*-step={steps + 10:06d}")):
            if any(not process.is_alive() for process in group.processes):
                group.join()
            time.sleep(0.02)
        for process in group.processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        found["continued"] = _reports(_start(directory, killed, last, turns, batch_size), killed)
        RunDir.create(config, alone)
        found["left_alone"] = _reports(_start(directory, alone, last, turns, batch_size), alone)
    found["same_weights"] = len({one["weights"] for name in ("continued", "left_alone") for one in found[name]}) == 1
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("part", choices=("pipeline", "large"))
    parser.add_argument("--images", type=int, help="default: 512, or for large 200,000, which are 30 GB")
    parser.add_argument("--steps", type=int, help="default: 6, or for large 40 before the kill, a multiple of 10")
    parser.add_argument("--turns", type=int, default=3, help="large: batches of the margin pass")
    parser.add_argument("--batch-size", type=int, help="default: 8, or for large 16")
    parser.add_argument("--dir", help="where the images are kept (default: a temporary directory)")
    arguments = parser.parse_args(argv)
    is_large = arguments.part == "large"
    count = arguments.images or (200_000 if is_large else 512)
    batch_size = arguments.batch_size or (16 if is_large else 8)
    directory = Path(arguments.dir or tempfile.mkdtemp())
    directory.mkdir(parents=True, exist_ok=True)
    try:
        if not (directory / "prepared").exists():
            print(json.dumps(make(directory, count), indent=1), flush=True)
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
