"""Sweep files: which options vary, and which runs give the results.

The result of a combination of values is a run, or an epoch of one: several combinations may share a run. Runs are
identified by the fingerprint of their configuration, so that equal ones are trained once.
"""

import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from annotated_types import Len
from pydantic import Field, Strict, model_validator

from ima_dist.config.checked import Checked, validated
from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.numbers import number
from ima_dist.config.presets import make_config, preset_config
from ima_dist.config.schema import EXTERNAL, METHODS, Config
from ima_dist.config.values import option_values, with_options
from ima_dist.plans.jobfile import Written, find_file, read_yaml, run_path

DISTRIBUTIONS = ("choice", "uniform", "loguniform", "randint")
# Entries that a scale may replace; all others of a scale are options.
_SCALED = ("sweep", "seeds", "samples", "asha", "all_epochs")

_WITH_STEPS = frozenset(METHODS) - {"ce", "rand", "nfgsm"}
# Option -> the methods whose training reads it; every method reads all other options. A test trains them.
READ_BY = {
    "eps_max": frozenset(METHODS) - {"ce"},
    "delta_eps": frozenset({"ima", "mma", "iaat"}),
    "beta": frozenset({"ima"}),
    "margin_update": frozenset({"ima"}),
    "margin_rule": frozenset({"ima"}),
    "trades.inverse_lambda": frozenset({"trades"}),
    "rand.kind": frozenset({"rand"}),
    "attack.steps": _WITH_STEPS,
    "iaat.warmup": frozenset({"iaat"}),
    "iaat.smoothing": frozenset({"iaat"}),
    "fat.tau": frozenset({"fat"}),
    "nfgsm.noise": frozenset({"nfgsm"}),
    "attack.step_scale": frozenset({"ima", "adv", "trades", "iaat", "fat"}),
    "attack.bisections": frozenset({"ima", "mma"}),
    "attack.boundary_side": frozenset({"ima"}),
}


# Options of the training itself, by how they begin, which a network trained elsewhere has no use for.
_OF_TRAINING = (
    *(*READ_BY, "attack.", "optimizer.", "eval.val_", "epochs", "label_smoothing", "ema", "awp", "patience"),
    *("autocast", "tf32", "compile", "cuda_graphs", "checkpoint_every"),
)


def reads(method: str, option: str) -> bool:
    """Whether what is done with ``method`` depends on this option."""
    if method == EXTERNAL:
        return not option.startswith(_OF_TRAINING)
    return option not in READ_BY or method in READ_BY[option]


class Asha(Checked):
    """Asynchronous successive halving (Li et al. 2020): after ``grace`` epochs, and after every ``reduction``-th
    power of it, a trial continues only if it is among the best 1 / reduction of those that got there before."""

    grace: int = Field(1, ge=1)
    reduction: float = Field(3.0, gt=1)


@dataclass(frozen=True)
class Distribution:
    """Values of one option: "choice" among ``bounds``, or "uniform", "loguniform" or "randint" (both ends included)
    between the two."""

    kind: str
    bounds: tuple[Any, ...]

    @classmethod
    def read(cls, given: Any) -> Self:
        """From a list of values, or {distribution: [smallest, largest]}. Raises ConfigError."""
        kind, bounds = "choice", given
        if isinstance(given, dict) and len(given) == 1:
            ((kind, bounds),) = given.items()
        if kind not in DISTRIBUTIONS:
            known = f"{', '.join(DISTRIBUTIONS)}, not {kind!r}{did_you_mean(kind, DISTRIBUTIONS)}"
            raise ConfigError(f"a distribution is one of {known}.")
        if not isinstance(bounds, list) or not bounds:
            raise ConfigError("give a list of values, or a distribution such as {uniform: [0.1, 0.3]}.")
        if kind == "choice":
            return cls(kind, tuple(bounds))
        try:
            # YAML takes 1e-4 for text.
            low, high = (int(b) if kind == "randint" else number(str(b)) for b in bounds)
        except (TypeError, ValueError):
            raise ConfigError(f"{kind} needs two numbers, the smallest and the largest.") from None
        if not low < high or (kind == "loguniform" and low <= 0):
            raise ConfigError(f"{kind} needs a smaller number first, for loguniform above 0.")
        return cls(kind, (low, high))

    def draw(self, generator: random.Random) -> Any:
        if self.kind == "choice":
            return generator.choice(self.bounds)
        low, high = self.bounds
        if self.kind == "randint":
            return generator.randint(low, high)
        if self.kind == "uniform":
            return generator.uniform(low, high)
        return math.exp(generator.uniform(math.log(low), math.log(high)))


