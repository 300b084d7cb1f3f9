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
    colours_last: these are views of (height, width, channels), as decoders give them.
    advice: a sentence for the user whose samples are decoded at every use.
    """

    def __init__(
        self,
        contents: Contents,
        decode: Callable[[bytes, str], np.ndarray],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        colours_last: bool = False,
        advice: str = "",
    ) -> None:
        self.contents, self.decode, self.shape, self.dtype = contents, decode, shape, dtype
        self.colours_last, self.advice = colours_last, advice

    def __len__(self) -> int:
        return len(self.contents)

    def fetch(self, rows: np.ndarray) -> torch.Tensor:
        out = torch.empty((len(rows), *self.shape), dtype=self.dtype)
        self.fetch_into(rows, out)
        return out

    def empty(self, count: int, pin: bool) -> torch.Tensor:
        """Memory for samples (count, *shape), in the order in which ``fetch_into`` fills it fastest."""
        if not self.colours_last:
            return torch.empty((count, *self.shape), dtype=self.dtype, pin_memory=pin)
        channels, height, width = self.shape
        return torch.empty((count, height, width, channels), dtype=self.dtype, pin_memory=pin).permute(0, 3, 1, 2)

    def fetch_into(self, rows: np.ndarray, out: torch.Tensor) -> None:
        """As ``fetch``, into ``out`` (B, *shape)."""
        values = out.numpy()
        for place, row in enumerate(rows.tolist()):
            values[place] = self.decode(self.contents[row], self.contents.name(row))


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
