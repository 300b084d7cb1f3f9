"""Samples that are read when they are needed."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

# Samples that a thread reads in one go.
_BLOCK = 64


class Fetched(Protocol):
    """Samples that are read when they are needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, without N."""

    @property
    def dtype(self) -> torch.dtype:
        """uint8 or floating point."""

    def __len__(self) -> int: ...

    def fetch(self, rows: np.ndarray) -> torch.Tensor:
        """Samples (B, *shape), on the CPU, for rows (B,) int64. Thread-safe and deterministic."""


class Contents(Protocol):
    """Encoded samples: files in a directory, or rows of a prepared copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> bytes:
        """Raises ConfigError if it cannot be read."""

    def name(self, row: int) -> str:
        """For messages."""


class Encoded:
    """Samples that ``decode`` makes from ``contents``, one after another: the ``Fetched`` of encoded files.

    decode: content of one sample and its name for messages -> its values, of ``shape`` and ``dtype``.
    """

    def __init__(
        self,
        contents: Contents,
        decode: Callable[[bytes, str], np.ndarray],
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        self.contents, self.decode, self.shape, self.dtype = contents, decode, shape, dtype

    def __len__(self) -> int:
        return len(self.contents)

    def fetch(self, rows: np.ndarray) -> torch.Tensor:
        out = torch.empty((len(rows), *self.shape), dtype=self.dtype)
        values = out.numpy()
        for place, row in enumerate(rows.tolist()):
            values[place] = self.decode(self.contents[row], self.contents.name(row))
        return out


def fetch_all(samples: Fetched) -> torch.Tensor:
    """All samples (N, *shape) in memory, read by as many threads as there are CPUs."""
    out = torch.empty((len(samples), *samples.shape), dtype=samples.dtype)
    starts = range(0, len(samples), _BLOCK)

    def read(start: int) -> None:
        rows = np.arange(start, min(start + _BLOCK, len(samples)))
        out[start : start + len(rows)] = samples.fetch(rows)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for _ in threads.map(read, starts):  # raises what a thread has raised
            pass
    return out
