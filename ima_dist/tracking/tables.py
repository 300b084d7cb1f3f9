"""Runs as one data set: RESULTS/dataset/{runs,curves,history,margins}/, each with one Parquet file per run.

The first column of every file is "run": the run's directory below RESULTS, with slashes. All files of a folder have the
same columns, so pandas, DuckDB and Polars read a folder as one table. A file is rewritten as a whole and renamed into
place. The data set is a copy of what is in the run directories; it can be deleted and made again.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from ima_dist.config.errors import ConfigError
from ima_dist.margins.snapshots import ROWS
from ima_dist.results.cost import COLUMNS, cost_numbers
from ima_dist.results.statistics import interval_of
from ima_dist.rundir.curves import Point
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import replacing, write_parquet, write_text_atomic
from ima_dist.rundir.finding import DATASET, MARKER, is_dataset
from ima_dist.rundir.run import Run

KINDS = ("runs", "curves", "history", "margins")
FOLDER = DATASET
_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
# Columns of curves that earlier versions did not write.
_LATER = ("order", "version", "implied")
# The options with a column of their own: those in which runs usually differ. "options" has all.
_OPTIONS = {
    **dict.fromkeys(("preset", "method", "norm"), _TEXT),
    **dict.fromkeys(("eps_max", "delta_eps", "beta"), _FLOAT),
    "margin_update": _TEXT,
    **dict.fromkeys(("epochs", "batch_size", "seed", "data.subset"), _INT),
    "optimizer.name": _TEXT,
    "optimizer.lr": _FLOAT,
    **dict.fromkeys(("attack.steps", "attack.bisections"), _INT),
    "trades.inverse_lambda": _FLOAT,
}
_NUMBERS = ("parameters", "clean_accuracy", "train_samples_per_second", "wall_seconds")
SCHEMAS = {
    "runs": pa.schema(
        {
            **dict.fromkeys(("run", "status", "message"), _TEXT),
            **{name.replace(".", "_"): kind for name, kind in _OPTIONS.items()},
            # Every option by its dotted name, as JSON.
            "options": pa.map_(_TEXT, _TEXT),
            "fingerprint": _TEXT,
            "parameters": _INT,
            "clean_accuracy": _FLOAT,
            "epochs_done": _INT,
            **dict.fromkeys(("train_samples_per_second", "wall_seconds", *COLUMNS), _FLOAT),
            "stamp": _TEXT,
        }
    ),
    "curves": pa.schema(
        {
            **dict.fromkeys(("run", "attack", "loss", "norm", "split"), _TEXT),
            "epoch": _INT,
            **dict.fromkeys(("noise", "accuracy", "low95", "high95"), _FLOAT),
            **dict.fromkeys(("samples", "steps"), _INT),
            "step_scale": _FLOAT,
            "spsa_samples": _INT,
            "order": _TEXT,
            "version": _INT,
            "turned_wrong": _FLOAT,
            "implied": _INT,
            "groups": _INT,
            "effective_samples": _FLOAT,
        }
    ),
    "history": pa.schema(
        {
            "run": _TEXT,
            "epoch": _INT,
            **dict.fromkeys(("train_loss", "train_accuracy", "val_accuracy"), _FLOAT),
            **dict.fromkeys(("noisy_samples", "evaluations"), _INT),
            **dict.fromkeys(("train_seconds", "margin_seconds", "samples_per_second"), _FLOAT),
            **dict.fromkeys(("margin_mean", "share_at_max"), _FLOAT),
            "margin_quantiles": pa.list_(_FLOAT),
            "margin_histogram": pa.list_(_INT),
        }
    ),
    # The newest snapshot: one row per training sample.
    "margins": pa.schema(
        {
            "run": _TEXT,
            **dict.fromkeys(("epoch", "index", "label"), _INT),
            "margin": _FLOAT,
            **dict.fromkeys(("correct", "crossed"), pa.bool_()),
        }
    ),
}


def root_of(run: RunDir, usual: Path) -> Path | None:
    """The results directory that a run lies in: the nearest one above it with a data set of ours, or ``usual``."""
    for above in run.path.parents:
        if is_dataset(above / FOLDER) or above == usual.absolute():
            return above
    return None


def check_dataset(root: Path) -> None:
    """Raise ConfigError if ``root`` has a folder of the data set's name with other content; OSError."""
    folder = root / FOLDER
    # A hidden file is one that is being written, perhaps the marker.
    there = folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir())
    if there and not is_dataset(folder):
        raise ConfigError(f"{folder} holds files that are not ours: rename it, or keep runs in another directory.")


def make_dataset(root: Path) -> None:
    """Make ``root`` a results directory, which has a data set. Raises as ``check_dataset``."""
    check_dataset(root)
    folder = root / FOLDER
    # First, so that a process that sees any of the folders sees whose they are.
    if not (folder / MARKER).exists():
        write_text_atomic(folder / MARKER, "The rows of runs, written by ima_dist. It can be deleted and made again.\n")
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)


def is_ours(file: Path) -> bool:
    """Whether a file in the data set holds rows of the run that it is named after, or of none."""
    with contextlib.suppress(pa.ArrowException, OSError), pq.ParquetFile(file) as opened:
        if opened.schema_arrow.names[:1] != ["run"]:
            return False
        first = next(opened.iter_batches(1, columns=["run"]), None)
        return first is None or first["run"].to_pylist() in ([], [name_in(file)])
    return False


def name_of(root: Path, run: RunDir) -> str:
    """The run's name in the data set."""
    return run.path.relative_to(root.absolute()).as_posix()


