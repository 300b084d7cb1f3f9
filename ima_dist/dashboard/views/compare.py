"""Several runs beside one another: what differs, what does not, and whether the difference may be chance."""

import json
from typing import Any

from ima_dist.config.presets import options_of
from ima_dist.dashboard.choosing import choose_attack, label, opened
from ima_dist.dashboard.headlines import experiments
from ima_dist.dashboard.parts import (
    CLEAN,
    INTERVAL,
    ROBUST,
    Grid,
    Note,
    Part,
    Plot,
    Values,
    interval_text,
    p_text,
    share_text,
    sign_of,
)
from ima_dist.dashboard.state import Control, Several, State, one_of, some_of
from ima_dist.dashboard.terms import under
from ima_dist.figures.interactive.accuracy import Series, accuracy_figure
from ima_dist.figures.interactive.margins import Counted, compared_figure
from ima_dist.figures.interactive.tradeoff import differing
from ima_dist.figures.interactive.training import Trained, training_figure
from ima_dist.plans.sweepfile import reads
from ima_dist.results.paired import Paired, compare_on_samples
from ima_dist.results.seeds import Network
from ima_dist.results.statistics import ERROR, interval_of, with_intervals
from ima_dist.results.text import NORM_SIGN, percents
from ima_dist.rundir.curves import Row, attack_rows, different_samples, format_noise, levels_of
from ima_dist.tracking.collection import Collection, Recorded

TITLE = "Compare"
INTRODUCTION = "Runs of one data set and norm, side by side. Choose them here, or tick them under [Runs](runs)."
LIVE = False
_FIRST = 3
_BANDS = (
    "Bands: 95 % intervals of single runs. Where they overlap, the paired test above tells whether two runs differ."
)
_MOST_TOLD = 5


