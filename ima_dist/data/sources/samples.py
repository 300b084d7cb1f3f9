"""What every source finds, before any sample is decoded, and the data set that is made of it."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ima_dist.config.errors import ConfigError, DataNote, DataWarning, first_line, printable
from ima_dist.config.schema import DataConfig
from ima_dist.data.encoded import Contents
from ima_dist.data.fetched import Fetched
from ima_dist.data.types import Split

# Bytes by which files are told apart before they are read as a whole.
_HEAD = 4096


@dataclass(frozen=True, eq=False)
class Labels:
    """All that is known of N samples beside their values.

    y: (N,) int64, classes from 0. class_names: one per class. names: of the samples, for people. parts: (N,) of
    "train", "val", "test", or "" where the data do not say. groups: (N,) of what must not be split, or None.
    grouped_by: what a group is: the column of a list, or the level of a header ("patient"). volumes: (N,) int64, equal
    for slices of one volume; None for other samples.
    """

    y: np.ndarray
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    parts: np.ndarray
    groups: tuple[str | None, ...] | None = None
    grouped_by: str | None = None
    volumes: np.ndarray | None = None

    @classmethod
    def of_texts(
        cls,
        texts: list[str],
        names: list[str],
        parts: list[str] | None = None,
        groups: list[str | None] | None = None,
        grouped_by: str | None = None,
    ) -> Labels:
        """Classes in the order of their numbers, if all are whole numbers, or else of their names.

        Raises ConfigError if two of them are one number, such as 1 and 01.
        """
        class_names = sorted(set(texts))
        if all(text.isdecimal() for text in class_names):
            class_names.sort(key=int)
            for one, other in itertools.pairwise(class_names):
                if int(one) == int(other):
                    raise ConfigError(f"the labels {one} and {other} are the same number: write it in one way.")
        place = {text: c for c, text in enumerate(class_names)}
        y = np.array([place[text] for text in texts], dtype=np.int64)
        found = np.array(parts if parts is not None else [""] * len(y), dtype="U5")
        grouped = None if groups is None else tuple(groups)
        return cls(y, tuple(class_names), tuple(names), found, grouped, grouped_by)


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


def box_of(window: tuple[float, ...]) -> tuple[float, float]:
    """The box of float32 values that are cut to ``window``: its bounds, as float32 rounds them."""
    low, high = (float(np.float32(bound)) for bound in window)
    return low, high


def tell(text: str, kind: type[DataWarning] = DataWarning) -> None:
    """A sentence about the data that the user should know."""
    warnings.warn(kind(text), stacklevel=3)


def note(text: str) -> None:
    """A sentence about what was found or done, which is no cause for doubt."""
    tell(text, DataNote)


def data_set(samples: Samples) -> dict[str, Any]:
    """``samples`` as ``load.load`` divides them: by class and group, where the data name no parts.

    Raises ConfigError if a class has no sample that may be trained on.
    """
    labels = samples.labels
    left = np.bincount(labels.y[np.isin(labels.parts, ("", "train"))], minlength=len(labels.class_names))
    if (left == 0).any():
        raise ConfigError(f"class {labels.class_names[int(np.argmin(left))]} has no training sample: add some.")
    stored = samples.stored
    every = Split(stored, torch.from_numpy(labels.y), labels.names, groups=labels.groups, grouped_by=labels.grouped_by)
    return {"all": every, "parts": labels.parts, "box": samples.box, "class_names": labels.class_names}


def check_directory(config: DataConfig) -> Path:
    """``config.dir``, which exists. Raises ConfigError."""
    if config.dir is None:
        raise ConfigError(f"--data.source {config.source} needs --data.dir with the directory or file that holds them.")
    path = Path(config.dir).expanduser()
    if not path.exists():
        raise ConfigError(f"--data.dir {config.dir}: there is no such directory.")
    return path
