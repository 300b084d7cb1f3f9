"""What every source finds, before any sample is decoded, and the data set that is made of it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ima_dist.config.errors import ConfigError, DataNote, DataWarning, first_line, printable
from ima_dist.config.schema import DataConfig
from ima_dist.data.choosing import choose_balanced
from ima_dist.data.encoded import Contents, fetch_all
from ima_dist.data.fetched import Fetched
from ima_dist.data.types import PARTS, DataSet, Split

# Shares of the samples that become the test set and the validation set, where the data name none.
TEST_SHARE, VAL_SHARE = 0.15, 0.15
_HEAD = 4096
# Streams of the choice, beside those of the parts (``choosing``).
_TEST_STREAM, _VAL_STREAM = 101, 102


@dataclass(frozen=True, eq=False)
class Labels:
    """All that is known of N samples beside their values.

    y: (N,) int64, classes from 0. class_names: one per class. names: of the samples, for people. parts: (N,) of
    "train", "val", "test", or "" where the data do not say. groups: (N,) of what must not be split, or None.
    """

    y: np.ndarray
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    parts: np.ndarray
    groups: tuple[str | None, ...] | None = None

    @classmethod
    def of_texts(
        cls,
        texts: list[str],
        names: list[str],
        parts: list[str] | None = None,
        groups: list[str | None] | None = None,
    ) -> Labels:
        """Classes in the order of their numbers, if all are whole numbers, or else of their names."""
        every = set(texts)
        numbers = all(text.isdecimal() for text in every)
        class_names = sorted(every, key=int) if numbers else sorted(every)
        place = {text: c for c, text in enumerate(class_names)}
        y = np.array([place[text] for text in texts], dtype=np.int64)
        found = np.array(parts if parts is not None else [""] * len(y), dtype="U5")
        return cls(y, tuple(class_names), tuple(names), found, None if groups is None else tuple(groups))


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples with their labels; ``stored``: tensor (N, *shape), or what fetches them."""

    stored: torch.Tensor | Fetched
    labels: Labels
    box: tuple[float, float] | None


class Files:
    """Contents that are files."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> bytes:
        try:
            return self.paths[row].read_bytes()
        except OSError as e:
            raise ConfigError(f"{self.name(row)} cannot be read ({first_line(e)}).") from e

    def name(self, row: int) -> str:
        return printable(str(self.paths[row]))

    def size(self, row: int) -> int:
        return self.paths[row].stat().st_size

    def head(self, row: int) -> bytes:
        with self.paths[row].open("rb") as file:
            return file.read(_HEAD)


class ArrayLook(NamedTuple):
    """What arrays hold. dtype: as NumPy writes it. shape: of a sample. low, high: smallest and largest value."""

    dtype: str
    shape: list[int]
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Encoded samples with their labels: what a folder, a list or a prepared copy holds.

    looks: of images, an array (N,) of what their headers say (``pictures.LOOK``).
    """

    contents: Contents
    labels: Labels
    looks: np.ndarray | ArrayLook


def tell(text: str, kind: type[DataWarning] = DataWarning) -> None:
    """A sentence about the data that the user should know."""
    warnings.warn(kind(text), stacklevel=3)


def note(text: str) -> None:
    """A sentence about what was found or done, which is no cause for doubt."""
    tell(text, DataNote)


def data_set(samples: Samples, seed: int) -> DataSet:
    """The data set of ``samples``, divided as the data say, or else by class.

    A test set that the data do not name is chosen by the data alone, a validation set by ``seed``: 15 % of each class.
    Raises ConfigError if a part lacks what it needs.
    """
    labels = samples.labels
    parts = divided(labels, seed)
    stored = samples.stored if isinstance(samples.stored, torch.Tensor) else fetch_all(samples.stored)
    y = torch.from_numpy(labels.y)

    def split(part: str) -> Split:
        rows = torch.from_numpy(np.flatnonzero(parts == part))
        return Split(stored, y[rows], tuple(labels.names[i] for i in rows.tolist()), rows)

    train, val, test = map(split, PARTS)
    return DataSet(train, val, test, samples.box, len(labels.class_names), labels.class_names)


def divided(labels: Labels, seed: int) -> np.ndarray:
    """(N,) of "train", "val" and "test": the parts of ``labels``, and what is held out where they name none.

    Samples of one group stay together; a group counts as one of the class of its first sample.
    Raises ConfigError if a class has no training sample left.
    """
    if labels.groups is None:
        parts = _held_out(labels, seed)
    else:
        groups, of_sample = _as_samples(labels)
        parts = _held_out(groups, seed)[of_sample]
    left = np.bincount(labels.y[parts == "train"], minlength=len(labels.class_names))
    if (left == 0).any():
        raise ConfigError(f"class {labels.class_names[int(np.argmin(left))]} has no training sample: add some.")
    if not (parts == "test").any():
        of = "samples" if labels.groups is None else "groups"
        raise ConfigError(f"there are too few {of} to hold a test set out: at least 3 of a class are needed.")
    return parts


def _held_out(labels: Labels, seed: int) -> np.ndarray:
    """As ``divided``, sample by sample."""
    parts = np.where(labels.parts == "", "train", labels.parts)
    for part, share, stream, key in (("test", TEST_SHARE, _TEST_STREAM, 0), ("val", VAL_SHARE, _VAL_STREAM, seed)):
        if (parts == part).any():
            continue
        rows = np.flatnonzero(parts == "train")
        y = torch.from_numpy(labels.y[rows])
        # 15 % of all samples, also of the validation set, which is taken from what the test set has left.
        of_rest = share if part == "test" or (labels.parts == "test").any() else share / (1 - TEST_SHARE)
        sizes = np.bincount(labels.y[rows], minlength=len(labels.class_names))
        quotas = [min(max(1, round(size * of_rest)), size // 3) for size in sizes.tolist()]
        parts[rows[choose_balanced(y, quotas, key, stream).numpy()]] = part
    return parts


def _as_samples(labels: Labels) -> tuple[Labels, np.ndarray]:
    """Groups as samples, with the labels of their first ones; and for each sample its group, (N,).

    Raises ConfigError if a group lies in two parts.
    """
    assert labels.groups is not None
    texts = [f"group {g}" if g is not None else f"sample {i}" for i, g in enumerate(labels.groups)]
    _, first, of_sample = np.unique(texts, return_index=True, return_inverse=True)
    split = np.flatnonzero(labels.parts != labels.parts[first][of_sample])
    if len(split):
        a, b = labels.names[first[of_sample[split[0]]]], labels.names[split[0]]
        raise ConfigError(f"a group is in two parts, {a} and {b}: put all of its samples into one.")
    # In the order of their first samples, whatever the groups are called.
    order = np.argsort(first)
    place = np.empty(len(first), np.int64)
    place[order] = np.arange(len(first))
    first = first[order]
    names = tuple(labels.names[i] for i in first.tolist())
    return Labels(labels.y[first], labels.class_names, names, labels.parts[first]), place[of_sample]


def check_directory(config: DataConfig) -> Path:
    """``config.dir``, which exists. Raises ConfigError."""
    if config.dir is None:
        raise ConfigError(f"--data.source {config.source} needs --data.dir with the directory or file that holds them.")
    path = Path(config.dir).expanduser()
    if not path.exists():
        raise ConfigError(f"--data.dir {config.dir}: there is no such directory.")
    return path
