"""What runs are called, and which can be chosen."""

from __future__ import annotations

from ima_dist.dashboard.state import Choice, Several, State, one_of, some_of
from ima_dist.tracking.collection import Collection, Recorded

_FIRST = 5


def label(run: Recorded) -> str:
    """A run in a list."""
    info = run.info
    level = f" {info['eps_max']:g}" if info["method"] in ("adv", "rand") else ""
    return f"{run.name} ({info['preset']}, {info['norm']}, {info['method']}{level}, seed {info['seed']})"


def choose_runs(runs: Collection, state: State, able: list[Recorded]) -> Several:
    """Any of the runs that have what a view shows; at first those that come first and can be compared."""
    alike = [
        r.name for r in able if [r.info[k] for k in ("preset", "norm")] == [able[0].info[k] for k in ("preset", "norm")]
    ]
    return some_of(state, "runs", "Runs", {r.name: label(r) for r in able}, alike[:_FIRST])


def choose_run(runs: Collection, state: State, able: list[Recorded]) -> Choice:
    """One of the runs that have what a view shows; at first the first of those chosen in other views."""
    options = {r.name: label(r) for r in able}
    default = next((name for name in state.get("runs", []) if name in options), None)
    return one_of(state, "run", "Run", options, default, long=True)
