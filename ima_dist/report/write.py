"""Writes the files of a report."""

from __future__ import annotations

from pathlib import Path

from ima_dist.config.errors import ConfigError
from ima_dist.report.csvfiles import curves_csv, margins_csv, table_csv
from ima_dist.report.figures import draw
from ima_dist.report.page import page, table_file
from ima_dist.report.runs import collect
from ima_dist.report.tables import make_tables
from ima_dist.rundir.files import write_text_atomic


def write_report(paths: list[Path], out: Path) -> tuple[list[Path], list[str]]:
    """Report on the finished runs at and below ``paths`` into the directory ``out``; other files there stay.

    Returns the files written, report.html last, and a sentence for each run that was left out or is not
    complete. Raises ConfigError, with nothing written, if there is no finished run or ``out`` is a file;
    OSError if it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give another --out.")
    results, problems = collect(paths)
    if not results:
        raise ConfigError(" ".join(["There is no finished run to report on.", *problems]))
    tables = make_tables(results)
    files = {table_file(t.number): table_csv(t) for t in tables if t.number is not None}
    files["curves.csv"] = curves_csv(results)
    margins = margins_csv(results)
    if margins:
        files["margins.csv"] = margins
    files["report.html"] = page(results, tables, draw(results, tables), problems)
    for name, text in files.items():
        write_text_atomic(out / name, text)
    return [out / name for name in files], problems
