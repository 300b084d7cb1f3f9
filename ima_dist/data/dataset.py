"""What a data set is, how a user's function for one is called and checked, and how it stands on a device."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ima_dist.config import ConfigError, DataConfig, did_you_mean
from ima_dist.data.augment import PADDING
from ima_dist.noise import mix64
from ima_dist.references import first_line, resolve_reference

_PARTS = ("train", "val", "test")
_UINT8_BOX = (0.0, 1.0)
_DIGESTED = 512


@dataclass(frozen=True, eq=False)
class Split:
    """Samples with labels.

    stored: (M, *shape), uint8 for images (0 to 255) or floating point, as the network sees it; it may lie in a
        file that several processes share, and is only read.
    y: (N,) int64, classes from 0.
    names: what the samples are called (file names, for example), or None.
    rows: (N,) int64, where in ``stored`` the samples are; None if it holds them alone, in order (M = N).
    """

    stored: torch.Tensor
    y: torch.Tensor
    names: tuple[str, ...] | None = None
    rows: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def x(self) -> torch.Tensor:
        """(N, *shape), the samples; with ``rows``, every use makes a copy."""
        return self.stored if self.rows is None else self.stored[self.rows]

    def view(self, indices: torch.Tensor) -> Split:
        """The samples at ``indices`` (int64), in that order, left where they are stored."""
        names = None if self.names is None else tuple(self.names[i] for i in indices.tolist())
        return Split(self.stored, self.y[indices], names, indices if self.rows is None else self.rows[indices])

    def take(self, indices: torch.Tensor) -> Split:
        """As ``view``, but copied, so that the others need not be kept."""
        chosen = self.view(indices)
        return Split(chosen.x, chosen.y, chosen.names)


@dataclass(frozen=True, eq=False)
class DataSet:
    """What the function named by ``--data.source`` returns.

    box: feasible range of inputs as the network sees them, (0.0, 1.0) for uint8 images; None if unbounded.
    augment: training images are cropped and flipped at random (see augment.py).
    """

    train: Split
    val: Split
    test: Split
    box: tuple[float, float] | None
    num_classes: int
    class_names: tuple[str, ...] | None = None
    augment: bool = False

    def digest(self) -> str:
        """A short hash that tells other data from these: sizes, all labels, and up to 512 samples a part.

        Not every sample, because a run asks for it at every start.
        """
        found = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            found.update(f"{(len(part), *part.stored.shape[1:])} {part.stored.dtype}".encode())
            found.update(part.y.numpy().tobytes())
            chosen = torch.linspace(0, max(len(part) - 1, 0), min(len(part), _DIGESTED), dtype=torch.float64).long()
            found.update(part.take(chosen).x.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]


class Resident:
    """One split held on a device: uint8 stays uint8 there, floating point is converted to ``dtype`` once.

    x: (M, *shape) on the device; rows: (N,) int64, where in x the samples are, or None if it holds them alone,
    in order; y: (N,) int64; box: as in DataSet; shape: of one sample, without N.
    """

    def __init__(
        self, split: Split, device: torch.device | str, dtype: torch.dtype, box: tuple[float, float] | None
    ) -> None:
        self.dtype = dtype
        self.box = box
        bytes_stay = split.stored.dtype == torch.uint8
        # On the CPU the samples stay where they are stored, which may be shared with other processes.
        self.rows = split.rows if bytes_stay and torch.device(device).type == "cpu" else None
        x = split.x if self.rows is None else split.stored
        self.x = x.to(device) if bytes_stay else x.to(device, dtype)
        self.y = split.y.to(device)
        self.shape: tuple[int, ...] = tuple(split.stored.shape[1:])

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, *shape) of ``dtype``, uint8 divided by 255, and y (B,), both on the device.

        indices: (B,) int64, on the CPU or the device. Does not wait for the device.
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


def load(config: DataConfig, seed: int) -> DataSet:
    """The data set that ``config.source`` names, checked, on the CPU, with ``config.subset`` applied.

    The function is called with (config, seed) and returns a DataSet, or a dictionary with "train", "test"
    and, optionally, "val": each (x, y) of numpy arrays or tensors; optionally also "box" (low, high) and
    "class_names". Without class names, the classes are those that occur in the training set.
    Raises ConfigError if there is no such function, if it fails (the exception stays chained), or if what it
    returns cannot be trained on.
    """
    function = resolve_reference(config.source, "data.source")
    try:
        returned = function(config, seed)
    except ConfigError:
        raise
    except Exception as e:
        raise ConfigError(f"--data.source {config.source} failed, correct it: {first_line(e)}.") from e
    try:
        data = _normalise(returned)
    except ConfigError as e:
        raise ConfigError(f"--data.source {config.source} returned data that cannot be used: {e}") from e
    return data if config.subset is None else _subset(data, config.subset, seed)


# ---- choosing samples ----------------------------------------------------------------------------------


def choose_balanced(y: torch.Tensor, quotas: list[int], seed: int, stream: int) -> torch.Tensor:
    """Ascending indices of ``quotas[c]`` samples of each class c (all of them if a class has fewer).

    y: (N,) int64 labels. Which ones depends only on (seed, stream) and the index: those with the smallest
    keyed hash, so a smaller quota chooses among the same samples.
    """
    key = mix64(mix64(torch.tensor(seed) + 1) + stream)
    chosen = []
    for c, quota in enumerate(quotas):
        members = (y == c).nonzero().squeeze(1)
        chosen.append(members[mix64(mix64(members) + key).argsort()[:quota]])
    return torch.cat(chosen).sort().values


def hold_out(split: Split, count: int, num_classes: int, seed: int) -> tuple[Split, Split]:
    """Split off a class-balanced validation set of ``count`` samples; returns (training, validation).

    Both keep the original order, and their samples stay where those of ``split`` are stored. No class gives up more
    than half of its samples, so that the validation set of a very small or unbalanced set may stay below ``count``.
    """
    available = torch.bincount(split.y, minlength=num_classes).tolist()
    quotas = [min(q, a // 2) for q, a in zip(_quotas(count, num_classes), available, strict=True)]
    held = choose_balanced(split.y, quotas, seed, stream=len(_PARTS))
    rest = torch.ones(len(split), dtype=torch.bool)
    rest[held] = False
    return split.view(rest.nonzero().squeeze(1)), split.view(held)


def _quotas(count: int, num_classes: int) -> list[int]:
    share, rest = divmod(count, num_classes)
    return [share + (c < rest) for c in range(num_classes)]


def _subset(data: DataSet, n: int, seed: int) -> DataSet:
    classes = data.num_classes
    if n > len(data.train):
        raise ConfigError(f"--data.subset {n} exceeds the number of training samples: give at most {len(data.train)}.")
    if n < classes:
        raise ConfigError(f"--data.subset must be at least the number of classes, {classes}, not {n}.")
    wanted = _quotas(n, classes)
    available = torch.bincount(data.train.y, minlength=classes).tolist()
    for c in range(classes):
        if available[c] < wanted[c]:
            raise ConfigError(
                f"--data.subset {n} needs {wanted[c]} training samples of class {c}, which has "
                f"{available[c]}: the largest with as many of each class is {min(available) * classes}."
            )

    def capped(part: Split, stream: int) -> Split:
        cap = max(round(len(part) * n / len(data.train)), 10 * classes)
        if cap >= len(part):
            return part
        return part.take(choose_balanced(part.y, _quotas(cap, classes), seed, stream))

    train = data.train.take(choose_balanced(data.train.y, wanted, seed, stream=0))
    return replace(data, train=train, val=capped(data.val, 1), test=capped(data.test, 2))


# ---- checks of what a function returned ----------------------------------------------------------------


def _normalise(returned: Any) -> DataSet:
    if isinstance(returned, DataSet):
        given = {name: getattr(returned, name) for name in (*_PARTS, "box", "class_names")}
    elif isinstance(returned, dict):
        given = dict(returned)
        known = (*_PARTS, "box", "class_names")
        for key in given:
            if key not in known:
                raise ConfigError(f"it has an unknown entry {key!r}{did_you_mean(key, known)}.")
    else:
        raise ConfigError(f"it must be a DataSet or a dictionary, not {type(returned).__name__}.")

    for name in ("train", "test"):
        if given.get(name) is None:
            raise ConfigError(f"it lacks the entry {name!r}, a pair (x, y).")
    train = _split("train", given["train"])
    val = train.take(torch.arange(0)) if given.get("val") is None else _split("val", given["val"])
    test = _split("test", given["test"])
    for name, part in (("train", train), ("test", test)):
        if len(part) == 0:
            raise ConfigError(f"{name} holds no samples, give at least one.")
    if len(val) == 0:
        val = train.take(torch.arange(0))
    for name, part in (("val", val), ("test", test)):
        if part.stored.shape[1:] != train.stored.shape[1:] or part.stored.dtype != train.stored.dtype:
            raise ConfigError(f"a sample of {name} is {_kind(part.x[0])}, but one of train is {_kind(train.x[0])}.")

    names = given.get("class_names")
    names = None if names is None else tuple(str(n) for n in names)
    parts = {"train": train, "val": val, "test": test}
    if isinstance(returned, DataSet):
        num_classes = returned.num_classes
    elif names is not None:
        num_classes = len(names)
    else:
        num_classes = _count_classes(train.y)
    _check_labels(parts, num_classes, names)
    box = _check_box(parts, given.get("box"))
    augment = isinstance(returned, DataSet) and returned.augment
    shape = tuple(train.stored.shape[1:])
    if augment and (len(shape) != 3 or min(shape[1:]) <= PADDING):
        raise ConfigError(f"augment needs images (channels, height, width) of more than {PADDING} pixels, not {shape}.")
    return DataSet(train, val, test, box, num_classes, names, augment)


def _split(name: str, given: Any) -> Split:
    rows = None
    if isinstance(given, Split):
        x, y, names = given.stored, given.y, given.names
        if given.rows is not None:
            # Floating point is looked at sample by sample below, bytes are always right.
            x, rows = (x, given.rows) if x.dtype == torch.uint8 else (given.x, None)
    elif isinstance(given, (tuple, list)) and len(given) == 2:
        x, y, names = given[0], given[1], None
    else:
        raise ConfigError(f"{name} must be a pair (x, y), not {type(given).__name__}.")
    x, y = _tensor(f"x of {name}", x), _tensor(f"y of {name}", y)
    if y.numel() and (y.is_floating_point() or y.is_complex() or y.dim() != 1):
        raise ConfigError(f"y of {name} must be one whole number for each sample, not {_kind(y)}.")
    count = 0 if x.dim() == 0 else len(x) if rows is None else len(rows)
    if x.dim() == 0 or count != len(y):
        raise ConfigError(f"{name} has {count or 'no'} samples x but {len(y)} labels y.")
    if names is not None and len(names) != len(y):
        raise ConfigError(f"{name} has {len(names)} names but {len(y)} samples.")
    if len(y) and x.dim() < 2:
        raise ConfigError(f"x of {name} must have shape (N, features…), not (N,).")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise ConfigError(f"x of {name} must be uint8 or floating point, not {_kind(x)}.")
    if x.is_floating_point():
        finite = x.flatten(1).isfinite().all(1) if len(x) else torch.ones(0, dtype=torch.bool)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            raise ConfigError(f"x of {name} has a NaN or infinite value, first in sample {first}.")
    return Split(x, y.to(torch.int64), None if names is None else tuple(names), rows)


def _tensor(what: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if not isinstance(value, np.ndarray):
        raise ConfigError(f"{what} must be a numpy array or a tensor, not {type(value).__name__}.")
    if value.dtype.kind not in "buif" or value.dtype.itemsize > 8:
        raise ConfigError(f"{what} must hold numbers of at most 64 bits, not {value.dtype}.")
    # torch takes neither read-only arrays nor foreign byte order nor negative strides.
    return torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))


def _kind(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"


def _check_labels(parts: dict[str, Split], num_classes: int, class_names: tuple[str, ...] | None) -> None:
    if num_classes < 2:
        raise ConfigError(f"it has {num_classes} classes, but a classifier needs at least two.")
    if class_names is not None and len(class_names) != num_classes:
        raise ConfigError(f"it has {len(class_names)} class names but {num_classes} classes.")
    for name, part in parts.items():
        wrong = ((part.y < 0) | (part.y >= num_classes)).nonzero()
        if len(wrong):
            i = int(wrong[0])
            raise ConfigError(f"sample {i} of {name} has the label {int(part.y[i])}, outside 0 to {num_classes - 1}.")


def _count_classes(y: torch.Tensor) -> int:
    # A gap is nearly always a slip (labels from 1, say), and would add an output that nothing trains.
    present = y[y >= 0].unique().tolist()
    for c, label in enumerate(present):
        if c != label:
            raise ConfigError(f"class {c} has no training sample: number the classes from 0 without a gap.")
    return len(present)


def _check_box(parts: dict[str, Split], given: Any) -> tuple[float, float] | None:
    uint8 = parts["train"].stored.dtype == torch.uint8
    if given is None:
        return _UINT8_BOX if uint8 else None
    try:
        low, high = (float(v) for v in given)
    except (TypeError, ValueError):
        raise ConfigError(f"box must be a pair of numbers (low, high) or None, not {given!r}.") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"box must be finite with low < high, not {given!r}.")
    if uint8:
        if (low, high) != _UINT8_BOX:
            raise ConfigError(f"box of uint8 images must be (0, 1), their range once scaled, not {given!r}.")
        return _UINT8_BOX
    for name, part in parts.items():
        if len(part) and (part.x.min() < low or part.x.max() > high):
            raise ConfigError(
                f"x of {name} goes from {part.x.min().item():g} to {part.x.max().item():g}, outside its box "
                f"({low:g}, {high:g}): correct the box or the scaling."
            )
    return low, high
