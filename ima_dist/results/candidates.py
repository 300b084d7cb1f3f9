"""The runs of a sweep, or of any directory, as rows: the options that differ, and the accuracies reached."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ima_dist.config.attacks import ATTACKS, STRICTEST_FIRST
from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.config.values import option_values, with_options
from ima_dist.plans.sweepfile import Point, canonical, reads
from ima_dist.results.choice import Candidate, Choice, Share, Spread, choose
from ima_dist.results.same_data import data_sets
from ima_dist.results.seeds import Network, attacks_of, candidates_of, one_per_seed
from ima_dist.results.text import accuracy, aligned
from ima_dist.rundir.curves import different_samples, epochs_of, format_noise, levels_of
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.finding import finished_runs
from ima_dist.rundir.run import Run

# Runs of one experiment may differ in these options.
_RESOURCES = ("workers", "device", "cpus_per_worker", "hang_after", "checkpoint_every")
INCIDENTAL = ("seed", *_RESOURCES, "data.dir", "data.download")


@dataclass
class Row:
    """One combination of options.

    values: option -> value. seeds: all that it has, finished or not. networks: those that were evaluated; several may
    have one seed.
    """

    values: dict[str, Any]
    seeds: set[int] = field(default_factory=set)
    networks: list[Network] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " ".join(f"{name}={_shown(value)}" for name, value in self.values.items()) or "all"


def rows_of_points(points: Sequence[Point], root: Path) -> list[Row]:
    """One row per combination of a sweep, with the seeds whose runs below ``root`` have been evaluated."""
    from ima_dist.plans.jobfile import run_path

    rows: dict[str, Row] = {}
    for point in points:
        row = rows.setdefault(str(point.values), Row(point.values))
        row.seeds.add(point.seed)
        run = Run(RunDir(run_path(root, point.config)))
        if run.status == "finished":
            row.networks.append(Network(run, point.epoch))
    return list(rows.values())


def rows_of_directory(path: Path) -> tuple[list[Row], list[str]]:
    """The finished runs at ``path`` and below, and a sentence for each run that is left out.

    Runs that differ only in the seed share a row; each evaluated epoch has a row of its own. Raises ConfigError if
    the runs have several data sets or norms, which cannot be compared.
    """
    runs, problems = finished_runs([path])
    found = [(canonical(run.config), run) for run in runs]
    names = data_sets(runs)
    kinds = sorted({f"{name} under {config.norm}" for name, (config, _) in zip(names, found, strict=True)})
    if len(kinds) > 1:
        raise ConfigError(f"{path} holds runs of {' and '.join(kinds)}: name a directory with runs of one kind.")
    differing = _differing([config for config, _ in found])
    rows: dict[tuple[str, int], Row] = {}
    for config, run in found:
        for epoch in epochs_of(run.points):
            own = option_values(config)
            values = {n: own.get(n, "not given") for n in differing if reads(config.method, n)}
            if epoch != config.epochs:
                values["epoch"] = epoch
            key = with_options(config, {"seed": 0}).fingerprint(), epoch
            row = rows.setdefault(key, Row(values))
            row.seeds.add(config.seed)
            row.networks.append(Network(run, epoch))
    return sorted(rows.values(), key=lambda row: [str(v) for v in row.values.values()]), problems


def _differing(configs: list[Config]) -> list[str]:
    options = [option_values(config) for config in configs]
    every = dict.fromkeys(name for own in options for name in own)
    names = [n for n in every if n not in INCIDENTAL and not n.startswith("eval.")]
    return [n for n in names if len({repr(own.get(n)) for own in options}) > 1]


def sweep_table(rows: Sequence[Row]) -> str:
    """Mean accuracy over the seeds, ± their standard deviation, by combination, attack and noise level.

    A combination with no finished seed has dashes; the column "seeds" shows how many are finished. Sentences below
    name the runs that are not counted.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    found = [(row, attack, *one_per_seed(row.networks, attack)) for row in rows for attack in _attacks(row)]
    levels = levels_of(curve for *_, pairs, _ in found for _, curve in pairs)
    lines = [[*(names or ["sweep"]), "attack", "seeds", *map(format_noise, levels)]]
    notes = []
    for row, attack, pairs, said in found:
        values = [_shown(row.values[name]) if name in row.values else "-" for name in names] or ["all"]
        cells = [_mean([curve[x].share for _, curve in pairs if x in curve]) for x in levels]
        lines.append([*values, attack, f"{len(pairs)}/{len(row.seeds)}", *cells])
        notes += [f"{row.name}: {text}" for text in said]
    return "\n".join([*aligned(lines), *dict.fromkeys(notes)])


def _attacks(row: Row) -> list[str]:
    return sorted(attacks_of(row.networks), key=ATTACKS.index) or ["-"]


