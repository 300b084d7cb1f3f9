"""Clean against robust accuracy: which model to ship."""

import json
from dataclasses import replace
from typing import Any

from ima_dist.dashboard.choosing import choose_attack
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
    notes,
    sign_of,
    with_interval,
)
from ima_dist.dashboard.state import Control, State, number, one_of
from ima_dist.figures.interactive.tradeoff import BARS, Point, differing, parallel_figure, tradeoff_figure
from ima_dist.plans.sweepfile import reads
from ima_dist.results.candidates import AVERAGE, INCIDENTAL
from ima_dist.results.choice import Candidate, Choice, Interval, Share, Spread, choose, pareto_set
from ima_dist.results.same_data import data_sets
from ima_dist.results.seeds import Network, attacks_of, candidates_of
from ima_dist.results.text import NORM_SIGN
from ima_dist.rundir.curves import different_samples, epochs_of, format_noise
from ima_dist.tracking.collection import Collection, Recorded

TITLE = "Trade-off"
INTRODUCTION = (
    "Each point is a model. Runs that differ only in their seed are one model. Each epoch that was evaluated by itself "
    "is a model too: the network after M epochs of ima is the one for ε_max = M·Δε. Bars are 95 % intervals for the "
    "test samples and the seeds together. Bars that overlap do not settle whether two models differ: the verdict in "
    "the table compares them sample by sample. [Compare](compare) has the paired test of single runs."
)
LIVE = False
_AREA = "area"
_CLEAN_CELL, _ROBUST_CELL, _LESS = f"{CLEAN}, {INTERVAL}", f"{ROBUST}, {INTERVAL}", "robust, less the best"
_THESE = "these networks on the same samples"
_BOUNDS = (
    *("clean", "clean from", "clean to", "robust", "robust from", "robust to", "less best from", "less best to"),
    *("on these samples from", "on these samples to"),
)


def controls(runs: Collection, state: State) -> list[Control]:
    experiments: dict[str, str] = {}
    for data, run in _evaluated(runs):
        norm = run.info["norm"]
        experiments[f"{data}-{norm}"] = f"{data}, {NORM_SIGN.get(norm, norm)}"
    which = one_of(state, "experiment", "Experiment", experiments, long=len(experiments) > 4)
    own = _of(runs, which.value)
    found = {p.attack for r in own for p in r.points}
    attack = choose_attack(state, found)
    levels = {p.level for r in own for p in r.points if p.attack == attack.value} - {0.0}
    by_level = {repr(x): f"ε {format_noise(x)}" for x in sorted(levels)}
    return [
        which,
        attack,
        one_of(
            state,
            "level",
            "Robust accuracy at noise level ε",
            {_AREA: "area under the curve", **by_level},
            long=True,
        ),
        number(state, "least", "Minimum clean accuracy", 0, 1, 0.005, 0.0),
    ]


def show(runs: Collection, values: Values) -> list[Part]:
    own = _of(runs, values["experiment"])
    if not own:
        return [Note("No run has been evaluated yet.")]
    attack, levels = values["attack"], [] if values["level"] == _AREA else [float(values["level"])]
    candidates, groups, problems = _candidates(own, attack, levels)
    if not candidates:
        return notes(problems)
    choice = choose(candidates, values["least"] or 0.0, levels)
    points = [
        Point(c.name, g.info["method"], c.clean.mean, _interval(c.clean, of_clean), c.score.mean, _interval(c.score, s))
        for c, g, of_clean, s in zip(candidates, groups, choice.clean_spreads, choice.score_spreads, strict=True)
    ]
    front = pareto_set([(p.clean, p.robust) for p in points])
    problems += [] if levels else [AVERAGE]
    if choice.best is None:
        problems.append(f"No model has a clean accuracy of at least {values['least']:g}.")
    what = f"{ROBUST} (attack {attack}, " + (f"ε {format_noise(levels[0])})" if levels else "area under the curve)")
    caption = f"Circled and joined: the Pareto front, the models that no other model beats in both. {BARS}"
    if not values["least"]:
        choice = replace(choice, uncertain=[])  # every clean accuracy is at least 0
    rows = [_row(i, candidates, p, choice, i in front) for i, p in enumerate(points)]
    plane = tradeoff_figure(points, front, what)
    return [
        Plot("tradeoff", "Clean against robust accuracy", caption, plane),
        Grid("models", "Models", [name for name in rows[0] if name not in _BOUNDS], rows, also=_BOUNDS),
        _parallel(candidates, groups),
        *notes(problems),
    ]


