"""Finding finished runs and reading what a report shows of them."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ima_dist.config.attacks import ATTACKS
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import PRESETS
from ima_dist.config.schema import METHODS, NORMS, Config
from ima_dist.results import obfuscation
from ima_dist.results.table import attack_rows
from ima_dist.rundir.arrays import read_boundary, read_noisy
from ima_dist.rundir.directory import RunDir

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Result:
    """One finished run. What it does not have is None or empty.

    name: its directory, below what all runs of the report have in common. margins: epoch, and the margins (N,)
    of the training samples after it. boundary, noisy: the arrays of examples/. equilibrium: a PNG file.
    """

    name: str
    config: Config
    summary: dict[str, Any]
    curves: list[dict[str, Any]]
    history: list[dict[str, Any]]
    margins: tuple[int, np.ndarray] | None
    boundary: dict[str, np.ndarray] | None
    noisy: dict[str, np.ndarray] | None
    levels: list[obfuscation.Level]
    equilibrium: bytes | None


def collect(paths: list[Path]) -> tuple[list[Result], list[str]]:
    """The finished runs at ``paths`` and below, by experiment and method; a sentence for each other or damaged one."""
    problems: list[str] = []
    places = list(dict.fromkeys(place for path in paths for place in find_runs(path.absolute(), problems)))
    found: dict[Path, Result] = {}
    for place in places:
        try:
            found[place] = _read(place, problems)
        except (ConfigError, OSError) as error:
            problems.append(_sentence(error))
    common = os.path.commonpath([place.parent for place in found]) if found else ""
    results = [dataclasses.replace(r, name=os.path.relpath(place, common)) for place, r in found.items()]
    return sorted(results, key=_order), problems


def _order(result: Result) -> tuple[Any, ...]:
    config = result.config
    where = PRESETS.index(config.preset), NORMS.index(config.norm), METHODS.index(config.method)
    return *where, config.eps_max, config.beta, config.seed, result.name


def find_runs(path: Path, problems: list[str]) -> list[Path]:
    """The run directories at ``path`` and below, not searched further; adds a sentence for what cannot be searched."""
    if not path.is_dir():
        problems.append(f"{path} is not a directory.")
        return []
    places = []
    for here, directories, files in os.walk(path, onerror=lambda error: problems.append(_sentence(error))):
        if {"config.yaml", "summary.json"} & set(files):
            places.append(Path(here).resolve())
            directories.clear()
        directories.sort()
    if not places:
        problems.append(f"{path} holds no run.")
    return places


def _read(place: Path, problems: list[str]) -> Result:
    run = RunDir.open(place)
    config = run.config()
    if config.preset not in PRESETS:
        raise ConfigError(f"{run.config_path} names the unknown preset {config.preset!r}.")
    summary = run.summary()
    if run.status != "finished":
        raise ConfigError(f"{place} is not finished (status: {run.status}).")
    curves = checked_curves(run, summary)

    def part(read: Callable[[], _T], otherwise: _T) -> _T:
        """A damaged part is named and left out; the run is shown without it."""
        try:
            return read()
        except (ConfigError, OSError) as error:
            problems.append(_sentence(error))
            return otherwise

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        margins = part(lambda: _margins(run), None)
    problems += [str(w.message) for w in warned]
    return Result(
        name=place.name,
        config=config,
        summary=summary,
        curves=curves,
        history=part(lambda: _history(run), []),
        margins=margins,
        boundary=part(lambda: read_boundary(run), None),
        noisy=part(lambda: read_noisy(run), None),
        levels=part(lambda: obfuscation.levels_of(run, config.epochs), []),
        equilibrium=part(lambda: _picture(run.figures_dir / "equilibrium.png"), None),
    )


def checked_curves(run: RunDir, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """``curves`` of summary.json. Raises ConfigError if they are damaged, or none is an accuracy under attack."""
    curves = summary.get("curves") or []
    try:
        for c in curves:
            numbers = c["noise"], 0.0 if c["accuracy"] is None else c["accuracy"]
            sound = c["attack"] in ATTACKS and all(isinstance(v, int | float) for v in numbers)
            sound = sound and 0 <= numbers[1] <= 1 and int(c["samples"]) > 0 and int(c["epoch"]) > 0
            if not sound or not {"loss", "norm", "split", "steps", "step_scale"} <= set(c):
                raise ValueError
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ConfigError(f"{run.summary_path} is damaged (curves): restore it from a copy.") from None
    if not attack_rows(curves):
        raise ConfigError(f"{run.path} has no accuracy under attack: run python -m ima_dist.evaluate on it.")
    return list(curves)


def _history(run: RunDir) -> list[dict[str, Any]]:
    history = run.read_history()
    if not all({"epoch", "train_accuracy", "val_accuracy"} <= set(row) for row in history):
        raise ConfigError(f"{run.history_path} is damaged (columns are missing): restore it from a copy.")
    return history


def _margins(run: RunDir) -> tuple[int, np.ndarray] | None:
    newest = run.newest_margins()
    return None if newest is None else (newest[0], newest[1].column("margin").to_numpy())


def _picture(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename} cannot be read ({error.strerror or error})."
    return str(error)
