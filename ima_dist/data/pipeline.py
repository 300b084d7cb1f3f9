"""Batches of samples that are read by threads while the consumer is at work on earlier ones."""

import contextlib
import os
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ima_dist.data.encoded import cpus
from ima_dist.data.types import Box, Samples, Split, Taken

# Batches that are ready or being read beyond the one in use: as many as have so many bytes, but one at least.
_AHEAD, _AHEAD_BYTES = 8, 1 << 28
# A thread takes at least so many bytes of a batch: handing over less costs more than it saves.
_LEAST = 1 << 17
_MOST_THREADS = 16
# Seconds that this process has waited for samples.
_waited = 0.0


def seconds_waited() -> float:
    """Seconds that this process has waited for samples that were not ready when they were asked for."""
    return _waited


def stream(split: Split, parts: Iterable[Tensor], *, pin: bool = False) -> Generator[tuple[Tensor, Tensor]]:
    """Each of ``parts`` (B,), int64 on the CPU, with the samples (B, *shape) at these indices, as they are stored.

    In the order of ``parts``, which are taken a few ahead of the consumer, in its own thread. The threads that read
    end with the iterator: close it (``contextlib.closing``) where it may not be exhausted.
    pin: in page-locked memory, from which a card can copy while the host goes on.
    Raises Unreadable.
    """
    threads, size = reading_threads(), max(split.bytes_each, 1)
    waiting: deque[tuple[Tensor, Tensor, list[Future[None]]]] = deque()

    def start(part: Tensor) -> None:
        pieces = part.split(max(1, _LEAST // size, -(-len(part) // threads)))
        out = split.empty(len(part), pin)
        places = out.split(len(pieces[0]))
        reading = [pool.submit(split.fetch_into, *piece) for piece in zip(pieces, places, strict=True)]
        waiting.append((part, out, reading))

    def finished() -> tuple[Tensor, Tensor]:
        global _waited
        part, out, reading = waiting.popleft()
        began = time.perf_counter()
        for future in reading:
            future.result()
        _waited += time.perf_counter() - began
        return part, out

    pool = ThreadPoolExecutor(threads, "samples")
    try:
        for part in parts:
            start(part)
            while len(waiting) > min(_AHEAD, max(1, _AHEAD_BYTES // (size * max(len(part), 1)))):
                yield finished()
        while waiting:
            yield finished()
    finally:
        pool.shutdown(cancel_futures=True)


class Streamed(Samples):
    """One split that stays where it is stored; batches are read, and copied to the device, as they are needed."""

    def __init__(self, split: Split, device: torch.device | str, dtype: torch.dtype, box: Box) -> None:
        super().__init__(split, device, dtype, box)
        self.split = split

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x = self.split.fetch(indices.cpu())
        return self.as_seen(x.to(self.y.device)), self.y.index_select(0, self.on_device(indices))

    def batches(self, parts: Iterable[Tensor]) -> Generator[Taken]:
        with contextlib.closing(stream(self.split, parts, pin=self.y.is_cuda)) as found:
            for part, x in found:
                indices = self.on_device(part)
                seen = self.as_seen(x.to(self.y.device, non_blocking=True))
                yield Taken(indices, seen, self.y.index_select(0, indices))


def in_memory(split: Split) -> Split:
    """The same samples, all of them in this process's memory. Raises Unreadable."""
    out = torch.empty(len(split), *split.shape, dtype=split.dtype)
    parts = torch.arange(len(split)).split(max(1, (1 << 24) // max(split.bytes_each, 1))) if len(split) else ()
    for part, x in stream(split, parts):
        out[part] = x
    return Split(out, split.y, split.names)


def reading_threads() -> int:
    """As many as this worker has CPUs."""
    allowed = cpus()
    # Ray tells a worker its share of the node by OMP_NUM_THREADS, which becomes torch's number of threads.
    # OpenMP takes a list, one number for each level of nesting.
    share = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, min(int(share) if share.isdecimal() else allowed, allowed, _MOST_THREADS))