def best_text(rows: Sequence[Row], min_clean: float, levels: Sequence[float] = (), attack: str | None = None) -> str:
    """The candidates with their uncertainty, the Pareto set, the choice, and the candidates that equal it within noise.

    ``attack``: by default the strictest that all candidates share. Raises ConfigError if they share none, or none has
    the named noise levels.
    """
    measured = [row for row in rows if attacks_of(row.networks)]
    common = [a for a in STRICTEST_FIRST if measured and all(a in attacks_of(row.networks) for row in measured)]
    if attack is not None and attack not in common:
        raise ConfigError(
            f"Not every candidate was evaluated with {attack}. Attacks they all share: {', '.join(common) or 'none'}."
        )
    if not common:
        raise ConfigError("The candidates share no attack: evaluate them alike with python -m ima_dist.evaluate.")
    attack = attack or common[0]
    _, candidates, pairs, notes = candidates_of([(row.name, row.networks) for row in measured], attack, levels)
    if not candidates:
        raise ConfigError(" ".join(notes))
    choice = choose(candidates, min_clean, levels)
    measure = f"mean accuracy at noise {', '.join(map(format_noise, levels))}" if levels else _AREA
    head = [f"Attack: {attack}. Score: {measure}.", *([] if levels else [AVERAGE])]
    table = _candidate_lines(candidates, choice, levels)
    differing = different_samples(curve for several in pairs for _, curve in several)
    notes += [differing] if differing else []
    exports = [] if choice.best is None else export_commands([network for network, _ in pairs[choice.best]])
    return "\n".join([*head, *table, _LEGEND, *notes, *_verdict(candidates, choice, min_clean, levels), *exports])


_AREA = "area under accuracy against noise, divided by the range of the noise"
AVERAGE = (
    "This score is an average accuracy, which the paper calls “clearly not a good measure of performance on "
    "robustness” (appendix E). Choose from the Pareto set, or name the noise that matters."
)
_LEGEND = (
    "P: Pareto set. *: choice. ~: equal to it within noise. ±: half the 95 % interval for the test samples, and for "
    "the seeds; for both together, the root of the sum of their squares. less *: interval of the score less that of "
    "the choice, allowing for the number of candidates."
)


def _candidate_lines(candidates: Sequence[Candidate], choice: Choice, levels: Sequence[float]) -> list[str]:
    shown = list(levels) or sorted(candidates[0].robust)
    score = "mean of them" if levels else "area"
    head = ["", "candidate", "seeds", "clean", "± samples", "± seeds", *map(format_noise, shown)]
    lines = [[*head, score, "± samples", "± seeds", "less *"]]
    alike = choice.alike
    for i, c in enumerate(candidates):
        mark = ("P" if i in choice.pareto else "") + ("*" if i == choice.best else "~" if i in alike else "")
        clean, scored = _share(c.clean, choice.clean_spreads[i]), _share(c.score, choice.score_spreads[i])
        robust = [accuracy(c.robust[x].mean) for x in shown]
        less = "{:+.4f} to {:+.4f}".format(*choice.differences[i]) if i in choice.differences else "-"
        lines.append([mark, c.name, str(len(c.clean.values)), *clean, *robust, *scored, less])
    return aligned(lines, left=2)


def _verdict(candidates: Sequence[Candidate], choice: Choice, min_clean: float, levels: Sequence[float]) -> list[str]:
    front = "; ".join(candidates[i].name for i in choice.pareto)
    where = f"noise {', '.join(map(format_noise, (0.0, *levels)))}" if levels else "every noise level"
    text = [f"Pareto set (no other is as good at {where} and better at one): {front}."]
    if choice.best is None:
        best = max(c.clean.mean for c in candidates)
        return [*text, f"No candidate has a clean accuracy of {min_clean:g} or more: the best has {best:.4f}."]
    name, alike = candidates[choice.best].name, choice.alike
    text.append(f"Choice: {name}, the highest score with a clean accuracy of at least {min_clean:g}.")
    if alike:
        text.append("Equal to it within noise: " + "; ".join(candidates[i].name for i in alike) + ".")
    elif choice.differences:
        text.append("All other candidates with that accuracy differ from it by more than noise.")
    if choice.uncertain:
        names = "; ".join(candidates[i].name for i in choice.uncertain)
        text.append(f"Mean clean accuracy above {min_clean:g}, but with an interval that reaches below it: {names}.")
    if all(spread is None for spread in choice.score_spreads):
        text.append("Each candidate has one seed, so the spread over seeds is unknown: add seeds.")
    return text


def export_commands(networks: Sequence[Network]) -> list[str]:
    """Lines that name networks by run and epoch, with the command that exports each."""
    return [
        f"{network.run.name}, epoch {network.epoch}: "
        f"{shlex.join(['python', '-m', 'ima_dist.export', str(network.run.dir.path)])} --to DIR --epoch {network.epoch}"
        for network in networks
    ]


def _share(share: Share, spread: Spread | None) -> list[str]:
    low, high = share.sample_interval()
    seeds = "-" if spread is None else f"{spread.half_width(share):.4f}"
    return [accuracy(share.mean), accuracy((high - low) / 2), seeds]


def _mean(values: list[float]) -> str:
    spread = f" ±{stdev(values):.4f}" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{spread}" if values else "-"


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
