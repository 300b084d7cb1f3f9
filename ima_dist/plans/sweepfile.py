"""Sweep files: what is to be varied, and the runs that answer it.

A combination of values is answered by a run, or by an epoch of one: several combinations may share a run. Runs
are told apart by the fingerprint of their configuration, so that equal ones are trained once.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.presets import make_config, preset_config
from ima_dist.config.schema import METHODS, Config
from ima_dist.config.values import option_values, with_options
from ima_dist.plans.jobfile import read_yaml, run_path

SEARCHES = ("grid", "random", "optuna")
DISTRIBUTIONS = ("choice", "uniform", "loguniform", "randint")

_KEYS = ("title", "preset", "options", "sweep", "seeds", "search", "samples", "asha", "all_epochs", "scales")
# What a scale may replace beside options.
_SCALED = ("sweep", "seeds", "samples", "asha", "all_epochs")
_ASHA_KEYS = ("grace", "reduction")

_WITH_STEPS = frozenset(METHODS) - {"ce", "rand"}
# Option -> the methods whose training it enters; all other options enter every method's. A test trains them.
READ_BY = {
    "eps_max": frozenset(METHODS) - {"ce"},
    "delta_eps": frozenset({"ima", "mma"}),
    "beta": frozenset({"ima"}),
    "margin_update": frozenset({"ima"}),
    "trades.inverse_lambda": frozenset({"trades"}),
    "attack.steps": _WITH_STEPS,
    "attack.step_scale": frozenset({"ima", "adv", "trades"}),
    "attack.bisections": frozenset({"ima", "mma"}),
    "attack.boundary_side": frozenset({"ima"}),
}


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving (Li et al. 2020): after ``grace`` epochs, and after every ``reduction``-th
    power of it, a trial goes on only if it is among the best share 1 / reduction that have come so far."""

    grace: int = 1
    reduction: float = 3.0


@dataclass(frozen=True)
class Distribution:
    """Values of one option: "choice" among ``bounds``, or "uniform", "loguniform" or "randint" (both ends count)
    between the two."""

    kind: str
    bounds: tuple[Any, ...]

    def draw(self, generator: random.Random) -> Any:
        if self.kind == "choice":
            return generator.choice(self.bounds)
        low, high = self.bounds
        if self.kind == "randint":
            return generator.randint(low, high)
        if self.kind == "uniform":
            return generator.uniform(low, high)
        return math.exp(generator.uniform(math.log(low), math.log(high)))


@dataclass(frozen=True)
class Point:
    """One combination with one seed.

    values: swept option -> value, without those that its method does not read. config: of the run that answers
    it; epoch: the epoch of that run which does.
    """

    values: dict[str, Any]
    seed: int
    config: Config
    epoch: int


@dataclass(frozen=True)
class Sweep:
    """A sweep file, checked. points: all combinations in order, () where the search makes them as it goes.

    space: swept option -> Distribution. notes: a sentence for everything that is saved. asked: the file's content
    with its scale applied, itself a sweep file.
    """

    title: str
    preset: str
    options: dict[str, Any]
    space: dict[str, Distribution]
    seeds: tuple[int, ...]
    search: str
    samples: int
    asha: Asha | None
    all_epochs: bool
    asked: dict[str, Any]
    points: tuple[Point, ...] = ()
    notes: tuple[str, ...] = ()

    def point(self, values: dict[str, Any], seed: int) -> Point:
        """The combination with a run of its own. Raises ConfigError."""
        config = canonical(make_config(self.preset, {**self.options, **values, "seed": seed}))
        config = self._with_its_epochs(config)
        read = {name: value for name, value in values.items() if config.method in READ_BY.get(name, METHODS)}
        return Point(read, seed, config, config.epochs)

    def any_point(self) -> Point:
        """One of the combinations, for what must be known before there are any. Raises ConfigError."""
        if self.points:
            return self.points[0]
        return self.point({name: d.bounds[0] for name, d in self.space.items()}, self.seeds[0])

    @property
    def by_epochs(self) -> bool:
        """Whether every ε_max = M·Δε is the state after M epochs, so that one run answers all of them."""
        given = self.options.get("delta_eps") is not None or "delta_eps" in self.space
        return "eps_max" in self.space and given and not self.all_epochs

    def _with_its_epochs(self, config: Config) -> Config:
        if not self.by_epochs or config.method != "ima":
            return config
        epochs = config.eps_max / config.expansion
        if abs(epochs - round(epochs)) > 1e-6:
            raise ConfigError(
                f"eps_max {config.eps_max:g} is not a whole number of delta_eps {config.expansion:g}: "
                "correct it, or ask for all_epochs: true."
            )
        return with_options(config, {"epochs": round(epochs)})

    @cached_property
    def runs(self) -> dict[str, tuple[Config, tuple[int, ...]]]:
        """Name of each run (its directory) -> configuration, and the epochs to be evaluated, in order."""
        found: dict[str, tuple[Config, tuple[int, ...]]] = {}
        for point in self.points:
            name = run_path(Path(), point.config).name
            epochs = found[name][1] if name in found else ()
            found[name] = point.config, tuple(sorted({*epochs, point.epoch}))
        return found


