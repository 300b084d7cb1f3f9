"""Samples and labels of a data set, and their place on a device."""

import hashlib
from dataclasses import dataclass
from typing import Self

import torch

PARTS = ("train", "val", "test")
UINT8_BOX = (0.0, 1.0)
_DIGESTED = 512


@dataclass(frozen=True, eq=False)
class Split:
    """Samples with labels.

    stored: (M, *shape), uint8 for images (0 to 255) or floating point, as the network sees it; read-only, since it
        may be mapped from a file that several processes share.
    y: (N,) int64, classes from 0.
    names: what the samples are called (file names, for example), or None.
    rows: (N,) int64, the rows of ``stored`` with the samples; None if it holds only them, in order (M = N).
    groups: what must not be split between training and test (the patient of each image, say; None for an image that
        is alone), or None if that is not known.
    """

    stored: torch.Tensor
    y: torch.Tensor
    names: tuple[str, ...] | None = None
    rows: torch.Tensor | None = None
    groups: tuple[str | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def x(self) -> torch.Tensor:
        """(N, *shape), the samples; with ``rows``, every access makes a copy."""
        return self.stored if self.rows is None else self.stored[self.rows]

    def view(self, indices: torch.Tensor) -> Self:
        """The samples at ``indices`` (int64), in that order, without copying them."""
        names, groups = (
            None if words is None else tuple(words[i] for i in indices.tolist()) for words in (self.names, self.groups)
        )
        rows = indices if self.rows is None else self.rows[indices]
        return type(self)(self.stored, self.y[indices], names, rows, groups)

    def take(self, indices: torch.Tensor) -> Self:
        """As ``view``, but copied, so that the other samples can be freed."""
        chosen = self.view(indices)
        return type(self)(chosen.x, chosen.y, chosen.names, groups=chosen.groups)

    def digest(self) -> str:
        """A short hash of its size, all labels, and up to 512 samples."""
        return _digest(self)


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
    box: tuple[float, float] | None
    num_classes: int
    class_names: tuple[str, ...] | None = None
    augment: bool = False
    split_level: str | None = None

    def digest(self) -> str:
        """A short hash that identifies the data: sizes, all labels, and up to 512 samples per part.

        Not all samples, because a run computes it at every start.
        """
        return _digest(self.train, self.val, self.test)


def _digest(*parts: Split) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{(len(part), *part.stored.shape[1:])} {part.stored.dtype}".encode())
        found.update(part.y.numpy().tobytes())
        chosen = torch.linspace(0, max(len(part) - 1, 0), min(len(part), _DIGESTED), dtype=torch.float64).long()
        found.update(part.take(chosen).x.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


class Resident:
    """One split held on a device: uint8 stays uint8 there, floating point is converted to ``dtype`` once.

    x: (M, *shape) on the device; rows: (N,) int64, the rows of x with the samples, or None if it holds only them,
    in order; y: (N,) int64; box: as in DataSet; shape: of one sample, without N.
    """

    def __init__(
        self, split: Split, device: torch.device | str, dtype: torch.dtype, box: tuple[float, float] | None
    ) -> None:
        self.dtype = dtype
        self.box = box
        bytes_stay = split.stored.dtype == torch.uint8
        # On the CPU the samples stay in place, which may be memory shared with other processes.
        self.rows = split.rows if bytes_stay and torch.device(device).type == "cpu" else None
        x = split.x if self.rows is None else split.stored
        self.x = x.to(device) if bytes_stay else x.to(device, dtype)
        self.y = split.y.to(device)
        self.shape: tuple[int, ...] = tuple(split.stored.shape[1:])

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, *shape) of ``dtype``, uint8 divided by 255, and y (B,), both on the device.

        indices: (B,) int64, on the CPU or the device. Forces no sync.
        """
        if self.x.is_cuda and not indices.is_cuda:
            # Only a copy from pinned memory lets the host run ahead of the device.
            indices = indices.pin_memory().to(self.x.device, non_blocking=True)
        else:
            indices = indices.to(self.x.device)
        x = self.x.index_select(0, indices if self.rows is None else self.rows.index_select(0, indices))
        if x.dtype == torch.uint8:
            x = x.to(self.dtype) / 255
        return x, self.y.index_select(0, indices)
