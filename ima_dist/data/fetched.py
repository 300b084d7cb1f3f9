"""Samples that stay where they are until a batch needs them."""

from typing import Protocol

import numpy as np
import torch


class Fetched(Protocol):
    """Samples that are read when they are needed.

    shape: of one sample, without N. dtype: uint8 (images, 0 to 255) or floating point.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __len__(self) -> int: ...

    def fetch(self, rows: np.ndarray) -> torch.Tensor:
        """The samples (B, *shape) at ``rows`` (B,) int64, on the CPU, not shared with anything.

        Several threads call it at once, and every call with the same rows returns the same values. Raises OSError or
        ValueError if they cannot be read.
        """
        ...
