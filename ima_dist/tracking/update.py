"""Bring the data set of a results directory up to date with the run directories below it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import read_parquet
from ima_dist.tracking import tables
from ima_dist.tracking.collection import runs_by_name


class Updated(NamedTuple):
    """Numbers of runs found, written because they are new or changed, and removed; a sentence for each problem."""

    runs: int
    written: int
    removed: int
    problems: list[str]


def update(root: Path) -> Updated:
    """Write the rows of runs that are new or have changed, and remove those of runs that are gone. Raises OSError."""
    runs, problems = runs_by_name(root)
    written = removed = 0
    for name, run in runs.items():
        try:
            if _stamp(root, name) != tables.stamp_of(run):
                problems += tables.write_run(root, run)
                written += 1
        except ConfigError as error:
            problems.append(str(error))
    for kind in tables.KINDS:
        for file in (root / tables.FOLDER / kind).glob("*.parquet"):
            if tables.name_in(file) not in runs:
                file.unlink()
                removed += kind == "runs"
    return Updated(len(runs), written, removed, problems)


def _stamp(root: Path, name: str) -> str | None:
    try:
        stamp: str = read_parquet(tables.file_of(root, "runs", name))["stamp"].to_pylist()[0]
    except (ConfigError, FileNotFoundError, KeyError, IndexError):
        return None
    return stamp
