"""Arrays as tensors, without a copy where torch can; and arrays in files, of which single samples are read."""

import mmap
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch


def from_array(array: np.ndarray) -> torch.Tensor:
    """A tensor that shares the memory of the array, read-only ones and mapped files included.

    What torch does not take (foreign byte order, negative strides), or is not in C order, is copied. Nothing may write
    into the tensor.
    """
    array = np.require(array, array.dtype.newbyteorder("="), ["C", "A"])
    with warnings.catch_warnings():
        # torch has no read-only tensors.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def is_mapped(array: Any) -> bool:
    """Whether ``from_array`` leaves an array in its file: one of numpy.load(…, mmap_mode="r"), or rows of that."""
    if not isinstance(array, np.ndarray) or not (
        array.dtype.isnative and array.flags.c_contiguous and array.flags.aligned
    ):
        return False
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


class NpyFile:
    """The samples in a .npy file (N, *shape), read when they are needed: a ``Fetched``.

    Unlike in a mapped array, a file that is removed or cut off, or a disk that fails, raises OSError or ValueError
    instead of ending the process.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises OSError or ValueError if the file cannot be read, or holds no rows of numbers in C order."""
        self.path = str(path)
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if mapped.ndim < 1 or not mapped.flags.c_contiguous or not mapped.dtype.isnative:
            raise ValueError(f"{path} does not hold rows in C order and this machine's byte order")
        self._rows, self._first = len(mapped), mapped.offset
        self._dtype: np.dtype[Any] = mapped.dtype
        self.shape: tuple[int, ...] = mapped.shape[1:]
        self.dtype = torch.from_numpy(np.zeros(0, mapped.dtype)).dtype

    def __len__(self) -> int:
        return self._rows

    def fetch(self, rows: np.ndarray) -> torch.Tensor:
        found = np.empty((len(rows), *self.shape), self._dtype)
        each = found[0].nbytes if len(rows) else 0
        with open(self.path, "rb", buffering=0) as file:
            for out, row in zip(found, rows.tolist(), strict=True):
                left = memoryview(out).cast("B")
                place = self._first + row * each
                while len(left):
                    count = os.preadv(file.fileno(), [left], place)
                    if not count:
                        raise ValueError(f"{self.path} is shorter than it was")
                    left, place = left[count:], place + count
        return torch.from_numpy(found)
