"""Samples in encoded form, in files or in a prepared copy, which are decoded when they are fetched."""

import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch


class Contents(Protocol):
    """Encoded samples: files in a directory, or rows of a prepared copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> bytes:
        """Raises ConfigError if it cannot be read."""
        ...

    def name(self, row: int) -> str:
        """For messages."""
        ...


class Encoded:
    """Samples that ``decode`` makes from ``contents``, one after another: a ``Fetched``.

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


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
