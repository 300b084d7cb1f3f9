"""The kinds of faults: each breaks one thing, once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

from benchmarks.faults.command import Command

_WORKER = "ray::RayTrainWorker"


def worker(command: Command, rng: random.Random) -> None:
    command.kill(rng.randrange(2), _WORKER)


def driver(command: Command, rng: random.Random) -> None:
    command.kill_driver()


def terminate(command: Command, rng: random.Random) -> None:
    os.killpg(command.driver.pid, signal.SIGTERM)


def raylet(command: Command, rng: random.Random) -> None:
    command.kill(1, "raylet")


def gcs(command: Command, rng: random.Random) -> None:
    command.kill(0, "gcs_server")


def cable_20_s(command: Command, rng: random.Random) -> None:
    command.hosts.cable(up=False)
    time.sleep(20)
    command.hosts.cable(up=True)


def cable(command: Command, rng: random.Random) -> None:
    command.hosts.cable(up=False)


def full_disk(command: Command, rng: random.Random) -> None:
    with (command.run.path / "filler").open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
            file.flush()


def truncated_checkpoint(command: Command, rng: random.Random) -> None:
    command.kill_driver()
    command.kill_workers()
    file = command.newest("checkpoints/epoch=*/*.safetensors")
    os.truncate(file, rng.randrange(file.stat().st_size))


def flipped_byte(command: Command, rng: random.Random) -> None:
    command.kill_driver()
    command.kill_workers()
    file = command.newest("margins/epoch=*/shard-*.parquet")
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def in_the_write(command: Command, rng: random.Random) -> None:
    pids = [pid for host in (0, 1) for pid in command.processes(host, _WORKER)]
    rng.shuffle(pids)
    until = time.monotonic() + 60
    while not any(command.run.checkpoints_dir.glob(".writing-*")) and time.monotonic() < until:
        pass
    time.sleep(rng.random() * 0.01)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


_ALL = (
    worker,
    driver,
    terminate,
    raylet,
    gcs,
    cable_20_s,
    cable,
    full_disk,
    truncated_checkpoint,
    flipped_byte,
    in_the_write,
)
KINDS: dict[str, Callable[[Command, random.Random], None]] = {f.__name__: f for f in _ALL}
BREAK_THE_CLUSTER = (raylet, gcs, cable_20_s, cable)
