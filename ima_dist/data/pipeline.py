"""Batches of samples that are read by threads while the consumer is at work on earlier ones."""

import contextlib
import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ima_dist.data.encoded import cpus
from ima_dist.data.types import Box, Samples, Split, Taken

# Batches that are ready or being read beyond the one in use: as many as have so many bytes, but one at least.
_AHEAD, _AHEAD_BYTES = 8, 1 << 28
# A thread takes at least so many bytes of a batch: handing over less costs more than it saves.
_LEAST = 1 << 17
_MOST_THREADS = 16


def stream(split: Split, parts: Iterable[Tensor], *, pin: bool = False) -> Generator[tuple[Tensor, Tensor]]:
    """Each of ``parts`` (B,), int64 on the CPU, with the samples (B, *shape) at these indices, as they are stored.

    In the order of ``parts``, which are taken a few ahead of the consumer, in its own thread. The threads that read
    end with the iterator: close it (``contextlib.closing``) where it may not be exhausted.
    pin: in page-locked memory, from which a card can copy while the host goes on.
    Raises Unreadable.
    """
    threads, size = reading_threads(), max(split.bytes_each, 1)
    waiting: deque[tuple[Tensor, Tensor | None, list[Future[Tensor]]]] = deque()

    def start(part: Tensor) -> None:
        pieces = part.split(max(1, _LEAST // size, -(-len(part) // threads)))
        if len(pieces) == 1 and not pin:
            waiting.append((part, None, [pool.submit(split.fetch, part)]))
            return
        out = torch.empty(len(part), *split.shape, dtype=split.dtype, pin_memory=pin)
        places = out.split(len(pieces[0]))
        waiting.append((part, out, [pool.submit(_read, split, *piece) for piece in zip(pieces, places, strict=True)]))

    def finished() -> tuple[Tensor, Tensor]:
        part, out, reading = waiting.popleft()
        found = [future.result() for future in reading]
        return part, found[0] if out is None else out

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


def _read(split: Split, part: Tensor, out: Tensor) -> Tensor:
    """Copy samples into ``out`` in one thread: torch would start further ones for it, in each of ours."""
    if not len(part):
        return out
    if isinstance(split.stored, Tensor) and split.stored.is_contiguous():
        rows = part if split.rows is None else split.rows[part]
        np.take(_as_bytes(split.stored), rows.numpy(), axis=0, out=_as_bytes(out), mode="clip")
    else:
        _as_bytes(out)[...] = _as_bytes(split.fetch(part))
    return out


def _as_bytes(x: Tensor) -> np.ndarray:
    """(B, bytes of a sample); shares the memory of a contiguous x, which has samples."""
    return x.reshape(len(x), -1).view(torch.uint8).numpy()
