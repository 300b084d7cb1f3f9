"""The runs of a sweep, or of any directory, as rows: the options that differ, and the accuracies reached."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ima_dist.config.attacks import ATTACKS, STRICTEST_FIRST
from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import METHODS, Config
from ima_dist.config.values import option_values, with_options
from ima_dist.plans.sweepfile import READ_BY, Point, canonical
from ima_dist.results.choice import Candidate, Choice, Share, Spread, choose, make_candidate
from ima_dist.results.same_data import data_sets
from ima_dist.results.text import accuracy, aligned
from ima_dist.rundir.curves import Point as Measurement
from ima_dist.rundir.curves import Row as Curve
from ima_dist.rundir.curves import attack_rows, different_samples, epochs_of, fewest_samples, format_noise, levels_of
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.finding import finished_runs

# Runs of one experiment may differ in these options.
_RESOURCES = ("workers", "device", "cpus_per_worker", "hang_after", "checkpoint_every")
INCIDENTAL = ("seed", *_RESOURCES, "data.dir", "data.download")


@dataclass
class Row:
    """One combination of options.

    values: option -> value. planned: the number of its seeds, finished or not. runs: directory and epoch of each seed
    that was evaluated, where they are known. curves: attack -> one curve per such seed.
    """

    values: dict[str, Any]
    planned: int = 0
    runs: list[tuple[Path, int]] = field(default_factory=list)
    curves: dict[str, list[Curve]] = field(default_factory=dict)

    def add(self, points: Sequence[Measurement], epoch: int) -> None:
        """Add the run of one more seed, measured at ``points``, after ``epoch``."""
        for attack, curve in attack_rows(points, epoch).items():
            self.curves.setdefault(attack, []).append(curve)

    @property
    def name(self) -> str:
        return " ".join(f"{name}={_shown(value)}" for name, value in self.values.items()) or "all"


def rows_of_points(points: Sequence[Point], root: Path) -> list[Row]:
    """One row per combination of a sweep, with the seeds whose runs below ``root`` have been evaluated."""
    from ima_dist.plans.jobfile import run_path

    rows: dict[str, Row] = {}
    for point in points:
        row = rows.setdefault(str(point.values), Row(point.values))
        row.planned += 1
        run = RunDir(run_path(root, point.config))
        if run.status == "finished":
            row.add(run.points(), point.epoch)
    return list(rows.values())


def rows_of_directory(path: Path) -> tuple[list[Row], list[str]]:
    """The finished runs at ``path`` and below, and a sentence for each run that is left out.

    Runs that differ only in the seed share a row; each evaluated epoch has a row of its own. Raises ConfigError if
    the runs have several data sets or norms, which cannot be compared.
    """
    runs, problems = finished_runs([path])
    found = [(canonical(run.config), run.points, run.dir.path) for run in runs]
    names = data_sets(runs)
    kinds = sorted({f"{name} under {config.norm}" for name, (config, *_) in zip(names, found, strict=True)})
    if len(kinds) > 1:
        raise ConfigError(f"{path} holds runs of {' and '.join(kinds)}: name a directory with runs of one kind.")
    differing = _differing([config for config, *_ in found])
    rows: dict[tuple[str, int], Row] = {}
    for config, points, place in found:
        for epoch in epochs_of(points):
            own = option_values(config)
            values = {n: own.get(n, "not given") for n in differing if config.method in READ_BY.get(n, METHODS)}
            if epoch != config.epochs:
                values["epoch"] = epoch
            key = with_options(config, {"seed": 0}).fingerprint(), epoch
            row = rows.setdefault(key, Row(values))
            row.planned += 1
            row.runs.append((place, epoch))
            row.add(points, epoch)
    return sorted(rows.values(), key=lambda row: [str(v) for v in row.values.values()]), problems


def _differing(configs: list[Config]) -> list[str]:
    options = [option_values(config) for config in configs]
    every = dict.fromkeys(name for own in options for name in own)
    names = [n for n in every if n not in INCIDENTAL and not n.startswith("eval.")]
    return [n for n in names if len({repr(own.get(n)) for own in options}) > 1]


def sweep_table(rows: Sequence[Row]) -> str:
    """Mean accuracy over the seeds, ± their standard deviation, by combination, attack and noise level.

    A combination with no finished seed has dashes; the column "seeds" shows how many are finished.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    levels = levels_of(curve for row in rows for curves in row.curves.values() for curve in curves)
    lines = [[*(names or ["sweep"]), "attack", "seeds", *map(format_noise, levels)]]
    for row in rows:
        values = [_shown(row.values[name]) if name in row.values else "-" for name in names] or ["all"]
        for attack in sorted(row.curves, key=ATTACKS.index) or ["-"]:
            curves = row.curves.get(attack, [])
            cells = [_mean([c[x].share for c in curves if x in c]) for x in levels]
            lines.append([*values, attack, f"{len(curves)}/{row.planned}", *cells])
    return "\n".join(aligned(lines))