def canonical(config: Config) -> Config:
    """``config`` with every option that its method does not read as in its preset."""
    unread = [name for name, methods in READ_BY.items() if config.method not in methods]
    usual, own = option_values(preset_config(config)), option_values(config)
    return with_options(config, {name: usual[name] for name in unread if own[name] != usual[name]})


def is_sweep(path: Path | str) -> bool:
    """Whether the file is a sweep file and no job file. Raises ConfigError if it cannot be read."""
    return "sweep" in read_yaml(path, "sweep or rows")


def read_sweep(
    path: Path | str,
    scale: str | None = None,
    options: Mapping[str, Any] | None = None,
    seeds: tuple[int, ...] | None = None,
) -> Sweep:
    """The sweep in a file, with its ``scale`` and then ``options`` and ``seeds`` on top; every configuration checked.

    Raises ConfigError naming the file and the entry.
    """
    tree = read_yaml(path, "title, preset and sweep")
    try:
        return _read(tree, scale, dict(options or {}), seeds)
    except ConfigError as error:
        raise ConfigError(f"In {path}: {error}") from None


def _read(tree: dict[str, Any], scale: str | None, options: dict[str, Any], seeds: tuple[int, ...] | None) -> Sweep:
    _check_keys(tree, _KEYS, "")
    for key in ("title", "preset", "sweep"):
        if not tree.get(key):
            raise ConfigError(f"the entry {key!r} is missing.")
    scales = _mapping(tree, "scales")
    if scale is not None and scale not in scales:
        raise ConfigError(f"there is no scale {scale!r}{did_you_mean(scale, scales)}: {', '.join(scales) or 'none'}.")
    reduced = dict(scales[scale] or {}) if scale else {}
    tree = {**tree, **{key: reduced.pop(key) for key in _SCALED if key in reduced}}
    shared = {**_mapping(tree, "options"), **reduced, **options}
    if "seed" in shared:
        raise ConfigError("give seeds: [0, 1, …] in place of the option seed.")
    search = tree.get("search", "grid")
    if search not in SEARCHES:
        raise ConfigError(
            f"search must be one of {', '.join(SEARCHES)}, not {search!r}{did_you_mean(search, SEARCHES)}."
        )
    space = {str(name): _distribution(str(name), given) for name, given in _mapping(tree, "sweep").items()}
    if search == "grid" and any(d.kind != "choice" for d in space.values()):
        raise ConfigError("a grid needs a list of values for every option: give search: random or search: optuna.")
    samples = tree.get("samples")
    whole = isinstance(samples, int) and not isinstance(samples, bool) and samples >= 1
    if whole == (search == "grid") or not (whole or samples is None):
        raise ConfigError(
            "samples must be a whole number of at least 1 for random and optuna, and left out for a grid."
        )
    chosen = tuple(seeds or tree.get("seeds") or (0,))
    if not all(isinstance(s, int) and not isinstance(s, bool) for s in chosen) or len(set(chosen)) < len(chosen):
        raise ConfigError("seeds must be a list of different whole numbers, such as [0, 1].")
    asha = None if tree.get("asha") is None else _asha(_mapping(tree, "asha"))
    needs = "asha" if asha else "search: optuna" if search == "optuna" else None
    if needs and "eval.val_noise" not in shared:
        raise ConfigError(
            f"{needs} goes by the validation samples that withstand an attack: give the option eval.val_noise, "
            "the noise level."
        )
    if asha and search == "optuna" and len(chosen) > 1:
        raise ConfigError("search: optuna takes the mean over the seeds, so with asha there can be but one.")
    asked = {key: value for key, value in tree.items() if key not in ("scales", "options", "seeds")}
    sweep = Sweep(
        title=str(tree["title"]) + (f", scale {scale}" if scale else ""),
        preset=tree["preset"],
        options=shared,
        space=space,
        seeds=chosen,
        search=search,
        samples=samples or 0,
        asha=asha,
        all_epochs=bool(tree.get("all_epochs", False)),
        asked=asked,
    )
    asked |= {"title": sweep.title, "options": {k: _plain(v) for k, v in shared.items()}, "seeds": list(chosen)}
    return _planned(sweep)


