"""All runs below a results directory, read once and then only where something has changed. Writes nothing.

What the data set of the directory (dataset.py) has is taken from there, which is much faster than from every run
directory; a run that has changed since, or is not in it, is read from its own files and kept in memory.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json, read_parquet
from ima_dist.tracking import tables
from ima_dist.tracking.tables import SCHEMAS, name_in, read_run, sentence, stamp_of

# Folders below a results directory, or a run, that hold no runs and may hold very many files.
_NOT_RUNS = (tables.FOLDER, "tensorboard")
# Histograms and quantiles are most of the bytes, and looked at run by run: a view reads those from the run itself.
_COLUMNS = {**SCHEMAS, "history": pa.schema([f for f in SCHEMAS["history"] if not pa.types.is_list(f.type)])}
_LARGEST = 1 << 20  # bytes of a config.yaml: ours have a thousand


@dataclass(frozen=True, eq=False)
class Run:
    """One run. info: its row of the data set's "runs". curves, history: its rows there, without columns of lists."""

    name: str
    dir: RunDir
    stamp: str
    info: dict[str, Any]
    curves_table: pa.Table
    history_table: pa.Table
    problems: tuple[str, ...] = ()

    @cached_property
    def curves(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.curves_table.to_pylist()
        return rows

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.history_table.to_pylist()
        return rows

    @cached_property
    def options(self) -> dict[str, str]:
        """Every option by its dotted name, as JSON."""
        return dict(self.info["options"] or [])

    def progress(self) -> dict[str, Any]:
        """progress.json as it is now, with "age", the seconds since it was written; {} if there is none."""
        try:
            state = read_json(inside(self.dir.path, self.dir.progress_path)) or {}
            return {**state, "age": max(0.0, time.time() - self.dir.progress_path.stat().st_mtime)} if state else {}
        except (ConfigError, OSError):
            return {}


@dataclass
class Collection:
    """The runs below ``root``, by name. problems: a sentence for each file that is damaged or not ours."""

    root: Path
    runs: dict[str, Run] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _looked: float = float("-inf")

    def refresh(self, not_within: float = 0.0) -> None:
        """Look for what has changed, unless that was done less than ``not_within`` seconds ago."""
        with self._lock:
            if time.monotonic() - self._looked < not_within:
                return
            self._refresh()
            self._looked = time.monotonic()

    def _refresh(self) -> None:
        root = self.root.resolve()
        places, problems = find_runs(root)
        stamps = {name: stamp_of(run) for name, run in places.items()}
        kept = {n: run for n, run in self.runs.items() if stamps.get(n) == run.stamp}
        fresh = {name: stamp for name, stamp in stamps.items() if name not in kept}
        found, complaints = _from_dataset(root, places, fresh)
        problems += complaints
        for name in fresh.keys() - found.keys():
            try:
                check_inside(places[name])
                part = read_run(name, places[name], with_margins=False)
                info = part.tables["runs"].to_pylist()[0]
                tables = part.tables["curves"], part.tables["history"].select(_COLUMNS["history"].names)
                found[name] = Run(name, places[name], info["stamp"], info, *tables, part.problems)
            except (ConfigError, OSError) as error:
                problems.append(sentence(error))
        every = {**kept, **found}
        # A name that has been looked up may be used while the next look is under way: both are replaced whole.
        self.runs = {name: every[name] for name in sorted(every)}
        self.problems = problems + [p for run in self.runs.values() for p in run.problems]


def find_runs(root: Path) -> tuple[dict[str, RunDir], list[str]]:
    """The run directories below ``root`` by name, and a sentence for what cannot be looked into.

    Symbolic links are not followed: they may lead out of the directory, or in a circle.
    """
    problems: list[str] = []
    found: dict[str, RunDir] = {}

    def complain(error: OSError) -> None:
        problems.append(sentence(error))

    for here, directories, files in os.walk(root, onerror=complain):
        path = Path(here)
        if "config.yaml" in files or "summary.json" in files:
            if path == root:
                problems.append(f"{root} is itself a run: name the directory that contains it.")
            else:
                found[path.relative_to(root).as_posix()] = RunDir(path)
            directories.clear()
            continue
        for name in directories:
            if os.path.islink(os.path.join(here, name)):
                problems.append(f"{path / name} is a symbolic link, which is not followed.")
        directories[:] = sorted(
            n
            for n in directories
            if not (path == root and n in _NOT_RUNS) and not os.path.islink(os.path.join(here, n))
        )
        problems += [f"{path / n} lies outside of any run and is not read." for n in files if n.endswith(".parquet")]
    return found, problems


def check_inside(run: RunDir) -> None:
    """Raise ConfigError if a file of the run that is shown leads out of its directory, or is far too large."""
    for path in (run.config_path, run.summary_path, run.history_path, run.margins_dir):
        inside(run.path, path)
    if run.config_path.exists() and run.config_path.stat().st_size > _LARGEST:
        raise ConfigError(f"{run.config_path} is far larger than a configuration: it is not one of ours.")


def inside(directory: Path, path: Path) -> Path:
    """``path``, unless symbolic links make it lead out of ``directory``: then ConfigError."""
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ConfigError(f"{path} leads out of {directory}, and is not read.")
    return path


def _from_dataset(root: Path, places: dict[str, RunDir], stamps: dict[str, str]) -> tuple[dict[str, Run], list[str]]:
    """The runs that the data set has with these stamps, and a sentence for each of its files that is damaged."""
    problems: list[str] = []
    names: list[str] = []
    try:
        with os.scandir(root / tables.FOLDER / "runs") as entries:
            files = sorted(entry.name for entry in entries)
    except OSError:
        files = []
    for file in files:
        if file.startswith("."):
            continue  # being written
        name = name_in(Path(file))
        if file.endswith(".parquet") and name in stamps:
            names.append(name)
        elif not file.endswith(".parquet"):
            problems.append(f"{root / tables.FOLDER / 'runs' / file} is not ours.")
    infos = _read("runs", root, names, problems)
    good = {}
    for name, table in infos.items():
        info = table.to_pylist()[0] if table.num_rows == 1 else {}
        if info.get("stamp") == stamps[name] and info.get("preset") is not None:
            good[name] = info
    curves = _read("curves", root, list(good), problems)
    history = _read("history", root, list(good), problems)
    return {
        name: Run(name, places[name], stamps[name], info, curves[name], history[name])
        for name, info in good.items()
        if name in curves and name in history
    }, problems


def _read(kind: str, root: Path, names: list[str], problems: list[str]) -> dict[str, pa.Table]:
    """Name -> rows, for each name whose file can be read."""
    if not names:
        return {}
    files = {name: tables.file_of(root, kind, name) for name in names}
    folder = (root / tables.FOLDER / kind).resolve()
    if not folder.is_relative_to(root) or any(file.is_symlink() for file in files.values()):
        problems.append(f"{folder} leads out of {root}, or holds symbolic links, and is not read.")
        return {}
    try:
        table = pa.dataset.dataset([str(f) for f in files.values()], schema=_COLUMNS[kind], format="parquet").to_table()
        return _by_run(table, names)
    except (pa.ArrowException, OSError, ValueError):
        pass  # one of them is damaged: which?
    found = {}
    for name, file in files.items():
        try:
            one = read_parquet(file).cast(SCHEMAS[kind]).select(_COLUMNS[kind].names)
            found[name] = _by_run(one, [name])[name]
        except FileNotFoundError:
            continue
        except (ConfigError, OSError, pa.ArrowException, ValueError) as error:
            text = sentence(error) if isinstance(error, ConfigError | OSError) else f"{file} has other columns."
            problems.append(text)
    return found


def _by_run(table: pa.Table, names: list[str]) -> dict[str, pa.Table]:
    """Slices of a table whose rows stand run by run. Raises ValueError if it has rows of other runs."""
    table = table.combine_chunks()
    slices = {name: table.slice(0, 0) for name in names}
    if not table.num_rows:
        return slices
    column = table["run"].combine_chunks()
    coded = (column if isinstance(column, pa.Array) else column.chunk(0)).dictionary_encode()
    codes = coded.indices.to_numpy(zero_copy_only=False)
    bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    labels = coded.dictionary.to_pylist()
    if len(bounds) - 1 != len(labels) or not set(labels) <= set(names):
        raise ValueError("rows of another run")
    for start, stop in itertools.pairwise(bounds):
        slices[labels[int(codes[start])]] = table.slice(start, stop - start)
    return slices
