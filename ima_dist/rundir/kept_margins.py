"""The margins that a run has kept: those of the newest epoch that can be read."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from ima_dist.config.errors import ConfigError
from ima_dist.margins import snapshots
from ima_dist.rundir.files import read_row_groups

_T = TypeVar("_T")


def over(
    directory: Path, take: Callable[[int, int, Iterator[pa.Table]], _T], complain: Callable[[str], object]
) -> _T | None:
    """As ``RunDir.over_margins``, for the directory of a run's margins."""
    epochs = {int(d.name[6:]): d for d in directory.glob("epoch=*") if d.name[6:].isdigit()}
    for epoch, place in sorted(epochs.items(), reverse=True):
        if not (place / snapshots.MANIFEST).exists():
            continue  # not a snapshot
        try:
            manifest = snapshots.read_manifest(place)
        except (ConfigError, ValueError, FileNotFoundError) as error:
            complain(_falling_back(error))
            continue
        try:
            return take(epoch, manifest.samples, _pieces(place, manifest))
        except _Unreadable as error:
            complain(_falling_back(error))
    return None


class _Unreadable(Exception):
    """A piece of a snapshot of margins cannot be read, which is not a mistake of whoever takes the pieces."""


def _pieces(directory: Path, manifest: snapshots.Manifest) -> Iterator[pa.Table]:
    try:
        for shard in manifest.shards:
            yield from read_row_groups(directory / shard.file)
    except (ConfigError, ValueError, FileNotFoundError) as error:
        raise _Unreadable(error) from error


def _falling_back(error: Exception) -> str:
    return f"{str(error).rstrip('.')}. The margins of the epoch before are used."
