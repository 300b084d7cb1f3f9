"""One test sample under growing noise."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ima_dist.dashboard.choosing import choose_run, opened
from ima_dist.dashboard.parts import Grid, Note, Part, Plot, Values, notes
from ima_dist.dashboard.state import Control, State, number, one_of
from ima_dist.figures.interactive.margins import Names, class_name
from ima_dist.figures.interactive.sample import predictions_figure, sample_figure
from ima_dist.rundir.run import Arrays, Run
from ima_dist.tracking.collection import Collection

TITLE = "One sample"
INTRODUCTION = (
    "A test sample under growing noise, and the class that the network predicts (paper, Fig. 10). A run stores the "
    "images of a few samples, and the predictions for every sample that was attacked."
)
LIVE = False
_BOTH = "Of an attack with two losses (“both”), each noise level shows one that makes the sample wrong, if any does."
_OTHER = "other"


def controls(runs: Collection, state: State) -> list[Control]:
    able = [r for r in runs.runs.values() if r.dir.outcomes_path.exists()]
    chosen = choose_run(state, able)
    if chosen.value is None:
        return [chosen]
    arrays = opened(runs.runs[chosen.value]).noisy
    options, first = {}, None
    if arrays is not None:
        for place in np.argsort(arrays["index"], kind="stable").tolist():
            index, label = str(arrays["index"][place]), int(arrays["label"][place])
            options[index] = f"{index}: {class_name(arrays['class_names'], label)}"
            # One that an attack has something to break of.
            if first is None and arrays["clean_prediction"][place] == label:
                first = index
    title = "Test sample (index: true class, in the order of the index)"
    which = one_of(state, "sample", title, {**options, _OTHER: "by index"}, first)
    by_index = number(state, "index", "Index of the sample", 0, 1e9, 1, 0)
    return [chosen, which, by_index] if which.value == _OTHER else [chosen, which]


def show(runs: Collection, values: Values) -> list[Part]:
    if values["run"] is None:
        return [Note("No run has been evaluated yet.")]
    run = opened(runs.runs[values["run"]])
    index = int(values["index"] or 0) if values["sample"] == _OTHER else int(values["sample"])
    names = () if run.noisy is None else run.noisy["class_names"]
    predictions = notes(run.damaged("outcomes")) or _predictions(run, run.outcomes, index, names)
    return [*notes(run.damaged("noisy")), *_images(run.noisy, index), *predictions]


def _images(arrays: Arrays | None, index: int) -> list[Part]:
    if arrays is None:
        return []
    places = np.flatnonzero(arrays["index"] == index).tolist()
    if not places:
        return [Note(f"The run has no stored image of sample {index}.")]
    label = class_name(arrays["class_names"], int(arrays["label"][places[0]]))
    caption = (
        f"True class: {label}. Above each image is the predicted class; a cross and a thick frame mark a wrong one. "
        "Below is the difference to the clean image, grey where nothing changed."
    )
    heading = f"Sample {index} under pgd100 with cross-entropy alone"
    return [Plot("sample", heading, caption, sample_figure(arrays, places[0]))]


def _predictions(run: Run, outcomes: pa.Table | None, index: int, names: Names) -> list[Part]:
    wanted = {"index", "attack", "loss", "noise", "epoch", "label", "prediction"}
    if outcomes is None or not wanted <= set(outcomes.column_names):
        return [Note(f"{run.dir.outcomes_path} lacks columns.")]
    newest = pc.max(outcomes["epoch"]).as_py()
    own = outcomes.filter((pc.field("index") == index) & (pc.field("epoch") == newest))
    if not own.num_rows:
        return [Note(f"Sample {index} was not attacked.")]
    order = [(name, "ascending") for name in ("attack", "loss", "noise")]
    rows: list[dict[str, Any]] = own.sort_by(order).to_pylist()
    label = rows[0]["label"]
    true = class_name(names, label)
    for row in rows:
        predicted = row["prediction"]
        row |= {"true class": true, "predicted class": class_name(names, predicted), "right": predicted == label}
    columns = ["index", "attack", "loss", "noise", "true class", "predicted class", "right"]
    both = [r for r in rows if r["loss"] == "both"] or rows
    caption = f"Dashed: the true class, {true}. {_BOTH}"
    return [
        Plot("predictions", "Predicted class by noise level ε", caption, predictions_figure(both, label, names)),
        Grid("outcomes", "Every attack and loss", columns, rows),
    ]