def _row(i: int, candidates: list[Candidate], point: Point, choice: Choice, pareto: bool) -> dict[str, Any]:
    candidate, less, these = candidates[i], choice.differences.get(i), choice.on_samples.get(i)
    return {
        "model": candidate.name,
        "verdict": _verdict(i, candidates, choice),
        _THESE: _of_these(i, choice),
        _ROBUST_CELL: with_interval(point.robust, point.robust_interval),
        _CLEAN_CELL: with_interval(point.clean, point.clean_interval),
        _LESS: interval_text((max(-1.0, less[0]), min(1.0, less[1]))) if less else None,
        "Pareto": pareto,
        "seeds": len(candidate.clean.values),
        "samples": candidate.clean.samples,
        "clean": point.clean,
        "clean from": point.clean_interval[0],
        "clean to": point.clean_interval[1],
        "robust": point.robust,
        "robust from": point.robust_interval[0],
        "robust to": point.robust_interval[1],
        "less best from": less and less[0],
        "less best to": less and less[1],
        "on these samples from": these and these[0],
        "on these samples to": these and these[1],
    }


def _verdict(i: int, candidates: list[Candidate], choice: Choice) -> str:
    """How a model compares with the best, in words."""
    if i == choice.best:
        said = "best"
    elif i in choice.differences and choice.best is not None:
        one = any(len(candidates[k].score.values) == 1 for k in (i, choice.best))
        alike, unknown = i in choice.alike, choice.score_spreads[i] is None
        said = "not different from the best" if alike else "worse than the best"
        # Of a single seed nobody knows how far another one would be from it.
        said = "cannot tell: one seed" if one and (alike or unknown) else said
    else:
        return "clean accuracy below the minimum"
    return f"{said}, clean accuracy uncertain" if i in choice.uncertain else said


def _of_these(i: int, choice: Choice) -> str:
    """The same of these networks alone, whatever other seeds would bring."""
    if i not in choice.on_samples:
        return ""
    if (found := choice.on_samples[i]) is None:
        return "not the same samples"
    low, high = found
    return "not different" if low <= 0 <= high else f"worse {interval_text((max(-1.0, low), min(1.0, high)))}"


def _of(runs: Collection, experiment: str | None) -> list[Recorded]:
    return [run for data, run in _evaluated(runs) if f"{data}-{run.info['norm']}" == experiment]


def _evaluated(runs: Collection) -> list[tuple[str, Recorded]]:
    """The runs that have curves, each with its data set: what has been trained on other data is another experiment."""
    found = [r for r in runs.runs.values() if r.curves_table.num_rows]
    return list(zip(data_sets(found), found, strict=True))


def _candidates(
    own: list[Recorded], attack: str, levels: list[float]
) -> tuple[list[Candidate], list[Recorded], list[str]]:
    """Models, one run of each, and a sentence for whatever is left out."""
    grouped: dict[tuple[str, int], list[tuple[Recorded, Network]]] = {}
    for run in own:
        kept = {k: v for k, v in _read(run).items() if k not in INCIDENTAL and not k.startswith("eval.")}
        model = json.dumps(kept, sort_keys=True)
        for epoch in epochs_of(run.points):
            network = Network(run, epoch)
            if attack in attacks_of([network]):
                grouped.setdefault((model, epoch), []).append((run, network))
    different = differing([run.options for run in own], INCIDENTAL)
    several = len({epoch for _, epoch in grouped}) > 1
    first = [members[0][0] for members in grouped.values()]
    names = [_name(run, different, epoch if several else None) for run, (_, epoch) in zip(first, grouped, strict=True)]
    groups = [[network for _, network in members] for members in grouped.values()]
    places, candidates, pairs, problems = candidates_of(list(zip(names, groups, strict=True)), attack, levels)
    unlike = different_samples(row for members in pairs for _, row in members)
    return candidates, [first[place] for place in places], [*problems, *([unlike] if unlike else [])]


def _read(run: Recorded) -> dict[str, Any]:
    """The options that the run's method reads: others make no other model."""
    return {name: value for name, value in run.options.items() if reads(run.info["method"], name)}


def _name(run: Recorded, different: list[str], epoch: int | None) -> str:
    own = _read(run)
    told = [o for o in different if o in own and o != "method" and not o.startswith(("eval.", "preset", "norm"))]
    said = [run.info["method"], *(f"{sign_of(option)} {own[option]}" for option in told)]
    return ", ".join(said if epoch is None else [*said, f"epoch {epoch}"])


def _parallel(candidates: list[Candidate], groups: list[Recorded]) -> Part:
    names = [n for n in differing([g.options for g in groups], INCIDENTAL) if not n.startswith("eval.")]
    read = {n: [_read(g).get(n, "not used") for g in groups] for n in names}
    columns: dict[str, list[Any]] = {sign_of(n): found for n, found in read.items() if len({*map(repr, found)}) > 1}
    columns |= {CLEAN: [c.clean.mean for c in candidates], ROBUST: [c.score.mean for c in candidates]}
    caption = "One line per model, in the colour of its method, with the options that differ between models."
    methods = [g.info["method"] for g in groups]
    return Plot("parallel", "Values that differ", caption, parallel_figure(columns, methods))


def _interval(share: Share, spread: Spread | None) -> Interval:
    low, high = share.interval(spread)
    return max(0.0, low), min(1.0, high)
