"""Samples and labels of a data set, and their place on a device."""

import contextlib
import hashlib
import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ima_dist.config.errors import ConfigError, first_line
from ima_dist.data.encoded import Encoded
from ima_dist.data.fetched import Fetched

PARTS = ("train", "val", "test")
UINT8_BOX = (0.0, 1.0)
_DIGESTED = 512
# Bytes of samples that are looked at together.
_AT_ONCE = 1 << 24
Box = tuple[float, float] | None


class Unreadable(OSError, ConfigError):
    """Samples cannot be read, or no longer. The message is one sentence for the user, without its full stop."""


@dataclass(frozen=True, eq=False)
class Split:
    """Samples with labels.

    stored: (M, *shape), uint8 for images (0 to 255) or floating point, as the network sees it; read-only, since it
        may be mapped from a file that several processes share. Or M samples that are read when they are needed.
    y: (N,) int64, classes from 0.
    names: what the samples are called (file names, for example), or None.
    rows: (N,) int64, the rows of ``stored`` with the samples; None if it holds only them, in order (M = N).
    groups: what must not be split between training and test (the patient of each image, say; None for an image that
        is alone), or None if that is not known.
    mapped: ``stored`` is a tensor that is mapped from a file, and takes none of this process's own memory.
    grouped_by: what a group is, such as the column or the field of a header that names it, if that is known.
    """

    stored: Tensor | Fetched
    y: Tensor
    names: tuple[str, ...] | None = None
    rows: Tensor | None = None
    groups: tuple[str | None, ...] | None = None
    mapped: bool = False
    grouped_by: str | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, without N."""
        return tuple(self.stored.shape[1:]) if isinstance(self.stored, Tensor) else self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    @property
    def bytes_each(self) -> int:
        """Bytes of a sample in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def on_disk(self) -> bool:
        """Whether the samples take none of this process's own memory before they are used."""
        return self.mapped or not isinstance(self.stored, Tensor)

    @property
    def x(self) -> Tensor:
        """(N, *shape), all samples; unless they are a tensor without ``rows``, every access makes a copy."""
        if isinstance(self.stored, Tensor) and self.rows is None:
            return self.stored
        return self.fetch(torch.arange(len(self)))

    def fetch(self, indices: Tensor) -> Tensor:
        """A copy of the samples at ``indices`` (B,) int64, as they are stored, (B, *shape). Raises Unreadable."""
        rows = self._rows(indices)
        if isinstance(self.stored, Tensor):
            return self.stored[rows]
        if not len(rows):
            return torch.empty((0, *self.shape), dtype=self.dtype)
        with _still_readable():
            found = self.stored.fetch(rows.numpy())
        if found.shape != (len(rows), *self.shape) or found.dtype != self.dtype:
            raise Unreadable(f"the data have changed (a sample is {found.dtype} {tuple(found.shape[1:])} now)")
        return found

    def fetch_into(self, indices: Tensor, out: Tensor) -> None:
        """As ``fetch``, into ``out`` (B, *shape), by one thread: torch would start further ones for a copy."""
        if isinstance(self.stored, Encoded):
            with _still_readable():
                self.stored.fetch_into(self._rows(indices).numpy(), out)
        elif len(indices) and isinstance(self.stored, Tensor) and self.stored.is_contiguous():
            np.take(_as_bytes(self.stored), self._rows(indices).numpy(), axis=0, out=_as_bytes(out), mode="clip")
        elif len(indices):
            _as_bytes(out)[...] = _as_bytes(self.fetch(indices))

    def empty(self, count: int, pin: bool) -> Tensor:
        """Memory for ``fetch_into``, (count, *shape); its strides may be any. pin: page-locked."""
        if isinstance(self.stored, Encoded):
            return self.stored.empty(count, pin)
        return torch.empty((count, *self.shape), dtype=self.dtype, pin_memory=pin)

    def _rows(self, indices: Tensor) -> Tensor:
        return indices if self.rows is None else self.rows[indices]

    def view(self, indices: Tensor) -> Self:
        """The samples at ``indices`` (int64), in that order, without copying them."""
        names, groups = (
            None if words is None else tuple(words[i] for i in indices.tolist()) for words in (self.names, self.groups)
        )
        rows = self._rows(indices)
        return replace(self, y=self.y[indices], names=names, rows=rows, groups=groups)

    def take(self, indices: Tensor) -> Self:
        """As ``view``, but copied, so that the other samples can be freed; those on the disk stay there."""
        chosen = self.view(indices)
        return chosen if self.on_disk else replace(chosen, stored=chosen.x, rows=None)

    def pieces(self, indices: Tensor) -> Iterator[Tensor]:
        """The samples at ``indices``, as by ``fetch``, a few megabytes at a time."""
        return map(self.fetch, indices.split(max(1, _AT_ONCE // max(self.bytes_each, 1))) if len(indices) else ())

    def digest(self) -> str:
        """A short hash of its size, all labels, and up to 512 samples."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return _digest(self)


@contextlib.contextmanager
def _still_readable() -> Generator[None]:
    try:
        yield
    except Exception as error:
        why = str(error).rstrip(".") if isinstance(error, ConfigError) else first_line(error)
        raise Unreadable(f"the data can no longer be read ({why}): bring the files back as they were") from error


def _as_bytes(x: Tensor) -> np.ndarray:
    """(B, bytes of a sample); shares the memory of a contiguous x, which has samples."""
    return x.reshape(len(x), -1).view(torch.uint8).numpy()


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set, as the function named by ``--data.source`` returns it.

    box: feasible range of inputs as the network sees them, (0.0, 1.0) for uint8 images; None if unbounded.
    augment: training images are cropped and flipped at random (see augment.py).
    split_level: what the parts keep apart, as words after "split", if that is to be said with results.
    """

    train: Split
    val: Split
    test: Split
    box: Box
    num_classes: int
    class_names: tuple[str, ...] | None = None
    augment: bool = False
    split_level: str | None = None

    def digest(self) -> str:
        """A short hash that identifies the data: sizes, all labels, and up to 512 samples per part.

        Not all samples, because a run computes it at every start.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return _digest(self.train, self.val, self.test)


def _digest(*parts: Split) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{(len(part), *part.shape)} {part.dtype}".encode())
        found.update(part.y.numpy().tobytes())
        chosen = torch.linspace(0, max(len(part) - 1, 0), min(len(part), _DIGESTED), dtype=torch.float64).long()
        for x in part.pieces(chosen):
            found.update(x.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


class Taken(NamedTuple):
    """A batch, all of it on the device: indices (B,) int64, x (B, *shape) as the network sees it, y (B,) int64."""

    indices: Tensor
    x: Tensor
    y: Tensor


class Samples:
    """One split, from which batches are taken on a device.

    dtype: of the batches. y: (N,) int64 on the device. shape: of one sample, without N. box: as in DataSet.
    as_bytes: the samples are stored as uint8, and a batch is divided by 255.
    """

    def __init__(self, split: Split, device: torch.device | str, dtype: torch.dtype, box: Box) -> None:
        self.dtype, self.box, self.shape = dtype, box, split.shape
        self.as_bytes = split.dtype == torch.uint8
        self.y = split.y.to(device)

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, *shape) of ``dtype``, uint8 divided by 255, and y (B,), both on the device.

        indices: (B,) int64, on the CPU or the device. Raises Unreadable.
        """
        raise NotImplementedError

    def batches(self, parts: Iterable[Tensor]) -> Generator[Taken]:
        """The batches with the indices ``parts`` (int64, on the CPU), one after another, as ``batch``.

        ``parts`` may be taken ahead of what is asked for. Close the iterator (``contextlib.closing``) if it may not be
        exhausted.
        """
        for part in parts:
            indices = self.on_device(part)
            yield Taken(indices, *self.batch(indices))

    def on_device(self, indices: Tensor) -> Tensor:
        """Indices on the device; forces no sync."""
        if self.y.is_cuda and not indices.is_cuda:
            # Only a copy from pinned memory lets the host run ahead of the device.
            return indices.pin_memory().to(self.y.device, non_blocking=True)
        return indices.to(self.y.device)

    def as_seen(self, x: Tensor) -> Tensor:
        """Stored samples on the device, as the network sees them; contiguous, so that they do not depend on how they
        were stored."""
        if self.as_bytes:
            return x.to(self.dtype, memory_format=torch.contiguous_format).div_(255)
        return x.contiguous().to(self.dtype)


class Resident(Samples):
    """One split held on a device: uint8 stays uint8 there, floating point is converted to ``dtype`` once.

    x: (M, *shape) on the device; rows: (N,) int64, the rows of x with the samples, or None if it holds only them,
    in order.
    """

    def __init__(self, split: Split, device: torch.device | str, dtype: torch.dtype, box: Box) -> None:
        super().__init__(split, device, dtype, box)
        # On the CPU the samples stay in place, which may be memory shared with other processes.
        in_place = stays_in_place(split, device, dtype)
        self.rows = split.rows if in_place else None
        x = split.stored if in_place and isinstance(split.stored, Tensor) else split.x
        self.x = x.to(device) if self.as_bytes else x.to(device, dtype)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        indices = self.on_device(indices)
        x = self.x.index_select(0, indices if self.rows is None else self.rows.index_select(0, indices))
        return self.as_seen(x), self.y.index_select(0, indices)


def stays_in_place(split: Split, device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether the samples can be used where they are, without a copy of the whole split."""
    usable = split.dtype in (torch.uint8, dtype)
    return usable and torch.device(device).type == "cpu" and isinstance(split.stored, Tensor)
