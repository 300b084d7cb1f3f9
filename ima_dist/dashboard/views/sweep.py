"""A sweep: what has been tried and what is running, which combinations nothing beats, and which option matters."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from ima_dist.config.errors import ConfigError
from ima_dist.config.plain_yaml import load_plain
from ima_dist.config.presets import train_command
from ima_dist.dashboard.choosing import choose_attack, strictest
from ima_dist.dashboard.parts import (
    CLEAN,
    INTERVAL,
    ROBUST,
    Command,
    Grid,
    Note,
    Part,
    Plot,
    Side,
    Values,
    interval_text,
    notes,
    share_text,
    sign_of,
)
from ima_dist.dashboard.standing import progress_of, sentence_of
from ima_dist.dashboard.state import Control, State, number, one_of, unparse
from ima_dist.figures.interactive.importance import importance_figure
from ima_dist.figures.interactive.tradeoff import BARS, Point, tradeoff_figure
from ima_dist.plans.jobfile import run_path
from ima_dist.plans.sweepfile import Sweep, is_asked, read_sweep
from ima_dist.plans.trial_record import earlier_records, points_of
from ima_dist.results.candidates import Row
from ima_dist.results.choice import Candidate, Choice, Interval, Share, Spread, choose
from ima_dist.results.importance import FEWEST, importance
from ima_dist.results.seeds import Network, attacks_of, candidates_of
from ima_dist.results.statistics import interval_of
from ima_dist.rundir.curves import attack_rows, format_noise
from ima_dist.rundir.files import inside
from ima_dist.tracking.collection import Collection, Recorded

TITLE = "Sweep"
INTRODUCTION = "What a sweep has tried, which combinations no other beats in both accuracies, and which option matters."
LIVE = False
_AREA = "area"
_MATTERS = (
    "The more the best of these trials agree on the value of an option, the longer its bar (PED-ANOVA; all bars add up "
    "to 1). That holds for the values tried here, not for others."
)
_BY_CHANCE = "Grey, because no combination differs from the highest beyond chance: these bars may show nothing else. "
_LUCK = "Chosen and measured on the same test samples: the best of many looks better than it is."
_LARGEST = 1 << 20  # bytes of a sweep.yaml


def controls(runs: Collection, state: State) -> list[Control]:
    found = sweeps_of(runs)
    which = one_of(state, "sweep", "Sweep", {name: name for name in found}, long=len(found) > 3)
    own = _runs_below(runs, which.value)
    each = [{point.attack for point in run.points} for run in own if run.points]
    able = {a for found in each for a in found}
    attack = choose_attack(state, able, strictest([a for a in able if all(a in found for found in each)]))
    levels = sorted({p.level for run in own for p in run.points if p.attack == attack.value} - {0.0})
    options = {**{repr(x): f"ε {format_noise(x)}" for x in levels}, _AREA: "area under the curve"}
    middle = repr(levels[len(levels) // 2]) if levels else _AREA
    return [
        which,
        attack,
        one_of(state, "level", "Robust accuracy at noise level ε", options, middle, long=True),
        number(state, "least", "Minimum clean accuracy", 0, 1, 0.005, 0.0),
    ]


def sweeps_of(runs: Collection) -> dict[str, Path]:
    """The directories with a sweep.yaml of ours that runs lie in, by name."""
    root = runs.root.resolve()
    places = sorted({run.dir.path.parent for run in runs.runs.values()})
    found = {}
    for place in places:
        file = place / "sweep.yaml"
        try:
            if file.is_file() and inside(root, file).stat().st_size <= _LARGEST:
                load_plain(text := file.read_text(encoding="utf-8"))
                if is_asked(text):
                    found[place.relative_to(root).as_posix()] = place
        except (ConfigError, OSError, ValueError, yaml.YAMLError):
            continue
    return found


def show(runs: Collection, values: Values) -> list[Part]:
    if values["sweep"] is None:
        return [Note("There is no sweep here. To begin one: python -m ima_dist.sweep jobs/sweep_moons.yaml")]
    place = sweeps_of(runs)[values["sweep"]]
    try:
        sweep = read_sweep(place / "sweep.yaml")
    except ConfigError as error:
        return [Note(str(error), warning=True)]
    level = None if values["level"] == _AREA else float(values["level"])
    rows, trials = _rows(runs, sweep, place, values["attack"], level)
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial["status"]] = counts.get(trial["status"], 0) + 1
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    head: list[Part] = [Note(f"{sweep.asked['title']}: {said}. Varied: {', '.join(map(sign_of, sweep.space))}.")]
    if counts.keys() - {"finished", "running"}:
        head.append(Command("continue", shlex.join(["python", "-m", "ima_dist.sweep", "--resume", str(place)])))
    columns = ["trial", *map(sign_of, sweep.space), "seed", "status", "done", "time left", CLEAN, ROBUST, INTERVAL]
    columns.append("message")
    columns = [
        name for name in columns if name in ("trial", "status") or any(t.get(name) not in (None, "") for t in trials)
    ]
    trials.sort(key=lambda trial: -trial.get(ROBUST, -1.0))
    links = {"trial": lambda row: "run" + unparse({"run": [row["name"]]}) if row["name"] else ""}
    table = Grid("trials", "Trials", columns, trials, links=links)
    levels = [] if level is None else [level]
    return [*head, *_results(rows, place, values, levels), table]


def _runs_below(runs: Collection, name: str | None) -> list[Recorded]:
    place = None if name is None else sweeps_of(runs).get(name)
    return [run for run in runs.runs.values() if run.dir.path.parent == place]


def _rows(
    runs: Collection, sweep: Sweep, place: Path, attack: str | None, level: float | None
) -> tuple[list[Row], list[dict[str, Any]]]:
    """The combinations with the networks that have been evaluated, and a line for each trial."""
    records = {record["name"]: record for record in earlier_records(place)}
    own = {run.dir.path: run for run in runs.runs.values() if run.dir.path.parent == place}
    rows: dict[str, Row] = {}
    trials: dict[tuple[str, int], dict[str, Any]] = {}
    for point in sweep.points or points_of(sweep, list(records.values())):
        path = run_path(place, point.config)
        run, record = own.get(path), records.get(path.name, {})
        row = rows.setdefault(str(point.values), Row(point.values))
        row.seeds.add(point.seed)
        line: dict[str, Any] = {"trial": path.name, "name": "", **_short(point.values), "seed": point.seed}
        if run is None:
            line |= {"status": str(record.get("status") or "not begun"), "message": record.get("message")}
        else:
            if run.status == "finished":
                row.networks.append(Network(run, point.epoch))
            at = progress_of(run)
            ended = record.get("status") if record.get("status") in ("stopped", "failed") else run.status
            line |= {"name": run.name, "status": str(ended), CLEAN: run.info["clean_accuracy"]}
            line |= {"done": f"{100 * at.share:.0f} %", "time left": at.left}
            found = attack_rows(run.points, point.epoch).get(attack or "", {}).get(level) if level is not None else None
            if found is not None:
                line |= {ROBUST: found.share, INTERVAL: interval_text(interval_of(found))}
            line["message"] = record.get("message") or sentence_of(run) or None
        trials[path.name, point.epoch] = line
    return list(rows.values()), list(trials.values())


def _short(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as they were given, not with the places of measured values."""
    return {sign_of(name): f"{value:g}" if isinstance(value, float) else value for name, value in values.items()}


