"""The runs of a view: their labels, the controls that choose among them, and what their directories hold."""

import functools
import os
from collections.abc import Collection as Some
from dataclasses import replace
from pathlib import Path

from ima_dist.config.attacks import ATTACKS, STRICTEST_FIRST
from ima_dist.config.presets import data_name_of
from ima_dist.dashboard.state import Choice, Several, State, one_of, some_of
from ima_dist.dashboard.terms import about_attack, attack_label
from ima_dist.results.same_data import data_sets
from ima_dist.results.text import NORM_SIGN
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection, Recorded

_FIRST = 5
_LOOK_SECONDS = 2.0


def look(runs: Collection) -> Collection:
    """A copy of the runs as they are now, which does not change during a request."""
    runs.refresh(_LOOK_SECONDS)
    return Collection(runs.root, runs.runs, runs.problems)


def label(run: Recorded) -> str:
    """The label of a run in a list."""
    info = run.info
    level = f" {info['eps_max']:g}" if info["method"] in ("adv", "rand") else ""
    norm = NORM_SIGN.get(info["norm"], info["norm"])
    return f"{run.name} ({data_name_of(run.options)}, {norm}, {info['method']}{level}, seed {info['seed']})"


def choose_runs(state: State, able: list[Recorded]) -> Several:
    """Any of the runs that a view can show; by default the first few that can be compared with one another."""
    kinds = list(zip(data_sets(able), (r.info["norm"] for r in able), strict=True))
    alike = [r.name for r, kind in zip(able, kinds, strict=True) if kind == kinds[0]]
    return some_of(state, "runs", "Runs", {r.name: label(r) for r in able}, alike[:_FIRST])


def choose_run(state: State, able: list[Recorded]) -> Choice:
    """One of the runs that a view can show; by default the first of those chosen in other views."""
    options = {r.name: label(r) for r in able}
    default = next((name for name in state.get("runs", []) if name in options), None)
    return one_of(state, "run", "Run", options, default, long=True)


def choose_attack(state: State, found: Some[str], default: str | None = None) -> Choice:
    """One of the attacks ``found``, in the order that they have everywhere: the paper's first."""
    able = [name for name in ATTACKS if name in found]
    chosen = one_of(state, "attack", "Attack", {name: attack_label(name) for name in able}, default)
    return replace(chosen, about={name: about_attack(name) for name in able})


def strictest(found: Some[str]) -> str | None:
    return next((name for name in STRICTEST_FIRST if name in found), None)


def opened(run: Run) -> Run:
    """The run with what its directory holds now. The last few are kept, as one page asks several times."""
    dir = run.dir
    files = (dir.config_path, dir.summary_path, dir.history_path, dir.margins_dir, dir.outcomes_path, dir.audit_path)
    examples = (dir.boundary_path, dir.noisy_path, dir.extremes_path, dir.flips_path)
    return _opened(dir.path, run.name, tuple(map(_stamp, (*files, *examples))))


@functools.lru_cache(maxsize=8)
def _opened(path: Path, name: str, stamps: tuple[tuple[int, int] | None, ...]) -> Run:
    return Run(RunDir(path), name)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
        return found.st_mtime_ns, found.st_size
    except OSError:
        return None
