"""All runs below a results directory, read once and then again only where something has changed.

Rows are taken from the directory's data set (tables.py), which is much faster than reading every run directory. A run
that is not in it, or has changed since, is read from its own files and kept in memory. Only ``update`` writes.
"""

import contextlib
import json
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.curves import Point
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet, sentence
from ima_dist.rundir.finding import find_runs, is_dataset
from ima_dist.rundir.liveness import DIED, RUNNING
from ima_dist.rundir.run import Run
from ima_dist.tracking import tables
from ima_dist.tracking.tables import SCHEMAS, name_in, name_of, points_of, read_run, stamp_of

# Without histograms and quantiles, which are most of the bytes; a view reads them from the run itself.
_COLUMNS = {**SCHEMAS, "history": pa.schema([f for f in SCHEMAS["history"] if not pa.types.is_list(f.type)])}


class Recorded(Run):
    """A run with its rows of the data set.

    info: its row of "runs". curves_table, epochs_table: its rows of "curves" and "history", without columns of lists.
    """

    def __init__(self, dir: RunDir, name: str, info: dict[str, Any], curves: pa.Table, epochs: pa.Table) -> None:
        super().__init__(dir, name)
        self.info, self.curves_table, self.epochs_table = info, curves, epochs

    @property
    def status(self) -> str:
        return self._now(str(self.info["status"]))

    @property
    def message(self) -> str | None:
        return self.death if self.status == DIED else self.info["message"]

    @cached_property
    def options(self) -> dict[str, Any]:
        pairs = (f"{json.dumps(name)}: {value}" for name, value in self.info["options"] or [])
        return json.loads(f"{{{','.join(pairs)}}}")

    @cached_property
    def points(self) -> list[Point]:
        return points_of(self.curves_table)


@dataclass
class Collection:
    """The runs below ``root`` by name. problems: a sentence for each file that is damaged or not ours."""

    root: Path
    runs: dict[str, Recorded] = field(default_factory=dict)
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
        places, problems = runs_by_name(root)
        stamps = {name: stamp_of(run) for name, run in places.items()}
        kept = {n: run for n, run in self.runs.items() if stamps.get(n) == run.info["stamp"]}
        fresh = {name: stamp for name, stamp in stamps.items() if name not in kept}
        found, complaints = _from_dataset(root, places, fresh)
        problems += complaints
        for name in fresh.keys() - found.keys():
            try:
                found[name] = _read_itself(Run(places[name], name))
            except ConfigError as error:
                problems.append(str(error))
        every = {**kept, **found}
        for run in every.values():
            if run.info["status"] == "damaged":
                run.damaged("summary")  # the data set does not say why
        # Requests read these while they are replaced, so each is replaced as a whole.
        self.runs = {name: every[name] for name in sorted(every)}
        self.problems = problems + [text for run in self.runs.values() for text in run.problems.values()]


def runs_by_name(root: Path) -> tuple[dict[str, RunDir], list[str]]:
    """The run directories below ``root`` by their names in the data set, and a sentence for each problem."""
    found, problems = find_runs(root)
    if [run.path for run in found] == [root.resolve()]:
        return {}, [f"{root} is itself a run: name the directory that contains it."]
    return {name_of(root.resolve(), run): run for run in found}, problems


def _read_itself(run: Run) -> Recorded:
    """The run from its own files. Raises ConfigError if its configuration cannot be read."""
    found = read_run(run)
    info = found["runs"].to_pylist()[0]
    recorded = Recorded(run.dir, run.name, info, found["curves"], found["history"].select(_COLUMNS["history"].names))
    recorded.problems.update(run.problems)
    return recorded


def _from_dataset(
    root: Path, places: dict[str, RunDir], stamps: dict[str, str]
) -> tuple[dict[str, Recorded], list[str]]:
    """The runs that the data set has with these stamps, and a sentence for each damaged file of the data set."""
    problems: list[str] = []
    files: list[Path] = []
    if not is_dataset(root / tables.FOLDER):
        return {}, []
    with contextlib.suppress(OSError):
        files = sorted((root / tables.FOLDER / "runs").iterdir())
    # A name that begins with a dot is that of a file being written.
    foreign = [file for file in files if not file.name.startswith(".") and file.suffix != ".parquet"]
    problems += [f"{file} is not ours." for file in foreign]
    names = [name_in(file) for file in files if file.suffix == ".parquet" and not file.name.startswith(".")]
    infos = _read("runs", root, [name for name in names if name in stamps], problems)
    good = {}
    for name, table in infos.items():
        info = table.to_pylist()[0] if table.num_rows == 1 else {}
        if info.get("stamp") == stamps[name] and info.get("preset") is not None:
            good[name] = info
    curves = _read("curves", root, list(good), problems)
    history = _read("history", root, list(good), problems)
    return {
        name: Recorded(places[name], name, info, curves[name], history[name])
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
        pass  # one file is damaged; read them one by one to find out which
    found = {}
    for name, file in files.items():
        try:
            one = read_parquet(file).cast(SCHEMAS[kind]).select(_COLUMNS[kind].names)
            found[name] = _by_run(one, [name])[name]
        except FileNotFoundError:
            continue
        except (ConfigError, OSError, pa.ArrowException, ValueError) as error:
            ours = isinstance(error, ConfigError | OSError)
            problems.append(sentence(error) if ours else f"{file} has other columns.")
    return found


def _by_run(table: pa.Table, names: list[str]) -> dict[str, pa.Table]:
    """Slices of a table that is sorted by run. Raises ValueError if it has rows of other runs."""
    table = table.combine_chunks()
    slices = {name: table.slice(0, 0) for name in names}
    if not table.num_rows:
        return slices
    stretches = pc.run_end_encode(table["run"].chunk(0))
    labels, ends = stretches.values.to_pylist(), stretches.run_ends.to_pylist()
    if len(set(labels)) != len(labels) or not set(labels) <= set(names):
        raise ValueError("rows of another run")
    for label, start, stop in zip(labels, [0, *ends], ends, strict=False):
        slices[label] = table.slice(start, stop - start)
    return slices


class Updated(NamedTuple):
    """Numbers of runs found, written because they are new or changed, and removed; a sentence for each problem."""

    runs: int
    written: int
    removed: int
    problems: list[str]


def update(root: Path) -> Updated:
    """Write the rows of runs that are new or have changed, and remove those of runs that are gone.

    Raises ConfigError, before anything is written, if the folder of the data set is the user's; OSError.
    """
    runs, problems = runs_by_name(root)
    if runs:
        tables.make_dataset(root)
    written = removed = 0
    for name, run in runs.items():
        try:
            stamp, status = _recorded(root, name)
            if stamp != stamp_of(run) or (status == RUNNING and Run(run).status != RUNNING):
                problems += tables.write_run(root, run)
                written += 1
        except ConfigError as error:
            problems.append(str(error))
    for kind in tables.KINDS if is_dataset(root / tables.FOLDER) else ():
        for file in (root / tables.FOLDER / kind).glob("*.parquet"):
            if name_in(file) in runs:
                continue
            if not tables.is_ours(file):
                problems.append(f"{file} is not ours.")
                continue
            file.unlink()
            removed += kind == "runs"
    return Updated(len(runs), written, removed, problems)


def _recorded(root: Path, name: str) -> tuple[str | None, str | None]:
    """The stamp and the status in the row of a run."""
    try:
        table = read_parquet(tables.file_of(root, "runs", name))
        return table["stamp"].to_pylist()[0], table["status"].to_pylist()[0]
    except (ConfigError, FileNotFoundError, KeyError, IndexError):
        return None, None