def _name(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in _short(row.values).items()) or row.name


def _results(rows: list[Row], place: Path, values: Values, levels: list[float]) -> list[Part]:
    attack = values["attack"]
    measured = [row for row in rows if attack in attacks_of(row.networks)]
    if not measured:
        return [Note("No trial has been evaluated yet.")]
    kept, candidates, pairs, problems = candidates_of([(_name(r), r.networks) for r in measured], attack, levels)
    if not candidates:
        return notes(problems)
    choice = choose(candidates, values["least"] or 0.0, levels)
    what = f"{ROBUST} (attack {attack}, " + (f"ε {format_noise(levels[0])})" if levels else "area under the curve)")
    points = [_point(c, a, b) for c, a, b in zip(candidates, choice.clean_spreads, choice.score_spreads, strict=True)]
    caption = f"Circled and joined: the combinations that no other beats in both. {BARS}"
    front = Plot("front", "Clean against robust accuracy", caption, tradeoff_figure(points, list(choice.pareto), what))
    own = [measured[i].values for i in kept]
    shares = importance(own, [c.score.mean for c in candidates])
    matters: Part = Note(f"Which option matters is told from {FEWEST} evaluated combinations on: {len(own)} so far.")
    if shares:
        none = len(choice.alike) == len(candidates) - 1
        heading = "Which option matters: not known, as no difference was found" if none else "Which option matters"
        signs = {sign_of(name): share for name, share in shares.items()}
        figure = importance_figure(signs, known=not none)
        matters = Plot("importance", heading, (_BY_CHANCE if none else "") + _MATTERS, figure)
    networks = [network for network, _ in pairs[choice.best]] if choice.best is not None else []
    best = _best(candidates, choice, networks, place, values, levels)
    return [*best, Side([[front], [matters]]), *notes(problems)]


def _point(c: Candidate, clean: Spread | None, score: Spread | None) -> Point:
    return Point(c.name, "tried", c.clean.mean, _interval(c.clean, clean), c.score.mean, _interval(c.score, score))


def _interval(share: Share, spread: Spread | None) -> Interval:
    low, high = share.interval(spread)
    return max(0.0, low), min(1.0, high)


def _best(
    candidates: list[Candidate],
    choice: Choice,
    networks: list[Network],
    place: Path,
    values: Values,
    levels: list[float],
) -> list[Part]:
    """The best combination in words, and the commands that choose, train and export it."""
    least = f"{values['least'] or 0:g}"
    words = ["python", "-m", "ima_dist.sweep", "best", str(place), "--min-clean", least, "--attack", values["attack"]]
    words += ["--noise", ",".join(format_noise(x) for x in levels)] if levels else []
    again = Command("choose", shlex.join(words))
    if choice.best is None:
        return [Note(f"No combination has a clean accuracy of at least {least}.", warning=True), again]
    best = candidates[choice.best]
    others, alike = len(candidates) - 1, len(choice.alike)
    measured = f"{best.name}, {CLEAN} {share_text(best.clean.mean)}, {ROBUST} {share_text(best.score.mean)}"
    said = f"Highest: {measured}"
    if alike == others > 0:
        said = f"Highest, though no difference was found: {measured}; none of the other {others} differs beyond chance."
    elif alike:
        names = "; ".join(candidates[i].name for i in choice.alike)
        said += f"; {alike} of the other {others} do not differ from it beyond chance: {names}."
    else:
        said += "; all others differ from it beyond chance." if others else "."
    if others and all(spread is None for spread in choice.score_spreads):
        said += " There is one seed of each, so this holds for these networks only."
    run, epoch = networks[0].run, networks[0].epoch
    export = ["python", "-m", "ima_dist.export", str(run.dir.path), "--to", f"exports/{run.dir.path.name}"]
    export += ["--epoch", str(epoch)]
    train = train_command(run.config, place.parent / f"{place.name}-best")
    return [Note(f"{said} {_LUCK}"), again, Command("train", train), Command("export", shlex.join(export))]
