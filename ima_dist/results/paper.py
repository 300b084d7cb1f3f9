"""The paper's tables (paper.csv), to set beside a run's own figures.

The text of the paper is a scan. ``legible`` says "yes", or "guess" where a digit was inferred; cells that
cannot be read have no accuracy and are left out.
"""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources

from ima_dist.config import Config
from ima_dist.presets import is_the_papers, make_config

# (preset, norm) -> the table that holds the experiment's main result on the test set (appendices B and D).
_MAIN_TABLE = {
    ("moons", "linf"): 1,
    ("fashion_mnist", "linf"): 2,
    ("fashion_mnist", "l2"): 3,
    ("svhn", "linf"): 4,
    ("svhn", "l2"): 5,
    ("covid_ct", "linf"): 6,
    ("mnist", "l2"): 7,
    ("mnist", "linf"): 8,
    ("cifar10", "l2"): 10,
    ("cifar10", "linf"): 11,
}


@dataclass(frozen=True)
class Cell:
    """One accuracy of a table. ``noise`` is a radius in ``norm``, in units of the data."""

    table: int
    dataset: str
    norm: str
    attack: str
    split: str
    method: str
    noise: float
    accuracy: float
    legible: str


def cells(
    table: int | None = None,
    dataset: str | None = None,
    norm: str | None = None,
    method: str | None = None,
    attack: str | None = None,
    split: str | None = None,
) -> list[Cell]:
    """Cells that match everything given, in the order of the paper; ``method`` as paper.csv spells it."""
    wanted = {
        "table": table,
        "dataset": dataset,
        "norm": norm,
        "method": method,
        "attack": attack,
        "split": split,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    return [cell for cell in _all_cells() if all(getattr(cell, k) == v for k, v in given.items())]


def curve(dataset: str, norm: str, method: str, eps: float | None = None) -> tuple[int, dict[float, float]] | None:
    """Number of the paper's main table for this experiment, and its row: noise level -> test accuracy.

    ``method`` is our name. Of the paper's two seeds on MNIST and CIFAR-10 the first is taken. ``eps`` picks
    the row of adv and rand (adv0.1, adv0.2, …) and is ignored for the others. None if the paper has no such
    row.
    """
    table = _MAIN_TABLE.get((dataset, norm))
    if table is None:
        return None
    row = {c.noise: c.accuracy for c in cells(table=table, split="test") if _is_row(c.method, method, eps)}
    return (table, row) if row else None


def row_of(config: Config) -> tuple[int, dict[float, float]] | None:
    """``curve`` for a run's configuration; None also if it has other data or another network than the paper."""
    return curve(config.preset, config.norm, config.method, config.eps_max) if is_the_papers(config) else None


def epoch_row(config: Config, epoch: int) -> tuple[int, dict[float, float], float] | None:
    """Table, row and clean validation accuracy of the paper's model after ``epoch`` epochs (Tables 16 to 21).

    None unless the run is the paper's own experiment, ima with the paper's margin expansion.
    """
    if config.method != "ima" or not is_the_papers(config):
        return None
    if not math.isclose(config.expansion, make_config(config.preset, {"norm": config.norm}).expansion):
        return None
    found = cells(dataset=config.preset, norm=config.norm, method=f"epsmax={epoch}de")
    clean = [cell.accuracy for cell in found if cell.split == "validation"]
    row = {cell.noise: cell.accuracy for cell in found if cell.split == "test"}
    return (found[0].table, row, clean[0]) if row and clean else None


def attack_of(table: int) -> str:
    """The attack that a main table of the paper was made with: pgd100, or pgd-mma for MNIST and CIFAR-10."""
    return cells(table=table)[0].attack


def _is_row(name: str, method: str, eps: float | None) -> bool:
    if method in ("adv", "rand"):
        level = name.removeprefix(method)
        return eps is not None and level != name and math.isclose(float(level), eps, rel_tol=1e-6)
    first_seed = {"ima": name == "ima_s0", "mma": name.startswith("mma-") and name.endswith("-sd0")}
    return name == method or first_seed.get(method, False)


@functools.cache
def _all_cells() -> tuple[Cell, ...]:
    text = (resources.files("ima_dist.results") / "paper.csv").read_text(encoding="utf-8")
    return tuple(
        Cell(
            table=int(row["table"]),
            dataset=row["dataset"],
            norm=row["norm"],
            attack=row["attack"],
            split=row["split"],
            method=row["method"],
            noise=float(Fraction(row["noise"])),  # "4/255" as well as "0.05"
            accuracy=float(row["accuracy"]),
            legible=row["legible"],
        )
        for row in csv.DictReader(text.splitlines())
        if row["accuracy"]
    )