def file_of(root: Path, kind: str, name: str) -> Path:
    """A run's file in the data set; a name with slashes is one file too."""
    return root / FOLDER / kind / f"{quote(name, safe='')}.parquet"


def name_in(file: Path) -> str:
    """Inverse of ``file_of``."""
    return unquote(file.name.removesuffix(".parquet"))


def stamp_of(run: RunDir) -> str:
    """The times and sizes of the files that the data set copies: changes when they do."""
    parts = []
    for path in (run.config_path, run.summary_path, run.history_path, run.margins_dir):
        try:
            found = os.stat(path)
            parts.append(f"{found.st_mtime_ns}:{found.st_size}")
        except OSError:
            parts.append("-")
    return " ".join(parts)


def read_run(run: Run, stamped: bool = True) -> dict[str, pa.Table]:
    """The tables of a run by kind, but for "margins"; a damaged part is empty, and named in the run's ``problems``.

    stamped: False leaves the stamp empty. Raises ConfigError if the configuration cannot be read, which means that it
    is not a run of ours.
    """
    # Before the files are read, so that a change in between is read the next time.
    stamp = stamp_of(run.dir) if stamped else ""
    history = _fitted("history", run, run.history_table)
    return {"curves": curves_table(run), "history": history, "runs": _runs_table(run, history.num_rows, stamp)}


def write_run(root: Path, dir: RunDir, going_on: bool = False) -> list[str]:
    """Bring a run's files in the data set of ``root`` up to date; returns a sentence for each damaged part.

    "runs" is written last: its stamp says that the others are there. While the run is ``going_on``, more than
    ``ROWS`` margins are left for its end: they would be copied after every epoch. Raises ConfigError, LeaseLost (with
    nothing of the other process's changed) and OSError.
    """
    make_dataset(root)
    run = Run(dir, name_of(root, dir))
    # Its directory changes before its files do, and is part of the stamp.
    left = going_on and many_margins(dir)
    tables = read_run(run, stamped=not left)
    if not left:
        _write_margins(root, run)
    for kind in ("history", "curves", "runs"):
        write_parquet(file_of(root, kind, run.name), tables[kind], dir.check_lease)
    return list(run.problems.values())


def curves_table(run: Run) -> pa.Table:
    """The run's curves with their 95 % intervals."""
    rows = [{"run": run.name, **_point_row(point)} for point in run.points]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["curves"])


def points_of(curves: pa.Table) -> list[Point]:
    """The points of one run's rows: the inverse of ``curves_table``, which has checked them."""
    rows = curves.drop_columns(["run", "low95", "high95"]).to_pylist()
    return [Point(**{k: v for k, v in row.items() if v is not None or k not in _LATER}) for row in rows]


def many_margins(dir: RunDir) -> bool:
    """Whether a run has more margins than are copied while it goes on."""
    return (dir.over_margins(lambda epoch, samples, pieces: samples, lambda text: None) or 0) > ROWS


def _write_margins(root: Path, run: Run) -> None:
    """Copy the run's newest snapshot, by index, in pieces of bounded size; an empty table if there is none."""
    path, schema = file_of(root, "margins", run.name), SCHEMAS["margins"]

    def copy(epoch: int, samples: int, pieces: Iterator[pa.Table]) -> bool:
        with replacing(path, run.dir.check_lease) as file, pq.ParquetWriter(file, schema) as writer:
            for piece in pieces:
                own = piece.append_column("epoch", pa.repeat(pa.scalar(epoch, pa.int64()), piece.num_rows))
                writer.write_table(_fitted("margins", run, own))
        return True

    if not run.over_margins(copy):
        write_parquet(path, schema.empty_table(), run.dir.check_lease)


def _runs_table(run: Run, epochs: int, stamp: str) -> pa.Table:
    row = {
        "run": run.name,
        "status": run.status,
        "message": run.message,
        **{option.replace(".", "_"): run.options[option] for option in _OPTIONS},
        "delta_eps": run.config.expansion,
        "options": [(option, json.dumps(value, ensure_ascii=False)) for option, value in run.options.items()],
        "fingerprint": run.config.fingerprint(),
        "epochs_done": epochs,
        "stamp": stamp,
        **{key: _number(run.summary.get(key)) for key in _NUMBERS},
        **cost_numbers(run.summary.get("cost")),
    }
    return pa.Table.from_pylist([row], schema=SCHEMAS["runs"])


def _point_row(point: Point) -> dict[str, Any]:
    low, high = (None, None) if point.accuracy is None else interval_of(point)
    return {**point.model_dump(), "low95": low, "high95": high}


def _fitted(kind: str, run: Run, table: pa.Table) -> pa.Table:
    """The table with the columns of the schema: others are left out, missing ones are null, "run" is added.

    If a column is damaged the table is empty, and the run's ``problems`` name the column.
    """
    columns = []
    for field in SCHEMAS[kind]:
        if field.name == "run":
            columns.append(pa.repeat(pa.scalar(run.name, field.type), table.num_rows))
        elif field.name in table.column_names:
            try:
                columns.append(table[field.name].cast(field.type))
            except pa.ArrowException:
                return _damaged(kind, run, f"column {field.name}")
        elif field.name in ("epoch", "index", "margin") and table.num_rows:
            return _damaged(kind, run, f"no column {field.name}")
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=SCHEMAS[kind])


def _damaged(kind: str, run: Run, reason: str) -> pa.Table:
    path = run.dir.history_path if kind == "history" else run.dir.margins_dir
    run.problems[kind] = f"{path} is damaged ({reason}): restore it from a copy."
    return SCHEMAS[kind].empty_table()


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
