"""Writes the files of a report."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import OWN, PRESETS, data_name
from ima_dist.config.schema import EXTERNAL, METHODS, NORMS
from ima_dist.report.csvfiles import classes_csv, curves_csv, margins_csv, table_csv
from ima_dist.report.figures import draw
from ima_dist.report.page import page, table_file
from ima_dist.report.tables import make_tables
from ima_dist.rundir.files import why_unwritable, write_text_atomic
from ima_dist.rundir.finding import finished_runs
from ima_dist.rundir.run import Run

# The parts of a run that a report shows.
_PARTS = ("history", "margins", "outcomes", "certificates", "boundary", "noisy", "equilibrium_picture")


def write_report(paths: list[Path], out: Path) -> tuple[list[Path], list[str]]:
    """Report on the finished runs at and below ``paths`` into the directory ``out``; other files there stay.

    Returns the files written, report.html last, and a sentence for each run that was left out or is not
    complete. Raises ConfigError, with nothing written, if there is no finished run, or ``out`` is a file or
    holds files of the user's with the names of ours; OSError if it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give another --out.")
    if reason := why_unwritable(out / "report.html"):
        raise ConfigError(f"{out} cannot be written ({reason}): give another --out.")
    results, problems = collect(paths)
    if not results:
        raise ConfigError(" ".join(["There is no finished run to report on.", *problems]))
    tables = make_tables(results)
    files = {table_file(t.number): table_csv(t) for t in tables if t.number is not None}
    files["curves.csv"] = curves_csv(results)
    for name, text in (("margins.csv", margins_csv(results)), ("classes.csv", classes_csv(results))):
        if text:
            files[name] = text
    files["report.html"] = page(results, tables, draw(results, tables), problems)
    _check_place(out, files)
    # The page first: by it, the next report knows that the other files are not the user's.
    for name, text in sorted(files.items(), key=lambda file: file[0] != "report.html"):
        write_text_atomic(out / name, text)
    return [out / name for name in files], problems


def _check_place(out: Path, names: Iterable[str]) -> None:
    """Raise ConfigError if a file of one of these names in ``out`` is the user's, and not of an earlier report."""
    there = [out / name for name in names if (out / name).exists()]
    with contextlib.suppress(FileNotFoundError), (out / "report.html").open(encoding="utf-8", errors="replace") as file:
        if "<title>ima_dist report" in file.read(1 << 16):
            return
    if there:
        raise ConfigError(f"{there[0]} was not written by a report: give another --out.")


def collect(paths: list[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs at ``paths`` and below, by experiment and method, and a sentence for whatever is left out."""
    runs, problems = finished_runs(paths)
    known = [run for run in runs if run.config.preset in (*PRESETS, OWN)]
    unknown = [run for run in runs if run not in known]
    problems += [f"{run.dir.config_path} names the unknown preset {run.config.preset!r}." for run in unknown]
    problems += [text for run in known for text in run.damaged(*_PARTS)]
    return sorted(known, key=_order), problems


def _order(run: Run) -> tuple[Any, ...]:
    config = run.config
    where = (
        (*PRESETS, OWN).index(config.preset),
        data_name(config),
        NORMS.index(config.norm),
        (*METHODS, EXTERNAL).index(config.method),
    )
    return *where, config.eps_max, config.beta, config.seed, run.name
