"""One run: how it goes, what it has reached, what it is, and what to do with it next."""

import json
import time
from typing import Any

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import options_of
from ima_dist.dashboard.choosing import choose_attack, choose_run, opened, strictest
from ima_dist.dashboard.headlines import experiments
from ima_dist.dashboard.logs import log_of
from ima_dist.dashboard.parts import (
    INTERVAL,
    ROBUST,
    Command,
    Editor,
    Facts,
    Gallery,
    Grid,
    Lines,
    Note,
    Part,
    Picture,
    Plot,
    Side,
    Values,
    interval_text,
    share_text,
    with_interval,
)
from ima_dist.dashboard.pictures import address_of, picture_names
from ima_dist.dashboard.standing import BADLY, ago, caution_of, ended_at, progress_of, sentence_of
from ima_dist.dashboard.state import Control, State, one_of, unparse
from ima_dist.dashboard.terms import under
from ima_dist.dashboard.views.margins import by_class
from ima_dist.figures.interactive.confusion import MOST_CLASSES, confusion_figure
from ima_dist.figures.interactive.training import Trained, training_figure
from ima_dist.results.by_class import class_names, name_of
from ima_dist.results.commands import continue_command, evaluate_command, export_command
from ima_dist.results.cost import COLUMNS, cost_text
from ima_dist.results.doubts import doubts
from ima_dist.results.flips import read_flips
from ima_dist.results.split import split_level
from ima_dist.results.statistics import interval_of
from ima_dist.results.text import NORM_SIGN
from ima_dist.rundir.curves import attack_rows, format_noise, levels_of
from ima_dist.rundir.inputs import read_inputs
from ima_dist.rundir.notes import read_notes
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection, Recorded

TITLE = "Run"
INTRODUCTION = ""
LIVE = True


