"""Which test samples are misclassified first: a list by class, with the images of the first."""

from typing import Any

import numpy as np

from ima_dist.config.errors import ConfigError
from ima_dist.dashboard.choosing import choose_attack, choose_run, opened, strictest
from ima_dist.dashboard.parts import Gallery, Grid, Note, Part, Picture, Plot, Values, notes
from ima_dist.dashboard.state import Control, State, one_of, slider, unparse
from ima_dist.dashboard.terms import named, under
from ima_dist.figures.interactive.flips import confidence_figure, lost_figure
from ima_dist.figures.interactive.style import channels_first, in_unit_range, png_source
from ima_dist.results.by_class import class_names, name_of
from ima_dist.results.flips import Flips, clean_confidence, read_flips
from ima_dist.rundir.curves import attack_rows, format_noise
from ima_dist.rundir.run import Arrays, Run
from ima_dist.tracking.collection import Collection

TITLE = "Samples"
INTRODUCTION = "The test samples that an attack breaks first, each with the smallest noise level ε that breaks it."
LIVE = False
_PAGE, _IMAGES = 25, 12
_PAGES = f"Page of the table, {_PAGE} samples each"
_ALL, _FROM = "all", "misclassified from noise level ε"
_ORDERS = {"first": "misclassified first", "last": "misclassified last", "index": "index"}


