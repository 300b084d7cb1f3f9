"""The paper's tables (paper.csv), to compare runs with.

The text of the paper is a scan. ``legible`` is "yes", or "guess" where a digit was inferred; cells that cannot be read
have no accuracy and are left out.
"""

import csv
import functools
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources

from ima_dist.config.presets import is_the_papers, make_config, preset_config
from ima_dist.config.schema import Config
from ima_dist.results.text import NORM_SIGN

# The tables with the main result of an experiment on the test set (appendices B and D).
_MAIN_TABLES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 11)
# Tables about a single question each.
BETA_TABLES, BLACK_BOX_TABLES, EPOCHS_TABLES = (13, 14), (9, 12), (16, 17, 18, 19, 20, 21)
DATA_SETS = {
    "moons": "Moons",
    "fashion_mnist": "Fashion-MNIST",
    "svhn": "SVHN",
    "covid_ct": "COVID-19 CT",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "pathmnist": "PathMNIST",  # of the journal article
}
# Ding et al. 2020, and their released code.
_MMA_PAPERS = {
    "mnist": "Adam at a learning rate of 1e-4, batches of 50, 100,000 steps and 40 PGD steps, and took the checkpoint "
    "with the largest mean margin on validation samples",
    "cifar10": "a learning rate of 0.3 that falls to 0.09, 0.03 and 0.009, weight decay 2e-4 and 50,000 steps, and "
    "took the checkpoint with the largest mean margin on validation samples",
}
# Size of the test sets; Tables 9 and 12 use the first 100 samples of theirs.
_TEST_SAMPLES = dict(zip(DATA_SETS, (2000, 10000, 26032, 400, 10000, 10000, 7180), strict=True))


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
    table = _table(_MAIN_TABLES, dataset, norm)
    if table is None:
        return None
    name = _row_name(table, method, eps, seed=0)
    row = {c.noise: c.accuracy for c in cells(table=table, split="test") if c.method == name}
    return (table, row) if row else None


def row_of(config: Config) -> tuple[int, dict[float, float]] | None:
    """``curve`` for a run's configuration; also None if its data or network are not the paper's."""
    return curve(config.preset, config.norm, config.method, config.eps_max) if is_the_papers(config) else None


def copied(config: Config) -> str | None:
    """How the experiment behind the paper's rows differs from this run, if the paper copied them from elsewhere.

    The rows of mma in Tables 7, 8, 10 and 11 are from the MMA paper (appendix D), whose settings ours are not: its
    learning rate changes at steps, and its checkpoint is the best one on validation samples.
    """
    theirs = _MMA_PAPERS.get(config.preset) if config.method == "mma" and rows_of(config) else None
    return theirs and (
        "trained with the settings of ima; the paper's rows of mma are the MMA paper's, which trained with " + theirs
    )


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
    subjects = {
        **dict.fromkeys(BLACK_BOX_TABLES, "; black-box and white-box attack on the first 100 test samples"),
        **dict.fromkeys(BETA_TABLES, "; the effect of β"),
        15: "; accuracy differences caused by β",
        **dict.fromkeys(EPOCHS_TABLES, "; the effect of ε_max, from one run"),
    }
    cell = cells(table=14 if table == 15 else table)[0]
    return f"Table {table}: {DATA_SETS[cell.dataset]}, {NORM_SIGN[cell.norm]} noise{subjects.get(table, '')}"


def size_of_test_set(preset: str, table: int | None = None) -> int:
    """The number of test samples that the paper attacked: all of the test set, or 100 in Tables 9 and 12."""
    return 100 if table in BLACK_BOX_TABLES else _TEST_SAMPLES[preset]


def rows_of(config: Config) -> dict[int, str]:
    """The paper's tables that a run belongs in -> its row there, as paper.csv spells it.

    For Tables 16 to 21, whose rows are epochs, see ``epoch_row_name``. On MNIST and CIFAR-10 a row has a seed; one that
    the paper lacks gets a name of the same form. {} for a run with other data or another network.
    """
    kinds = (_MAIN_TABLES, BLACK_BOX_TABLES, BETA_TABLES)
    main, black_box, beta = (_table(tables, config.preset, config.norm) for tables in kinds)
    if main is None or not is_the_papers(config):
        return {}
    usual = preset_config(config)
    if config.method == "ima" and config.margin_rule != usual.margin_rule:
        return {}
    if config.method not in ("adv", "rand", "ce") and not math.isclose(config.eps_max, usual.eps_max, rel_tol=1e-6):
        return {}
    found: dict[int, str | None] = {}
    if config.method != "ima" or config.beta == usual.beta:
        for table in (main, black_box):
            if table is not None:
                found[table] = _row_name(table, config.method, config.eps_max, config.seed)
    if config.method == "ima" and beta is not None:
        name = f"beta={config.beta:g}"
        found[beta] = name if cells(table=beta, method=name) else None
    return {table: name for table, name in found.items() if name is not None}


def epoch_row_name(config: Config, epoch: int) -> tuple[int, str] | None:
    """The table (16 to 21) and row for the network of an ima run after ``epoch`` epochs; None for other runs.

    In a shorter run a row stands for the same share of the epochs. An epoch that the paper lacks gets a name of the
    same form.
    """
    table = _table(EPOCHS_TABLES, config.preset, config.norm)
    if config.method != "ima" or table is None or not rows_of(config).keys() & {*_MAIN_TABLES}:
        return None
    whole = preset_config(config).epochs
    theirs = {int(cell.method[len("epsmax=") : -len("de")]) for cell in cells(table=table)}
    same = [e for e in sorted(theirs) if max(1, round(e * config.epochs / whole)) == epoch]
    best = min(same, key=lambda e: abs(e / whole - epoch / config.epochs), default=epoch)
    return table, f"epsmax={best}de"


@functools.cache
def _table(tables: tuple[int, ...], dataset: str, norm: str) -> int | None:
    """The one of these tables that has results of an experiment; None if there is none."""
    return next((table for table in tables if cells(table=table, dataset=dataset, norm=norm)), None)


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