def controls(runs: Collection, state: State) -> list[Control]:
    able = [run for run in runs.runs.values() if run.curves_table.num_rows or run.epochs_table.num_rows]
    chosen = _choice(able, state)
    alike, _ = _alike([runs.runs[name] for name in chosen.value])
    found = {point.attack for run in alike for point in run.points}
    attack = choose_attack(state, found)
    levels = levels_of(row for run in alike if (row := attack_rows(run.points).get(attack.value or "")))
    options = {repr(level): format_noise(level) for level in levels}
    middle = repr(levels[len(levels) // 2]) if levels else None
    return [
        chosen,
        attack,
        one_of(state, "at", "Noise level ε", options, middle, long=len(levels) > 12),
    ]


def show(runs: Collection, values: Values) -> list[Part]:
    chosen, others = _alike([runs.runs[name] for name in values["runs"]])
    if not chosen:
        return [Note("There is nothing to compare yet: no run has finished an epoch.")]
    parts: list[Part] = []
    if others:
        names = ", ".join(run.name for run in others)
        parts.append(Note(f"Of another data set or norm than {chosen[0].name}, and left out: {names}.", warning=True))
    attack = values["attack"]
    rows = [(run, row) for run in chosen if (row := attack_rows(run.points).get(attack or ""))]
    level = float(values["at"]) if values["at"] else None
    paired = _paired(rows, level)
    parts += [part for part in paired if not isinstance(part, Grid)]
    parts += [_results(chosen, rows, attack, level), *(part for part in paired if isinstance(part, Grid))]
    parts += [_options(chosen), _same(chosen)]
    if rows:
        series = [Series(run.name, *with_intervals(row), {}, run.info["method"]) for run, row in rows]
        curves = accuracy_figure(series, [chosen[0].info["norm"]])
        parts.append(Plot("accuracy", f"Clean and robust accuracy {under(attack)}", _BANDS, curves))
    else:
        parts.append(Note("None of them has been attacked yet."))
    trained = [Trained(run.name, run.history, None, run.info["method"]) for run in chosen if run.epochs_table.num_rows]
    if trained:
        caption = "Solid: validation. Dotted: training."
        parts.append(Plot("training", "Training", caption, training_figure(trained, None)))
    return [*parts, *_margins(chosen)]


def _choice(able: list[Recorded], state: State) -> Several:
    kinds = experiments(able)
    evaluated = [run for run in able if run.curves_table.num_rows] or able
    alike = [run.name for run in evaluated if kinds[run.name] == kinds[evaluated[0].name]] if evaluated else []
    return some_of(state, "runs", "Runs", {run.name: label(run) for run in able}, alike[:_FIRST])


def _alike(chosen: list[Recorded]) -> tuple[list[Recorded], list[Recorded]]:
    """The runs of the first one's data set and norm, and the others."""
    kinds = experiments(chosen)
    first = kinds[chosen[0].name] if chosen else None
    same = [run for run in chosen if kinds[run.name] == first]
    return same, [run for run in chosen if run not in same]


def _results(chosen: list[Recorded], rows: list[tuple[Recorded, Row]], attack: str | None, level: float | None) -> Grid:
    of = {run.name: row for run, row in rows}
    table = []
    for run in chosen:
        line: dict[str, Any] = {"run": run.name, "status": run.status, CLEAN: run.info["clean_accuracy"]}
        point = of.get(run.name, {}).get(level) if level is not None else None
        if point is not None:
            low, high = interval_of(point)
            line |= {ROBUST: point.share, INTERVAL: interval_text((low, high)), "samples": point.samples}
        hours = (run.info["wall_seconds"] or 0) / 3600
        line |= {"epochs": run.info["epochs_done"], "hours": f"{hours:.2g}" if hours else None}
        table.append(line)
    under = f": {attack} at ε {format_noise(level)}" if attack and level is not None else ""
    columns = ["run", "status", CLEAN, ROBUST, INTERVAL, "samples", "epochs", "hours"]
    return Grid("results", f"Results{under}", columns, table)


def _paired(rows: list[tuple[Recorded, Row]], level: float | None) -> list[Part]:
    """The first run against each of the others on the same samples."""
    if len(rows) < 2 or level is None:
        return []
    (first, row), *others = rows
    table: list[dict[str, Any]] = []
    unlike, verdicts = [], []
    for run, other in others:
        found = compare_on_samples((_network(first, row), row), (_network(run, other), other), level, len(others))
        if found is None:
            unlike.append(run.name)
        else:
            names = first.name, run.name
            table.append({"first": names[0], "second": names[1], **_in_words(found, *names)})
            verdicts.append(_verdict(first, run, found, f"{under(_attack(row))} at ε {format_noise(level)}"))
    parts: list[Part] = [Note(said) for said in verdicts]
    if table:
        together = f"; the {len(others)} intervals hold together" if len(others) > 1 else ""
        heading = f"Paired test on the same samples, at ε {format_noise(level)} (McNemar, exact{together})"
        columns = ["first", "second", "verdict", "difference", INTERVAL, "p"]
        columns += ["only first right", "only second right", "samples"]
        parts.append(Grid("paired", heading, columns, table))
    if unlike:
        said = different_samples([row, *(other for _, other in others)]) or "Their outcomes are not stored."
        parts.append(Note(f"No paired test of {first.name} with {', '.join(unlike)}: not the same samples. {said}"))
    return parts


def _network(run: Recorded, row: Row) -> Network:
    return Network(run, next(iter(row.values())).epoch)


def _in_words(found: Paired, first: str, second: str) -> dict[str, Any]:
    better = first if found.first > found.second else second
    return {
        "samples": found.samples,
        "only first right": found.only_first,
        "only second right": found.only_second,
        "difference": found.first - found.second,
        INTERVAL: interval_text(found.interval),
        "p": p_text(found.p),
        "verdict": f"{better} is better"
        if found.differ
        else f"no difference beyond chance ({percents(ERROR, 0)} level)",
    }


def _attack(row: Row) -> str:
    return next(iter(row.values())).attack


def _verdict(first: Recorded, second: Recorded, found: Paired, where: str) -> str:
    """What the paired test found, in a sentence, and in what the runs differ."""
    better, worse = (first, second) if found.first >= found.second else (second, first)
    low, high = found.interval if better is first or not found.differ else (-found.interval[1], -found.interval[0])
    said = (
        f"{better.name} is more accurate than {worse.name} {where} by {share_text(abs(found.first - found.second))}"
        if found.differ
        else f"{first.name} and {second.name} do not differ beyond chance {where}: "
        f"difference {share_text(found.first - found.second)}"
    )
    p = p_text(found.p)
    told = [sign_of(name) for name in _differences(first, second)]
    others = ", ".join([*told[:_MOST_TOLD], *(["…"] if len(told) > _MOST_TOLD else [])])
    count = f"{len(told)} option{'s' * (len(told) != 1)}"
    differ = f"They differ in {count}, listed below: {others}" if told else "Their options are the same"
    return (
        f"{said} {interval_text((low, high))} (95 % interval), p {p if p.startswith('<') else f'= {p}'}, on the "
        f"same {found.samples} samples. {differ}; one run of each."
    )


def _options(chosen: list[Recorded]) -> Part:
    options = [_read(run) for run in chosen]
    pairs = [_differences(chosen[0], other) for other in chosen[1:]]
    names = list(dict.fromkeys(name for found in pairs for name in found))
    if not names:
        return Note("All options are the same.") if len(chosen) > 1 else Note("Choose another run to compare with.")
    found = list(zip(chosen, options, strict=True))
    rows = [
        {"option": sign_of(name), **{run.name: _plain(own[name]) if name in own else "not used" for run, own in found}}
        for name in names
    ]
    heading = f"Options that differ ({len(names)})"
    return Grid("options", heading, ["option", *(run.name for run in chosen)], rows)


def _differences(first: Recorded, second: Recorded) -> list[str]:
    """The options in which two runs differ, without the usual values of what only one of the methods reads."""
    own, given = [_read(first), _read(second)], {**options_of(first.config), **options_of(second.config)}
    return [name for name in differing(own, ()) if name in given or all(name in options for options in own)]


def _read(run: Recorded) -> dict[str, Any]:
    """The options that the run's method reads: others say nothing of it."""
    return {name: value for name, value in run.options.items() if reads(run.info["method"], name)}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else "-" if value is None else json.dumps(value, ensure_ascii=False)


def _same(chosen: list[Recorded]) -> Note:
    """What does not differ, by name where it matters most."""
    options = [_read(run) for run in chosen]
    equal = [name for name in options[0] if len({repr(own.get(name)) for own in options}) == 1]
    norm = chosen[0].info["norm"]
    data = experiments(chosen)[chosen[0].name][0]
    told = ("method", "eps_max", "beta", "epochs", "batch_size", "seed", "model.factory", "optimizer.name")
    said = [f"{sign_of(name)} {_plain(options[0][name])}" for name in told if name in equal]
    rest = len(equal) - len(said)
    kind = f"data set {data}, norm {NORM_SIGN.get(norm, norm)}"
    return Note(f"The same in all: {kind}, {', '.join(said)}, and {rest} more options.")


def _margins(chosen: list[Recorded]) -> list[Part]:
    found = []
    for run in chosen:
        history = opened(run).margin_history
        if history:
            row = history[-1]
            found.append(
                Counted(run.name, row["margin_histogram"], run.info["eps_max"], row["epoch"], run.info["method"])
            )
    if not found:
        return [Note("None of them has margins. The methods that estimate margins are ima and mma.")]
    caption = "Share of the training samples whose margin is at least so large, after the last epoch of each run."
    return [Plot("margins", "Margins", caption, compared_figure(found, chosen[0].info["norm"]))]