class WrittenSweep(Written):
    sweep: Annotated[dict[Any, Any], Len(1)]
    seeds: Annotated[tuple[int, ...], Strict(False), Len(1)] = (0,)
    search: Literal["grid", "random", "optuna"] = "grid"
    samples: int | None = Field(None, ge=1)
    asha: Asha | None = None
    all_epochs: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if "seed" in self.options:
            raise ConfigError("give seeds: [0, 1, …] in place of the option seed.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("seeds must be a list of different whole numbers, such as [0, 1].")
        if (self.samples is None) != (self.search == "grid"):
            raise ConfigError(
                "samples must be a whole number of at least 1 for random and optuna, and left out for a grid."
            )
        needs = "asha" if self.asha else "search: optuna" if self.search == "optuna" else None
        if needs and "eval.val_noise" not in self.options:
            raise ConfigError(
                f"{needs} compares validation samples that withstand an attack: give the option eval.val_noise, the "
                "noise level."
            )
        if self.asha and self.search == "optuna" and len(self.seeds) > 1:
            raise ConfigError("search: optuna takes the mean over the seeds, so with asha there can be only one seed.")
        return self


@dataclass(frozen=True)
class Point:
    """One combination with one seed.

    values: swept option -> value, without those that its method does not read. config, epoch: the run, and the
    epoch of it, that give the result.
    """

    values: dict[str, Any]
    seed: int
    config: Config
    epoch: int


class Sweep(WrittenSweep):
    """A sweep file, checked. points: all combinations in order, () if the search chooses them as it goes.

    space: swept option -> Distribution. notes: one sentence for each way in which runs are saved. asked: the file's
    content with its scale applied, itself a sweep file.
    """

    space: dict[str, Distribution]
    asked: dict[str, Any]
    points: tuple[Point, ...] = ()
    notes: tuple[str, ...] = ()

    def point(self, values: dict[str, Any], seed: int) -> Point:
        """The combination, as a run of its own. Raises ConfigError."""
        config = canonical(make_config(self.preset, {**self.options, **values, "seed": seed}))
        config = self._with_its_epochs(config)
        read = {name: value for name, value in values.items() if reads(config.method, name)}
        return Point(read, seed, config, config.epochs)

    def any_point(self) -> Point:
        """An example of the combinations, for checks before any is chosen. Raises ConfigError."""
        if self.points:
            return self.points[0]
        return self.point({name: d.bounds[0] for name, d in self.space.items()}, self.seeds[0])

    @property
    def planned(self) -> int:
        """The number of trials of an open search."""
        return (self.samples or 0) * len(self.seeds)

    @property
    def by_epochs(self) -> bool:
        """True if every ε_max = M·Δε is the state after M epochs, so that one run gives the results of all of them."""
        given = self.options.get("delta_eps") is not None or "delta_eps" in self.space
        return "eps_max" in self.space and given and not self.all_epochs

    def _with_its_epochs(self, config: Config) -> Config:
        if not self.by_epochs or config.method != "ima":
            return config
        epochs = config.eps_max / config.expansion
        if abs(epochs - round(epochs)) > 1e-6:
            raise ConfigError(
                f"eps_max {config.eps_max:g} is not a whole number of delta_eps {config.expansion:g}: correct it, "
                "or ask for all_epochs: true."
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
    """``config`` with its preset's value for every option that its method does not read."""
    unread = [name for name in READ_BY if not reads(config.method, name)]
    usual, own = option_values(preset_config(config)), option_values(config)
    return with_options(config, {name: usual[name] for name in unread if own[name] != usual[name]})


def is_sweep(path: Path | str) -> bool:
    """True for a sweep file, False for a job file. Raises ConfigError if it cannot be read."""
    return "sweep" in read_yaml(find_file(path), "sweep or rows")


def read_sweep(
    path: Path | str,
    scale: str | None = None,
    options: Mapping[str, Any] | None = None,
    seeds: tuple[int, ...] | None = None,
) -> Sweep:
    """The sweep in a file, with its ``scale`` and then ``options`` and ``seeds`` on top; every configuration checked.

    Raises ConfigError naming the file and the entry.
    """
    path = find_file(path)
    tree = read_yaml(path, "title, preset and sweep")
    if "rows" in tree and "sweep" not in tree:
        raise ConfigError(f"{path} is a job file: give it to python -m ima_dist.job.")
    try:
        return _read(tree, scale, options or {}, seeds)
    except ConfigError as error:
        raise ConfigError(f"In {path}: {error}") from None


def _read(tree: dict[str, Any], scale: str | None, options: Mapping[str, Any], seeds: tuple[int, ...] | None) -> Sweep:
    reduced = validated(Written, {k: v for k, v in tree.items() if k in Written.model_fields}, "the file").scaled(scale)
    asked = {**tree, **{key: reduced.pop(key) for key in _SCALED if key in reduced}}
    asked = {key: value for key, value in asked.items() if key != "scales" and value is not None}
    asked["options"] = {**asked.get("options", {}), **reduced, **options}
    asked["options"] = {k: list(v) if isinstance(v, tuple) else v for k, v in asked["options"].items()}
    asked["seeds"] = list(seeds or ()) or asked.get("seeds") or [0]
    asked["title"] += f", scale {scale}" if scale else ""
    file = validated(WrittenSweep, asked, "the file")
    space = {}
    for name, given in file.sweep.items():
        try:
            space[str(name)] = Distribution.read(given)
        except ConfigError as error:
            raise ConfigError(f"sweep, {name}: {error}") from None
    if file.search == "grid" and any(d.kind != "choice" for d in space.values()):
        raise ConfigError("a grid needs a list of values for every option: give search: random or search: optuna.")
    return _planned(Sweep(**dict(file), space=space, asked=asked))


def _planned(sweep: Sweep) -> Sweep:
    """The sweep with its points; for Optuna, checks the corners of the space, so that mistakes show now."""
    if sweep.search == "optuna":
        ends = [(d.bounds if d.kind == "choice" else d.bounds[:2]) for d in sweep.space.values()]
        for corner in itertools.product(*ends):
            sweep.point(dict(zip(sweep.space, corner, strict=True)), sweep.seeds[0])
        return sweep
    if sweep.search == "grid":
        lists = [d.bounds for d in sweep.space.values()]
        combinations = [dict(zip(sweep.space, values, strict=True)) for values in itertools.product(*lists)]
    else:
        # The same draws each time, so that a sweep can be continued.
        generator = random.Random(0)
        combinations = [{n: d.draw(generator) for n, d in sweep.space.items()} for _ in range(sweep.samples or 0)]
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
            f"{asked - len(points)} of {asked} combinations differ from another one only in options that their method "
            f"does not read: {len(points)} are left."
        )
    runs = len({p.config.fingerprint() for p in points})
    if sweep.by_epochs:
        points = _longest(points)
        fewer = len({p.config.fingerprint() for p in points})
        if fewer < runs:
            notes.append(
                f"At equal delta_eps, eps_max = M · delta_eps is the state after M epochs, so {fewer} runs give the "
                f"results of {runs}. (all_epochs: true trains each with all epochs, which is another experiment.)"
            )
        explicit = sweep.options.get("epochs")
        longest = max((p.config.epochs for p in points if p.config.method == "ima"), default=explicit)
        if explicit not in (None, longest):
            raise ConfigError(
                f"eps_max / delta_eps gives {longest} epochs, and the option epochs says {explicit}: leave it out, or "
                "ask for all_epochs: true."
            )
    return sweep.model_copy(update={"points": tuple(points), "notes": tuple(notes)})


def _longest(points: list[Point]) -> list[Point]:
    """Replaces every run of ima that is the beginning of a longer one by that.

    One whose learning rate or end depends on its number of epochs is none.
    """

    def kind(config: Config) -> str:
        changes = {"eps_max": config.expansion, "delta_eps": config.expansion, "epochs": 1}
        return with_options(config, changes).fingerprint()

    def may_be(config: Config) -> bool:
        return config.method == "ima" and config.optimizer.schedule == "constant" and config.patience is None

    longest: dict[str, Config] = {}
    for config in sorted((p.config for p in points if may_be(p.config)), key=lambda c: -c.epochs):
        longest.setdefault(kind(config), config)
    return [replace(p, config=longest[kind(p.config)]) if may_be(p.config) else p for p in points]


def is_asked(text: str) -> bool:
    """Whether a sweep.yaml was written by ``asked_text``, and is not the user's own file."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    ours = isinstance(tree, dict) and {"title", "options", "seeds"} <= tree.keys()
    return ours and bool(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True) == text)


def asked_text(sweep: Sweep) -> str:
    """The content of sweep.yaml: the sweep as requested."""
    return yaml.safe_dump(sweep.asked, sort_keys=False, allow_unicode=True)
