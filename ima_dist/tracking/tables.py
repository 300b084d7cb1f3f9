"""Runs as one data set: RESULTS/dataset/{runs,curves,history,margins}/, in each a Parquet file a run.

Column "run" comes first everywhere: the run's directory below RESULTS, with slashes. The columns are the same in
every file of a folder, so that pandas, DuckDB and Polars read a folder as one table. A file is rewritten whole and
renamed into place. The data set repeats what the run directories say; it may be deleted and made again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa

from ima_dist.config.attacks import ATTACKS
from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.config.values import option_values
from ima_dist.results.table import wilson_interval
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet, write_parquet

KINDS = ("runs", "curves", "history", "margins")
FOLDER = "dataset"
# Where the columns of an option come from: those by which runs are usually told apart. All are in "options".
_OPTIONS = {
    "preset": pa.string(),
    "method": pa.string(),
    "norm": pa.string(),
    "eps_max": pa.float64(),
    "delta_eps": pa.float64(),
    "beta": pa.float64(),
    "margin_update": pa.string(),
    "epochs": pa.int64(),
    "batch_size": pa.int64(),
    "seed": pa.int64(),
    "data.subset": pa.int64(),
    "optimizer.name": pa.string(),
    "optimizer.lr": pa.float64(),
    "attack.steps": pa.int64(),
    "attack.bisections": pa.int64(),
    "trades.inverse_lambda": pa.float64(),
}
SCHEMAS = {
    "runs": pa.schema(
        [
            ("run", pa.string()),
            ("status", pa.string()),
            ("message", pa.string()),
            *((name.replace(".", "_"), kind) for name, kind in _OPTIONS.items()),
            # Every option by its dotted name, as JSON.
            ("options", pa.map_(pa.string(), pa.string())),
            ("fingerprint", pa.string()),
            ("parameters", pa.int64()),
            ("clean_accuracy", pa.float64()),
            ("epochs_done", pa.int64()),
            ("train_samples_per_second", pa.float64()),
            ("wall_seconds", pa.float64()),
            ("stamp", pa.string()),
        ]
    ),
    "curves": pa.schema(
        [
            ("run", pa.string()),
            *((name, pa.string()) for name in ("attack", "loss", "norm", "split")),
            ("epoch", pa.int64()),
            *((name, pa.float64()) for name in ("noise", "accuracy", "low95", "high95")),
            *((name, pa.int64()) for name in ("samples", "steps")),
            ("step_scale", pa.float64()),
            ("spsa_samples", pa.int64()),
        ]
    ),
    "history": pa.schema(
        [
            ("run", pa.string()),
            ("epoch", pa.int64()),
            *((name, pa.float64()) for name in ("train_loss", "train_accuracy", "val_accuracy")),
            *((name, pa.int64()) for name in ("noisy_samples", "evaluations")),
            *((name, pa.float64()) for name in ("train_seconds", "margin_seconds", "samples_per_second")),
            *((name, pa.float64()) for name in ("margin_mean", "share_at_max")),
            ("margin_quantiles", pa.list_(pa.float64())),
            ("margin_histogram", pa.list_(pa.int64())),
        ]
    ),
    # The newest snapshot: a row a training sample.
    "margins": pa.schema(
        [
            ("run", pa.string()),
            ("epoch", pa.int64()),
            ("index", pa.int64()),
            ("label", pa.int64()),
            ("margin", pa.float64()),
            ("correct", pa.bool_()),
            ("crossed", pa.bool_()),
        ]
    ),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A run's tables by kind ("margins" only if asked for), and a sentence for each file that could not be read."""

    tables: dict[str, pa.Table]
    problems: tuple[str, ...]


def root_of(run: RunDir, usual: Path) -> Path | None:
    """The results directory that a run lies in: the nearest one above it with a data set, or ``usual``."""
    for above in run.path.parents:
        if (above / FOLDER).is_dir() or above == usual.absolute():
            return above
    return None


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
    """Changes whenever the files that the data set repeats do: their times and sizes."""
    parts = []
    for path in (run.config_path, run.summary_path, run.history_path, run.margins_dir):
        try:
            found = os.stat(path)
            parts.append(f"{found.st_mtime_ns}:{found.st_size}")
        except OSError:
            parts.append("-")
    return " ".join(parts)


