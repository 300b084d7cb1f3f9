"""One test sample under growing noise."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ima_dist.dashboard.files import opened
from ima_dist.dashboard.names import choose_run
from ima_dist.dashboard.parts import Grid, Note, Part, Plot, Values
from ima_dist.dashboard.state import Control, State, number, one_of
from ima_dist.figures.interactive.margins import class_name
from ima_dist.figures.interactive.sample import predictions_figure, sample_figure
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection

TITLE = "Sample"
INTRODUCTION = (
    "A test sample, what the attack makes of it, and what the network takes it for (paper, Fig. 10). A run keeps the "
    "images of a few samples, and the predictions for all that were attacked."
)
_OTHER = "other"


def controls(runs: Collection, state: State) -> list[Control]:
    able = [r for r in runs.runs.values() if r.dir.outcomes_path.exists()]
    chosen = choose_run(runs, state, able)
    if chosen.value is None:
        return [chosen]
    arrays = opened(runs.runs[chosen.value]).noisy
    options = {}
    if arrays is not None:
        names = [str(n) for n in arrays["class_names"]]
        for index, label in zip(arrays["index"].tolist(), arrays["label"].tolist(), strict=True):
            options[str(index)] = f"{index}: {class_name(names, label)}"
    options[_OTHER] = "by number"
    which = one_of(state, "sample", "Test sample", options)
    return [
        chosen,
        which,
        *([number(state, "index", "Number of the sample", 0, 1e9, 1, 0)] if which.value == _OTHER else []),
    ]


def show(runs: Collection, values: Values) -> list[Part]:
    if values["run"] is None:
        return [Note("No run has been evaluated yet.")]
    run = opened(runs.runs[values["run"]])
    index = int(values["index"] or 0) if values["sample"] == _OTHER else int(values["sample"])
    parts: list[Part] = [Note(text) for text in run.damaged("noisy")]
    arrays = run.noisy
    names: list[str] = []
    if arrays is not None:
        names = [str(n) for n in arrays["class_names"]]
        place = arrays["index"].tolist().index(index) if index in arrays["index"].tolist() else None
        if place is None:
            parts.append(Note(f"The run has kept no image of sample {index}."))
        else:
            label = class_name(names, int(arrays["label"][place]))
            caption = (
                f"True class: {label}. Above each image the predicted class; a cross and a thick frame mark a wrong "
                "one. Below, the difference to the clean image, which is grey where nothing changed."
            )
            parts.append(
                Plot("sample", f"Sample {index} under PGD with cross-entropy", caption, sample_figure(arrays, place))
            )
    damaged = [Note(text) for text in run.damaged("outcomes")]
    return [*parts, *(damaged or _predictions(run, run.outcomes, index, names))]


def _predictions(run: Run, outcomes: pa.Table | None, index: int, names: list[str]) -> list[Part]:
    wanted = {"index", "attack", "loss", "noise", "epoch", "label", "prediction"}
    if outcomes is None or not wanted <= set(outcomes.column_names):
        return [Note(f"{run.dir.outcomes_path} lacks columns.")]
    newest = pc.max(outcomes["epoch"]).as_py()
    own = outcomes.filter((pc.field("index") == index) & (pc.field("epoch") == newest))
    if not own.num_rows:
        return [Note(f"Sample {index} was not attacked.")]
    rows: list[dict[str, Any]] = own.sort_by(
        [("attack", "ascending"), ("loss", "ascending"), ("noise", "ascending")]
    ).to_pylist()
    label = rows[0]["label"]
    for row in rows:
        row["true class"] = class_name(names, label)
        row["predicted class"] = class_name(names, row["prediction"])
        row["right"] = row["prediction"] == label
    columns = ["index", "attack", "loss", "noise", "true class", "predicted class", "right"]
    both = [r for r in rows if r["loss"] == "both"] or rows
    caption = f"Dashed: the true class, {class_name(names, label)}. Of the two losses of an attack, the worse."
    return [
        Plot("predictions", "Predicted class by noise level", caption, predictions_figure(both, label, names)),
        Grid("outcomes", "Every attack and loss", columns, rows),
    ]
