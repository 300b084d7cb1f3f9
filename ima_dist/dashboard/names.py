"""Labels of runs, and the controls that choose among them."""

from ima_dist.dashboard.state import Choice, Several, State, one_of, some_of
from ima_dist.tracking.collection import Recorded

_FIRST = 5


def label(run: Recorded) -> str:
    """The label of a run in a list."""
    info = run.info
    level = f" {info['eps_max']:g}" if info["method"] in ("adv", "rand") else ""
    return f"{run.name} ({info['preset']}, {info['norm']}, {info['method']}{level}, seed {info['seed']})"


def choose_runs(state: State, able: list[Recorded]) -> Several:
    """Any of the runs that a view can show; by default the first few that can be compared with one another."""
    first = [(r.info["preset"], r.info["norm"]) for r in able[:1]]
    alike = [r.name for r in able if (r.info["preset"], r.info["norm"]) in first]
    return some_of(state, "runs", "Runs", {r.name: label(r) for r in able}, alike[:_FIRST])


def choose_run(state: State, able: list[Recorded]) -> Choice:
    """One of the runs that a view can show; by default the first of those chosen in other views."""
    options = {r.name: label(r) for r in able}
    default = next((name for name in state.get("runs", []) if name in options), None)
    return one_of(state, "run", "Run", options, default, long=True)