def read_run(name: str, run: RunDir, with_margins: bool = True) -> Part:
    """The tables of one run directory. A damaged part is named and left empty.

    Raises ConfigError or OSError if the configuration cannot be read: then it is not a run of ours.
    """
    stamp = stamp_of(run)  # before the files: what changes meanwhile is read again the next time
    config = run.config()
    problems: list[str] = []

    def part(read: Callable[[], Any], otherwise: Any) -> Any:
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                found = read()
            problems.extend(str(w.message) for w in warned)
            return found
        except (ConfigError, OSError) as error:
            problems.append(sentence(error))
            return otherwise

    summary = part(run.summary, None)
    tables = {
        "curves": part(lambda: curves_table(name, run, (summary or {}).get("curves")), _empty("curves")),
        "history": part(lambda: _history(name, run), _empty("history")),
    }
    tables["runs"] = _runs(name, config, summary, tables["history"], stamp)
    if with_margins:
        tables["margins"] = part(lambda: margins_table(name, run), _empty("margins"))
    return Part(tables, tuple(problems))


def write_run(root: Path, run: RunDir) -> tuple[str, ...]:
    """Bring a run's files in the data set of ``root`` up to date; a sentence for each damaged part.

    "runs" comes last: with its stamp it says that the others are there. Raises ConfigError, OSError.
    """
    name = name_of(root, run)
    part = read_run(name, run)
    for kind in ("margins", "history", "curves", "runs"):
        write_parquet(file_of(root, kind, name), part.tables[kind])
    return part.problems


def sentence(error: Exception) -> str:
    """An error that concerns a file, for the user."""
    if isinstance(error, OSError):
        return f"{error.filename} cannot be read ({error.strerror or error})."
    return str(error)


def _empty(kind: str) -> pa.Table:
    return SCHEMAS[kind].empty_table()


def _runs(name: str, config: Config, summary: dict[str, Any] | None, history: pa.Table, stamp: str) -> pa.Table:
    options = option_values(config)
    found = summary or {}
    status = "damaged" if summary is None else str(found.get("status") or "unfinished")
    message = found.get("message")
    row = {
        "run": name,
        "status": status,
        "message": None if message is None else str(message),
        **{option.replace(".", "_"): options[option] for option in _OPTIONS},
        "delta_eps": config.expansion,
        "options": [(option, json.dumps(value, ensure_ascii=False)) for option, value in options.items()],
        "fingerprint": config.fingerprint(),
        "epochs_done": history.num_rows,
        "stamp": stamp,
        **{
            key: _number(found.get(key))
            for key in ("parameters", "clean_accuracy", "train_samples_per_second", "wall_seconds")
        },
    }
    return pa.Table.from_pylist([row], schema=SCHEMAS["runs"])


def curves_table(name: str, run: RunDir, curves: Any) -> pa.Table:
    """The entries of summary.json as rows. Raises ConfigError if they are not what we write."""
    rows = []
    try:
        for c in curves or []:
            accuracy = c["accuracy"]
            sound = c["attack"] in ATTACKS and c["noise"] >= 0 and int(c["samples"]) > 0 and int(c["epoch"]) > 0
            if not sound or not 0 <= (accuracy or 0.0) <= 1:
                raise ValueError
            low, high = wilson_interval(accuracy, int(c["samples"])) if accuracy is not None else (None, None)
            names = [n for n in SCHEMAS["curves"].names if n not in ("run", "low95", "high95", "spsa_samples")]
            rows.append({"run": name, "low95": low, "high95": high, **{n: c[n] for n in names}})
            rows[-1]["spsa_samples"] = c.get("spsa_samples")
        return pa.Table.from_pylist(rows, schema=SCHEMAS["curves"])
    except (TypeError, KeyError, ValueError, AttributeError, pa.ArrowException):
        raise ConfigError(f"{run.summary_path} is damaged (curves): restore it from a copy.") from None


def _history(name: str, run: RunDir) -> pa.Table:
    if not run.history_path.exists():
        return _empty("history")
    return _fitted("history", name, read_parquet(run.history_path), run.history_path)


def margins_table(name: str, run: RunDir) -> pa.Table:
    """The run's newest snapshot in the schema of the data set, by index; empty if there is none."""
    newest = run.newest_margins()
    if newest is None:
        return _empty("margins")
    epoch, table = newest
    table = table.append_column("epoch", pa.array([epoch] * table.num_rows, pa.int64()))
    return _fitted("margins", name, table.sort_by("index"), run.margins_dir)


def _fitted(kind: str, name: str, table: pa.Table, path: Path) -> pa.Table:
    """The table with the columns of the schema: others left out, missing ones null, "run" put before them."""
    columns = []
    for field in SCHEMAS[kind]:
        if field.name == "run":
            columns.append(pa.array([name] * table.num_rows, field.type))
        elif field.name in table.column_names:
            try:
                columns.append(table[field.name].cast(field.type))
            except pa.ArrowException:
                raise ConfigError(f"{path} is damaged (column {field.name}): restore it from a copy.") from None
        elif field.name in ("epoch", "index", "margin"):
            raise ConfigError(f"{path} is damaged (no column {field.name}): restore it from a copy.")
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=SCHEMAS[kind])


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
