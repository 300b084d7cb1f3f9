"""The decision boundary of runs on two-dimensional data."""

from dataclasses import replace

from ima_dist.dashboard.choosing import choose_runs, opened
from ima_dist.dashboard.parts import Note, Part, Plot, Values, notes
from ima_dist.dashboard.state import Control, State
from ima_dist.figures.interactive.boundary import boundary_figure
from ima_dist.tracking.collection import Collection

TITLE = "Boundary"
INTRODUCTION = "Decision boundary of the network on two-dimensional data (paper, Fig. 6)."
LIVE = False


def controls(runs: Collection, state: State) -> list[Control]:
    able = [r for r in runs.runs.values() if r.dir.boundary_path.exists()]
    chosen = choose_runs(state, able)
    return [replace(chosen, label="Run") if len(chosen.value) == 1 else chosen]


def show(runs: Collection, values: Values) -> list[Part]:
    parts: list[Part] = []
    for i, name in enumerate(values["runs"]):
        run = opened(runs.runs[name])
        parts += notes(run.damaged("boundary"))
        if run.boundary is not None:
            caption = "Tinted: the regions of the two classes. Circles and crosses: training samples."
            parts.append(Plot(f"boundary{i}", name, caption, boundary_figure(run.boundary)))
    return parts or [Note("No finished run has two-dimensional data. To train one: python -m ima_dist.train moons")]