def best_text(rows: Sequence[Row], min_clean: float, levels: Sequence[float] = (), attack: str | None = None) -> str:
    """The candidates with their uncertainty, the Pareto set, the choice, and the candidates that equal it within noise.

    ``attack``: by default the strictest that all candidates share. Raises ConfigError if they share none, or a named
    noise level is missing.
    """
    measured = [row for row in rows if row.curves]
    common = [a for a in STRICTEST_FIRST if measured and all(a in row.curves for row in measured)]
    if attack is not None and attack not in common:
        raise ConfigError(
            f"Not every candidate was evaluated with {attack}. Attacks they all share: {', '.join(common) or 'none'}."
        )
    if not common:
        raise ConfigError("The candidates share no attack: evaluate them alike with python -m ima_dist.evaluate.")
    attack = attack or common[0]
    candidates = _candidates(measured, attack, levels)
    choice = choose(candidates, min_clean, levels)
    measure = f"mean accuracy at noise {', '.join(map(format_noise, levels))}" if levels else _AREA
    head = f"Attack: {attack}. Score: {measure}."
    table = _candidate_lines(candidates, choice, levels)
    exports = [] if choice.best is None else export_commands(measured[choice.best].runs)
    differing = different_samples(curve for row in measured for curve in row.curves[attack])
    notes = [differing] if differing else []
    return "\n".join([head, *table, _LEGEND, *notes, *_verdict(candidates, choice, min_clean), *exports])


_AREA = "area under accuracy against noise, divided by the range of the noise"
_LEGEND = (
    "P: Pareto set. *: choice. ~: equal to it within noise. ±: half the 95 % interval, for the test samples and for "
    "the spread over seeds (pooled over the candidates)."
)


def _candidate_lines(candidates: Sequence[Candidate], choice: Choice, levels: Sequence[float]) -> list[str]:
    shown = list(levels) or sorted(candidates[0].robust)
    score = "mean of them" if levels else "area"
    head = ["", "candidate", "seeds", "clean", "± samples", "± seeds", *map(format_noise, shown)]
    lines = [[*head, score, "± samples", "± seeds"]]
    for i, c in enumerate(candidates):
        mark = ("P" if i in choice.pareto else "") + ("*" if i == choice.best else "~" if i in choice.alike else "")
        clean, scored = _share(c.clean, choice.clean_spread), _share(c.score, choice.score_spread)
        robust = [accuracy(c.robust[x].mean) for x in shown]
        lines.append([mark, c.name, str(len(c.clean.values)), *clean, *robust, *scored])
    return aligned(lines, left=2)


def _verdict(candidates: Sequence[Candidate], choice: Choice, min_clean: float) -> list[str]:
    if choice.best is None:
        best = max(c.clean.mean for c in candidates)
        return [f"No candidate has a clean accuracy of {min_clean:g} or more: the best has {best:.4f}."]
    name = candidates[choice.best].name
    text = [f"Choice: {name}, the highest score with a clean accuracy of at least {min_clean:g}."]
    if choice.alike:
        text.append("Equal to it within noise: " + "; ".join(candidates[i].name for i in choice.alike) + ".")
    else:
        text.append("All other candidates with that accuracy differ from it by more than noise.")
    if choice.uncertain:
        names = "; ".join(candidates[i].name for i in choice.uncertain)
        text.append(f"Mean clean accuracy above {min_clean:g}, but with an interval that reaches below it: {names}.")
    if choice.score_spread is None:
        text.append("Each candidate has one seed, so the spread over seeds is unknown: add seeds.")
    return text


def export_commands(runs: Sequence[tuple[Path, int]]) -> list[str]:
    """Lines that name the networks of a choice, by run and epoch, and the command that exports each."""
    return [
        f"{path.name}, epoch {epoch}: {shlex.join(['python', '-m', 'ima_dist.export', str(path)])} --to DIR "
        f"--epoch {epoch}"
        for path, epoch in runs
    ]


def _candidates(rows: Sequence[Row], attack: str, levels: Sequence[float]) -> list[Candidate]:
    everywhere = set.intersection(*({*curve} for row in rows for curve in row.curves[attack]))

    def candidate(row: Row) -> Candidate:
        curves = row.curves[attack]
        samples = fewest_samples(point for curve in curves for point in curve.values())
        return make_candidate(row.name, [{x: c[x].share for x in everywhere} for c in curves], samples, levels)

    return [candidate(row) for row in rows]


def _share(share: Share, spread: Spread | None) -> list[str]:
    low, high = share.sample_interval
    seeds = "-" if spread is None else f"{spread.half_width(share):.4f}"
    return [accuracy(share.mean), accuracy((high - low) / 2), seeds]


def _mean(values: list[float]) -> str:
    spread = f" ±{stdev(values):.4f}" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{spread}" if values else "-"


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