def controls(runs: Collection, state: State) -> list[Control]:
    able = [run for run in runs.runs.values() if run.curves_table.num_rows and run.dir.outcomes_path.exists()]
    chosen = choose_run(state, able)
    if chosen.value is None:
        return [chosen]
    run = opened(runs.runs[chosen.value])
    rows = attack_rows(run.points)
    attack = choose_attack(state, rows, strictest(rows))
    flips = _flips(run, attack.value)[0]
    names = {} if flips is None else {str(n): _name(run, n) for n in np.unique(flips.label).tolist()}
    label = one_of(state, "label", "Class", {_ALL: "all", **names}, long=len(names) > 4)
    pages = 1 if flips is None else max(1, -(-len(_chosen(flips, label.value)) // _PAGE))
    order = one_of(state, "order", "Order", _ORDERS)
    found: list[Control] = [chosen, attack, label, order]
    return [*found, slider(state, "page", _PAGES, 1, pages, 1)] if pages > 1 else found


def show(runs: Collection, values: Values) -> list[Part]:
    if values["run"] is None:
        return [Note("No run has been attacked yet.")]
    run = opened(runs.runs[values["run"]])
    flips, problem = _flips(run, values["attack"])
    if flips is None:
        return [Note(problem or "The outcomes of this attack are not stored.")]
    names = [_name(run, n) for n in range(int(flips.label.max()) + 1)]
    confidence = clean_confidence(run)
    parts = _images(run, values["label"], values["attack"])
    caption = (
        f"{under(values['attack']).capitalize()}. “Never”: right at every level up to {format_noise(flips.levels[-1])}."
    )
    figure = lost_figure(flips.lost, flips.label, flips.levels, names)
    parts.append(Plot("lost", "Noise level ε at which samples are misclassified", caption, figure))
    known = np.array([confidence.get(index, np.nan) for index in flips.index.tolist()])
    there = np.isfinite(known)
    if there.any():
        figure = confidence_figure(known[there], flips.lost[there], flips.label[there], flips.levels, names)
        caption = "Margin of probability: that of the true class less that of the likeliest other one."
        parts.append(Plot("confidence", "Margin of probability against noise level ε", caption, figure))
    return [*parts, _table(run, flips, confidence, values)]


def _name(run: Run, number: int) -> str:
    names = class_names(run) or (() if run.flips is None else run.flips["class_names"].tolist())
    return name_of(number, names)


def _flips(run: Run, attack: str | None) -> tuple[Flips | None, str]:
    rows = attack_rows(run.points)
    try:
        return (read_flips(run, rows[attack]) if attack in rows else None), ""
    except ConfigError as error:
        return None, str(error)


def _chosen(flips: Flips, label: str | None) -> np.ndarray:
    """The places of the samples of a class."""
    return np.flatnonzero(flips.label == int(label)) if label not in (None, _ALL) else np.arange(len(flips.label))


def _table(run: Run, flips: Flips, confidence: dict[int, float], values: Values) -> Grid:
    places, lost = _chosen(flips, values["label"]), flips.lost
    if values["order"] == "first":
        places = places[np.lexsort((flips.index[places], lost[places]))]
    elif values["order"] == "last":
        places = places[np.lexsort((flips.index[places], -lost[places]))]
    page = int(values.get("page", 1))
    rows: list[dict[str, Any]] = []
    for place in places[(page - 1) * _PAGE : page * _PAGE].tolist():
        survives = not np.isfinite(lost[place])
        index = int(flips.index[place])
        rows.append(
            {
                "index": index,
                "class": _name(run, int(flips.label[place])),
                _FROM: "never" if survives else format_noise(lost[place]) if lost[place] else "0 (without noise)",
                "predicted there": "" if survives else _taken(run, int(flips.becomes[place])),
                "margin of probability": confidence.get(index),
            }
        )
    first, last = (page - 1) * _PAGE + 1, min(page * _PAGE, len(places))
    order = "by index" if values["order"] == "index" else f"{_ORDERS[values['order']]}, equal noise levels by index"
    heading = f"Samples {first:,} to {last:,} of {len(places):,} ({order})"

    def link(row: dict[str, Any]) -> str:
        return "sample" + unparse({"run": [run.name], "sample": ["other"], "index": [str(row["index"])]})

    return Grid("samples", heading, list(rows[0]) if rows else [], rows, links={"index": link})


def _taken(run: Run, number: int) -> str:
    return "NaN" if number < 0 else _name(run, number)


def _images(run: Run, label: str | None, chosen: str | None) -> list[Part]:
    arrays = run.flips
    if arrays is None:
        damaged = notes(run.damaged("flips"))
        image = run.noisy is not None
        again = f"Images of these samples are stored by a new evaluation: python -m ima_dist.evaluate {run.dir.path}"
        return damaged or ([Note(again)] if image else [])
    own = (
        np.flatnonzero(arrays["label"] == int(label)) if label not in (None, _ALL) else np.arange(len(arrays["label"]))
    )
    own = own[np.argsort(arrays["noise"][own], kind="stable")][:_IMAGES]
    cells = [(_heading(run, arrays, i), _three(run, arrays, i), _address(run, arrays, i)) for i in own.tolist()]
    attack, kept = str(arrays["attack"]), len(arrays["label"])
    if not cells:
        return [Note(f"No images are kept of this class: the evaluation keeps those of {kept} samples only.")]
    heading, why = f"Misclassified first {under(attack)}", ""
    if chosen is not None and chosen != attack:
        heading = f"Stored images: misclassified first {under(attack)}, not {under(chosen)}"
        why = (
            f"An evaluation stores images for the strictest of its attacks only: here for {named(attack)}, not for "
            f"{named(chosen)}, which is chosen above. Figures and table below are of {named(chosen)}. "
        )
    about = f"{why}Above each image: true class → predicted class, and the noise level ε."
    caption = (
        "Image, noise (grey where nothing changes, stretched to its own range), and image attacked by pgd100 with "
        f"cross-entropy alone, at the smallest noise level at which the sample is misclassified {under(attack)}. Shown "
        f"are {len(cells)} of the {kept} samples whose images are kept, by noise level: only such as are right without "
        "noise, the classes taking turns. The table has all samples."
    )
    return [Gallery("lost-first", heading, caption, cells, about)]


def _heading(run: Run, arrays: Arrays, i: int) -> str:
    label, prediction = int(arrays["label"][i]), int(arrays["prediction"][i])
    wrong = f"→ {_taken(run, prediction)}" if prediction != label else "(still right in this image)"
    return f"{_name(run, label)} {wrong}, ε {format_noise(arrays['noise'][i])}"


def _address(run: Run, arrays: Arrays, i: int) -> str:
    return "sample" + unparse({"run": [run.name], "sample": ["other"], "index": [str(arrays["index"][i])]})


def _three(run: Run, arrays: Arrays, i: int) -> list[Picture]:
    clean, noisy = arrays["clean"][i], arrays["noisy"][i]
    change = noisy.astype(np.float32) - clean.astype(np.float32)
    largest = float(np.abs(change).max()) or 1.0
    seen = (
        (in_unit_range(clean, arrays["clean"]), f"sample {arrays['index'][i]}"),
        (0.5 + change / (2 * largest), "noise"),
        (in_unit_range(noisy, arrays["clean"]), "attacked"),
    )
    return [Picture(png_source(channels_first(pixels)), words) for pixels, words in seen]
