"""What a view reads from a run directory beyond the data set: nothing that lies outside, nothing that is unpickled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from ima_dist.config.errors import ConfigError
from ima_dist.rundir import arrays
from ima_dist.rundir.files import read_parquet
from ima_dist.tracking import tables
from ima_dist.tracking.collection import Run, inside

_T = TypeVar("_T")
Arrays = dict[str, np.ndarray]


def boundary(run: Run) -> Arrays | str | None:
    """examples/boundary.npz; None if there is none, a sentence if it cannot be read. So are the others."""
    return _kept(run, "examples/boundary.npz", arrays.read_boundary)


def noisy(run: Run) -> Arrays | str | None:
    return _kept(run, "examples/noisy.npz", arrays.read_noisy)


def extremes(run: Run) -> Arrays | str | None:
    return _kept(run, "examples/extremes.npz", arrays.read_extremes)


def outcomes(run: Run) -> pa.Table | str | None:
    return _kept(run, "outcomes.parquet", lambda dir: read_parquet(dir.outcomes_path))


def audit(run: Run) -> pa.Table | str | None:
    return _kept(run, "audit.parquet", lambda dir: read_parquet(dir.audit_path))


def history(run: Run) -> list[dict[str, Any]] | str | None:
    return _kept(run, "history.parquet", lambda dir: dir.read_history())


def margins(run: Run) -> pa.Table | str | None:
    """The newest snapshot, in the schema of the data set."""

    def read(dir: Any) -> pa.Table:
        for path in dir.margins_dir.glob("epoch=*/*"):
            if path.is_symlink():
                raise ConfigError(f"{path} is a symbolic link, which is not followed.")
        return tables.margins_table(run.name, dir)

    return _kept(run, "margins", read)


class _Key:
    """A file as it is now, with how to read it; equal keys mean equal content."""

    def __init__(self, run: Run, path: Path, stamp: tuple[int, int], read: Callable[[Any], Any]) -> None:
        self.run, self.read = run, read
        self._identity = (str(path), stamp)

    def __hash__(self) -> int:
        return hash(self._identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._identity == other._identity


def _kept(run: Run, name: str, read: Callable[[Any], _T]) -> _T | str | None:
    path = run.dir.path / name
    try:
        found = inside(run.dir.path, path).stat()
        result: _T = _read(_Key(run, path, (found.st_mtime_ns, found.st_size), read))
        return result
    except FileNotFoundError:
        return None
    except (ConfigError, OSError) as error:
        return tables.sentence(error)


@functools.lru_cache(maxsize=32)
def _read(key: _Key) -> Any:
    return key.read(key.run.dir)
