"""The paper's tables (paper.csv), to compare runs with.

The text of the paper is a scan. ``legible`` is "yes", or "guess" where a digit was inferred; cells that cannot be read
have no accuracy and are left out.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources

from ima_dist.config.presets import is_the_papers, make_config, preset_config
from ima_dist.config.schema import Config

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
# Tables about a single question each, by (preset, norm).
_BETA_TABLE = {("fashion_mnist", "l2"): 13, ("fashion_mnist", "linf"): 14}
_BLACK_BOX_TABLE = {("mnist", "linf"): 9, ("cifar10", "linf"): 12}
_EPOCHS_TABLE = {
    ("fashion_mnist", "l2"): 16,
    ("fashion_mnist", "linf"): 17,
    ("svhn", "l2"): 18,
    ("svhn", "linf"): 19,
    ("cifar10", "l2"): 20,
    ("cifar10", "linf"): 21,
}
BETA_TABLES, BLACK_BOX_TABLES, EPOCHS_TABLES = (
    tuple(tables.values()) for tables in (_BETA_TABLE, _BLACK_BOX_TABLE, _EPOCHS_TABLE)
)
DATA_SETS = {
    "moons": "Moons",
    "fashion_mnist": "Fashion-MNIST",
    "svhn": "SVHN",
    "covid_ct": "COVID-19 CT",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
}
# Size of the test sets of section 3; Tables 9 and 12 use the first 100 samples of theirs.
_TEST_SAMPLES = {
    "moons": 2000,
    "fashion_mnist": 10000,
    "svhn": 26032,
    "covid_ct": 400,
    "mnist": 10000,
    "cifar10": 10000,
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


def cells(**wanted: str | int | None) -> list[Cell]:
    """The cells that match every field given, in the order of the paper; ``method`` as paper.csv spells it."""
    given = {name: value for name, value in wanted.items() if value is not None}
    return [cell for cell in _all_cells() if all(getattr(cell, k) == v for k, v in given.items())]


def curve(dataset: str, norm: str, method: str, eps: float | None = None) -> tuple[int, dict[float, float]] | None:
    """The number of the paper's main table for this experiment, and its row: noise level -> test accuracy.

    ``method`` is our name. On MNIST and CIFAR-10, where the paper has two seeds, it is the first. ``eps`` selects the
    row of adv and rand (adv0.1, adv0.2, …) and is ignored for other methods. None if the paper has no such row.
    """
    table = _MAIN_TABLE.get((dataset, norm))
    if table is None:
        return None
    name = _row_name(table, method, eps, seed=0)
    row = {c.noise: c.accuracy for c in cells(table=table, split="test") if c.method == name}
    return (table, row) if row else None


def row_of(config: Config) -> tuple[int, dict[float, float]] | None:
    """``curve`` for a run's configuration; also None if its data or network are not the paper's."""
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


def title(table: int) -> str:
    """The title of a table of the paper, such as ``Table 2: Fashion-MNIST, L∞ noise``."""
    cell = cells(table=14 if table == 15 else table)[0]
    sign = {"linf": "L∞", "l2": "L2"}[cell.norm]
    subject = ""
    if table in BLACK_BOX_TABLES:
        subject = "; black-box and white-box attack on the first 100 test samples"
    elif table in BETA_TABLES:
        subject = "; the effect of β"
    elif table == 15:
        subject = "; accuracy differences caused by β"
    elif table in EPOCHS_TABLES:
        subject = "; the effect of ε_max, from one run"
    return f"Table {table}: {DATA_SETS[cell.dataset]}, {sign} noise{subject}"


def size_of_test_set(preset: str, table: int | None = None) -> int:
    """The number of test samples that the paper attacked: all of the test set, or 100 in Tables 9 and 12."""
    return 100 if table in BLACK_BOX_TABLES else _TEST_SAMPLES[preset]


def rows_of(config: Config) -> dict[int, str]:
    """The paper's tables that a run belongs in -> its row there, as paper.csv spells it.

    For Tables 16 to 21, whose rows are epochs, see ``epoch_row_name``. On MNIST and CIFAR-10 a row has a seed; one that
    the paper lacks gets a name of the same form. {} for a run with other data or another network.
    """
    where = (config.preset, config.norm)
    if where not in _MAIN_TABLE or not is_the_papers(config):
        return {}
    usual = preset_config(config)
    if config.method not in ("adv", "rand", "ce") and not math.isclose(config.eps_max, usual.eps_max, rel_tol=1e-6):
        return {}
    found: dict[int, str | None] = {}
    if config.method != "ima" or config.beta == usual.beta:
        for tables in (_MAIN_TABLE, _BLACK_BOX_TABLE):
            if where in tables:
                found[tables[where]] = _row_name(tables[where], config.method, config.eps_max, config.seed)
    if config.method == "ima" and where in _BETA_TABLE:
        name = f"beta={config.beta:g}"
        found[_BETA_TABLE[where]] = name if cells(table=_BETA_TABLE[where], method=name) else None
    return {table: name for table, name in found.items() if name is not None}


def epoch_row_name(config: Config, epoch: int) -> tuple[int, str] | None:
    """The table (16 to 21) and row for the network of an ima run after ``epoch`` epochs; None for other runs.

    In a shorter run a row stands for the same share of the epochs. An epoch that the paper lacks gets a name of the
    same form.
    """
    where = (config.preset, config.norm)
    if config.method != "ima" or where not in _EPOCHS_TABLE or _MAIN_TABLE[where] not in rows_of(config):
        return None
    table, whole = _EPOCHS_TABLE[where], preset_config(config).epochs
    theirs = {int(cell.method[len("epsmax=") : -len("de")]) for cell in cells(table=table)}
    same = [e for e in sorted(theirs) if max(1, round(e * config.epochs / whole)) == epoch]
    best = min(same, key=lambda e: abs(e / whole - epoch / config.epochs), default=epoch)
    return table, f"epsmax={best}de"


def _row_name(table: int, method: str, eps: float | None, seed: int) -> str | None:
    for name in dict.fromkeys(cell.method for cell in cells(table=table)):
        if name == method:
            return name
        if method == "ima" and re.fullmatch(r"ima_s\d", name):
            return f"ima_s{seed}"
        if method == "mma" and (match := re.fullmatch(r"(mma-.+-sd)\d", name)):
            return f"{match[1]}{seed}"
        level = name.removeprefix(method)
        noisy = method in ("adv", "rand") and level != name and eps is not None
        if noisy and math.isclose(float(level), eps or 0.0, rel_tol=1e-6):
            return name
    return None


@functools.cache
def _all_cells() -> tuple[Cell, ...]:
    text = (resources.files("ima_dist.results") / "paper.csv").read_text(encoding="utf-8")
    return tuple(
        # Noise is written as "4/255" as well as "0.05".
        Cell(int(row.pop("table")), noise=float(Fraction(row.pop("noise"))), accuracy=float(row.pop("accuracy")), **row)
        for row in csv.DictReader(text.splitlines())
        if row["accuracy"]
    )
