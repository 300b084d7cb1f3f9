"""``python -m benchmarks.margin_store [--samples N] [--workers W]``: the margin store at scale, as JSON.

Every worker proposes a margin for each of its samples, or (``"scattered"``) looks up and proposes samples spread
over all workers, as ``--margin-update online`` does; then reduce, save, and load on one worker. Beside the times
stands what the machine itself allows, measured in the same run: 4 bytes a sample over the speed of a copy in
memory, of bytes exchanged by the workers, and of the disk. Bytes sent are counted where they are sent, and memory
is what a worker needed at its peak beyond what it had before the store was made.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ima_dist.core import distributed, noise
from ima_dist.margins.store import MarginStore

_BATCH = {"own": 1 << 20, "scattered": 1 << 16}  # a margin pass is one large batch after the other, a step is not
_BYTES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10**8)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as directory:
        for name in ("own", "scattered"):
            mp.start_processes(
                _worker,
                (arguments.workers, port, arguments.samples, Path(directory, name), name),
                nprocs=arguments.workers,
                start_method="spawn",
            )
        found = {n: json.loads(Path(directory, n, "result.json").read_text()) for n in ("own", "scattered")}
        mp.start_processes(_load, (Path(directory, "own"), arguments.samples), nprocs=1, start_method="spawn")
        found["load_on_one_worker"] = json.loads(Path(directory, "own", "load.json").read_text())
    print(json.dumps({"samples": arguments.samples, "workers": arguments.workers, **found}, indent=1))


def _worker(rank: int, workers: int, port: int, samples: int, directory: Path, kind: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    sent = _count_what_is_sent()
    MarginStore(2 * workers, 0.1, replicate=False).save(directory / "warm-up")  # libraries have their memory
    base = _peak()
    store = MarginStore(samples, 0.1, replicate=False)
    size = _BATCH[kind]
    if kind == "own":
        mine = (torch.arange(b, min(b + size, store.last)) for b in range(store.first, store.last, size))
    else:
        strides = range(rank, samples, workers)
        mine = (torch.arange(s.start, s.stop, workers) for s in _split(strides, size))
    flags = torch.ones(size, dtype=torch.bool)
    result: dict[str, Any] = {}

    def propose() -> None:
        for indices in mine:
            n = len(indices)
            if kind == "scattered":
                store.lookup(indices)
            store.propose(indices, _value(indices), correct=flags[:n], crossed=flags[:n])

    result["propose"] = _timed(propose)
    result["reduce"] = _timed(store.reduce)
    result["save"] = _timed(lambda: store.save(directory / "margins"))
    bytes_own = _BYTES * (store.last - store.first)
    result["bytes_sent_by_a_worker"] = sent[0]
    result["peak_memory_of_a_worker"] = _peak() - base
    result["bytes_of_its_shard"] = bytes_own
    allowed = _allowed(bytes_own, directory)
    result["allowed"] = allowed
    result["of_what_is_allowed"] = {
        "reduce": result["reduce"] / allowed["memory"],
        "save": result["save"] / allowed["disk"],
    }
    probe = torch.arange(0, samples, max(1, samples // 97))
    assert torch.equal(store.lookup(probe), _value(probe))
    if rank == 0:
        (directory / "result.json").write_text(json.dumps(result))
    distributed.barrier()
    # destroy_process_group() may hold Python's lock, in torch 2.7, while it waits for a thread that wants it.
    os._exit(0)


def _value(indices: torch.Tensor) -> torch.Tensor:
    """The margin that is proposed for a sample; as hard to compress as a real one."""
    return noise.uniform(indices, (1,), torch.float32)[:, 0]


def _count_what_is_sent() -> list[int]:
    """Bytes that this worker sends to others from now on, in a list of one."""
    sent, original = [0], distributed.exchange

    def counting(columns: list[torch.Tensor], sizes: torch.Tensor, group: Any = None) -> Any:
        others = int(sizes.sum() - sizes[distributed.rank()])
        sent[0] += others * sum(column.element_size() for column in columns)
        return original(columns, sizes, group=group)

    distributed.exchange = counting
    return sent


def _load(rank: int, directory: Path, samples: int) -> None:
    MarginStore.load(directory / "warm-up", replicate=False)
    base = _peak()
    stores: list[MarginStore] = []
    seconds = _timed(lambda: stores.append(MarginStore.load(directory / "margins", replicate=False)))
    last = samples - 1
    assert torch.equal(stores[0].lookup(torch.tensor([last])), _value(torch.tensor([last])))
    result = {
        "load": seconds,
        "peak_memory_of_a_worker": _peak() - base,
        "bytes_of_its_shard": _BYTES * samples,
        "bytes_on_disk": sum(file.stat().st_size for file in (directory / "margins").iterdir()),
        "allowed": _reading(directory / "margins"),
    }
    (directory / "load.json").write_text(json.dumps(result))


def _allowed(size: int, directory: Path) -> dict[str, float]:
    """Seconds that ``size`` bytes take at least: a copy in memory, sent to the other worker, and to the disk."""
    source = torch.zeros(size // _BYTES)
    memory = min(_timed(lambda: source.clone()) for _ in range(3))
    sizes = torch.full((distributed.world_size(),), len(source) // distributed.world_size())
    sent = source[: int(sizes.sum())]
    exchange = _timed(lambda: distributed.exchange([sent], sizes))
    file = directory / f"probe-{distributed.rank()}"

    def write() -> None:
        with file.open("wb") as stream:
            stream.write(source.numpy().data)
            stream.flush()
            os.fsync(stream.fileno())

    disk = _timed(write)
    file.unlink()
    return {"memory": memory, "exchange": exchange, "disk": disk}


def _reading(directory: Path) -> dict[str, float]:
    """Seconds to read the files of a snapshot, from the system's memory where they still are."""
    return {"read": _timed(lambda: [file.read_bytes() for file in directory.iterdir()])}


def _split(numbers: range, size: int) -> list[range]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def _timed(action: Callable[[], Any]) -> float:
    distributed.barrier()
    began = time.perf_counter()
    action()
    distributed.barrier()
    return time.perf_counter() - began


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
