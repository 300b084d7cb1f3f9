"""The job files of the paper's tables."""

from __future__ import annotations

from pathlib import Path

from tests.support.commands import ROOT

TABLES = [n for n in range(1, 22) if n != 15]


def table_file(table: int) -> Path:
    return ROOT / "jobs" / f"table{table:02d}.yaml"