def _planned(sweep: Sweep) -> Sweep:
    """The sweep with its points; of an open search, the ends of the space are tried, so that mistakes show now."""
    if sweep.search == "optuna":
        ends = [(d.bounds if d.kind == "choice" else d.bounds[:2]) for d in sweep.space.values()]
        for corner in itertools.product(*ends):
            sweep.point(dict(zip(sweep.space, corner, strict=True)), sweep.seeds[0])
        return sweep
    if sweep.search == "grid":
        lists = [d.bounds for d in sweep.space.values()]
        combinations = [dict(zip(sweep.space, values, strict=True)) for values in itertools.product(*lists)]
    else:
        # Always the same, so that a sweep that is continued asks for the same again.
        generator = random.Random(0)
        combinations = [{n: d.draw(generator) for n, d in sweep.space.items()} for _ in range(sweep.samples)]
    points = []
    for values in combinations:
        for seed in sweep.seeds:
            try:
                points.append(sweep.point(values, seed))
            except ConfigError as error:
                where = ", ".join(f"{name} {value}" for name, value in values.items())
                raise ConfigError(f"with {where}: {error}") from None
    asked, notes = len(points), []
    points = list({(p.config.fingerprint(), p.epoch): p for p in reversed(points)}.values())[::-1]
    if len(points) < asked:
        notes.append(
            f"{asked - len(points)} of {asked} combinations differ from another in nothing that their method reads: "
            f"{len(points)} are left."
        )
    runs = len({p.config.fingerprint() for p in points})
    if sweep.by_epochs:
        points = _longest(points)
        fewer = len({p.config.fingerprint() for p in points})
        if fewer < runs:
            notes.append(
                f"At equal delta_eps, eps_max = M · delta_eps is the state after M epochs: {runs} runs are answered by "
                f"the epochs of {fewer}. (all_epochs: true trains each with all epochs, which is another experiment.)"
            )
        explicit = sweep.options.get("epochs")
        longest = max((p.config.epochs for p in points if p.config.method == "ima"), default=explicit)
        if explicit not in (None, longest):
            raise ConfigError(
                f"eps_max / delta_eps gives {longest} epochs, and the option epochs says {explicit}: leave it out, or "
                "ask for all_epochs: true."
            )
    return replace(sweep, points=tuple(points), notes=tuple(notes))


def _longest(points: list[Point]) -> list[Point]:
    """Every run of ima that is the beginning of a longer one gives way to it."""

    def kind(config: Config) -> str:
        return with_options(
            config, {"eps_max": config.expansion, "delta_eps": config.expansion, "epochs": 1}
        ).fingerprint()

    longest: dict[str, Config] = {}
    for point in points:
        if point.config.method == "ima":
            longest[kind(point.config)] = max(
                longest.get(kind(point.config), point.config), point.config, key=lambda c: c.epochs
            )
    return [
        replace(point, config=longest[kind(point.config)]) if point.config.method == "ima" else point
        for point in points
    ]


def asked_text(sweep: Sweep) -> str:
    """The content of sweep.yaml: what was asked for."""
    return yaml.safe_dump(sweep.asked, sort_keys=False, allow_unicode=True)


def _distribution(name: str, given: Any) -> Distribution:
    kind, bounds = "choice", given
    if isinstance(given, dict) and len(given) == 1:
        ((kind, bounds),) = given.items()
    if kind not in DISTRIBUTIONS:
        raise ConfigError(
            f"sweep, {name}: a distribution is one of {', '.join(DISTRIBUTIONS)}, not {kind!r}"
            f"{did_you_mean(kind, DISTRIBUTIONS)}."
        )
    if not isinstance(bounds, list) or not bounds:
        raise ConfigError(f"sweep, {name}: give a list of values, or a distribution such as {{uniform: [0.1, 0.3]}}.")
    if kind == "choice":
        return Distribution(kind, tuple(bounds))
    try:
        # YAML takes 1e-4 for text.
        low, high = (int(b) if kind == "randint" else float(b) for b in bounds)
    except (TypeError, ValueError):
        raise ConfigError(f"sweep, {name}: {kind} needs two numbers, the smallest and the largest.") from None
    if not low < high or (kind == "loguniform" and low <= 0):
        raise ConfigError(f"sweep, {name}: {kind} needs a smaller number first, for loguniform above 0.")
    return Distribution(kind, (low, high))


def _asha(given: dict[str, Any]) -> Asha:
    _check_keys(given, _ASHA_KEYS, "asha, ")
    grace, reduction = given.get("grace", 1), given.get("reduction", 3)
    if not isinstance(grace, int) or grace < 1 or not isinstance(reduction, int | float) or reduction <= 1:
        raise ConfigError("asha needs a grace of at least 1 epoch, and a reduction above 1.")
    return Asha(grace, float(reduction))


def _check_keys(tree: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in tree:
        if key not in keys:
            raise ConfigError(f"{where}unknown entry {key!r}{did_you_mean(key, keys)}.")


def _mapping(tree: dict[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key} must be a mapping.")
    return dict(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