def controls(runs: Collection, state: State) -> list[Control]:
    chosen = choose_run(state, list(runs.runs.values()))
    if chosen.value is None:
        return [chosen]
    rows = attack_rows(runs.runs[chosen.value].points)
    attack = choose_attack(state, rows, strictest(rows))
    levels = sorted(rows[attack.value]) if attack.value else []
    options = {repr(level): format_noise(level) for level in levels if level > 0}
    if not options:
        return [chosen]
    middle = repr(levels[len(levels) // 2])
    return [
        chosen,
        attack,
        one_of(state, "at", "Noise level ε", options, middle, long=len(levels) > 12),
    ]


def show(runs: Collection, values: Values) -> list[Part]:
    if values["run"] is None:
        return [Note(f"There is no run in {runs.root}. To make one: python -m ima_dist.train moons")]
    recorded = runs.runs[values["run"]]
    run = opened(recorded)
    attack, level = values.get("attack"), float(values["at"]) if "at" in values else None
    text, place = log_of(run, runs.root.resolve())
    log: list[Part] = [Lines("log", f"Log ({place})", text)] if text else []
    parts: list[Part] = [Side([[_standing(recorded, attack, level), *_commands(recorded), *log], [*_training(run)]])]
    said = [*doubts(run), *recorded.problems.values()]
    parts += [Note(warning, warning=True) for warning in said]
    kept = read_notes(run.dir)
    if kept.text:
        parts.append(Note(kept.text))
    parts += [Editor(run.name, kept.text, kept.tags), _accuracies(run)]
    parts += _confusion(run, attack, level)
    if recorded.curves_table.num_rows:
        parts.append(_samples(recorded))
    parts += by_class(run) if run.margin_history else []
    names = picture_names(run)
    if names:
        cells = [(name.removesuffix(".png"), [Picture(address_of(run, name), name)], "") for name in names]
        parts.append(Gallery("figures", "Figures", "As they are in the run's directory.", cells))
    return [*parts, *_card(run), *_configuration(run)]


def _standing(run: Recorded, attack: str | None, level: float | None) -> Facts:
    at, kept = progress_of(run), read_notes(run.dir)
    data, norm = experiments([run])[run.name]
    info = run.info
    said = f"{run.status}. {sentence_of(run)}" if run.status in BADLY else run.status
    if at.silent:
        said += f", {at.silent}"
    pairs = [
        ("status", said),
        ("where", at.where or ""),
        ("epoch", at.words),
        ("done", "" if run.status == "finished" else f"{100 * at.share:.0f} % {at.stage}".strip()),
        ("time left", at.left or ""),
        ("ended", "" if run.status == "running" else ago(time.time() - ended_at(run))),
        ("data", f"{data}, {NORM_SIGN.get(norm, norm)}"),
        ("method", f"{info['method']}, ε_max {info['eps_max']:g}" + (f", β {info['beta']:g}" if _ima(run) else "")),
        ("cost", cost_text({name: info[name] for name in COLUMNS})),
        (_clean(run), "" if info["clean_accuracy"] is None else share_text(info["clean_accuracy"])),
        (ROBUST, _robust(run, attack, level)),
        ("training speed", "" if at.rate is None else f"{at.rate:,} samples/s"),
        ("tags", ", ".join(kept.tags)),
    ]
    return Facts("standing", run.name, [(name, value) for name, value in pairs if value])


def _clean(run: Recorded) -> str:
    """The name of the clean accuracy, with the number of samples if all attacks took the same."""
    counts = {point.samples for row in attack_rows(run.points).values() for point in row.values()}
    return f"clean accuracy ({counts.pop():,} test samples)" if len(counts) == 1 else "clean accuracy"


def _robust(run: Recorded, attack: str | None, level: float | None) -> str:
    point = attack_rows(run.points).get(attack or "", {}).get(level) if level is not None else None
    if point is None or attack is None:
        return ""
    value = with_interval(point.share, interval_of(point))
    return f"{value} (95 % interval) {under(attack)} at ε {format_noise(point.level)}"


def _ima(run: Recorded) -> bool:
    return bool(run.info["method"] == "ima")


def _commands(run: Recorded) -> list[Part]:
    found: list[Part] = []
    if run.status != "finished":
        caution = caution_of(run)
        found.append(Note(caution) if caution else Command("continue", continue_command(run)))
    if run.info["epochs_done"]:
        found += [Command("evaluate", evaluate_command(run)), Command("export", export_command(run))]
    return found


def _training(run: Run) -> list[Part]:
    if not run.training_history:
        return [Note("No epoch is finished yet.")]
    figure = training_figure([Trained("", run.training_history, None, run.config.method)], None)
    figure.update_layout(height=430)
    return [Plot("training", "Training", "Clean accuracy, and training loss, by epoch.", figure)]


def _accuracies(run: Run) -> Part:
    rows = attack_rows(run.points)
    table: list[dict[str, Any]] = []
    for attack, row in rows.items():
        point, bounds = next(iter(row.values())), {level: interval_of(row[level]) for level in row}
        about = {"attack": attack, "epoch": point.epoch, "samples": point.samples}
        table.append({**about, "what": "accuracy", **{format_noise(x): row[x].share for x in row}})
        short = {format_noise(x): interval_text(ends) for x, ends in bounds.items()}
        table.append({"attack": attack, "what": INTERVAL, **short})
    if not table:
        return Note(f"It has not been attacked. To attack it: {evaluate_command(run)}")
    columns = ["attack", "epoch", "samples", "what", *map(format_noise, levels_of(rows.values()))]
    return Grid("accuracies", "Clean (ε = 0) and robust accuracy by noise level ε", columns, table)


def _confusion(run: Run, attack: str | None, level: float | None) -> list[Part]:
    rows = attack_rows(run.points)
    if attack not in rows:
        return []
    try:
        flips = read_flips(run, rows[attack])
    except ConfigError as error:
        return [Note(str(error), warning=True)]
    if flips is None:
        return [Note("The outcomes of its test samples are not stored.")]
    classes = int(max(flips.label.max(), flips.prediction.max())) + 1
    if classes > MOST_CLASSES:
        return [Note(f"{classes} classes are too many for a table of confusions.")]
    known = class_names(run) or next((a["class_names"].tolist() for a in (run.flips, run.noisy) if a is not None), ())
    names = [name_of(label, known) for label in range(classes)]
    levels = [x for x in (0.0, level) if x is not None and x in flips.levels]
    titles = {0.0: "without noise"}
    tables = [(titles.get(x, f"{attack}, ε {format_noise(x)}"), flips.confusion(x, classes)) for x in levels]
    caption = (
        "Numbers are test samples. A row is a true class; off the diagonal is what it is taken for. The darker a cell, "
        "the larger its share of the row's class."
    )
    return [Plot("confusion", "Confusion", caption, confusion_figure(tables, names))] if tables else []


def _samples(run: Recorded) -> Grid:
    """A way to the samples and the other views of this run."""
    views = {"samples": "which samples are misclassified first", "classes": "recall, precision, calibration by class"}
    views |= {"margins": "margins by epoch, extremes, audit", "accuracy": "beside the paper's numbers"}
    query = unparse({"run": [run.name], "runs": [run.name]})
    rows = [{"view": view, "what": what} for view, what in views.items()]
    return Grid("more", "More of this run", ["view", "what"], rows, links={"what": lambda row: f"{row['view']}{query}"})


def _card(run: Run) -> list[Part]:
    try:
        inputs = read_inputs(run.dir.data_path)
    except ConfigError as error:
        return [Note(str(error), warning=True)]
    pairs = [("network", run.config.model.factory)]
    parameters = run.summary.get("parameters")
    pairs += [("parameters", f"{parameters:,}")] if isinstance(parameters, int) else []
    if inputs is not None:
        sizes = ", ".join(f"{name} {split.samples:,}" for name, split in inputs.splits.items())
        box = "unbounded" if inputs.box is None else f"between {inputs.box[0]:g} and {inputs.box[1]:g}"
        pairs += [("samples", sizes), ("input", f"{' × '.join(map(str, inputs.shape))}, {box}")]
        pairs += [("classes", ", ".join(inputs.class_names or [str(inputs.classes)])), ("digest", inputs.digest)]
    level = split_level(run)
    return [Facts("card", "Network and data", [*pairs, *([("split", level)] if level else [])])]


def _configuration(run: Run) -> list[Part]:
    changed = options_of(run.config)
    given = [(name, _plain(value)) for name, value in changed.items()]
    every = [(name, _plain(value)) for name, value in run.options.items()]
    return [
        Facts("given", f"Options that differ from the preset {run.config.preset}", given),
        Facts("options", f"All {len(every)} options", every, folded=True),
    ]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
