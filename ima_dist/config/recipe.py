"""Recipes: sets of option values under one name (``--recipe NAME``), in ``recipes/NAME.yaml``.

A recipe lies on top of the preset and beneath the options that the user gives. A run stores only the resulting
options, so a recipe that changes later changes no run.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ima_dist.config.checked import Checked, validated
from ima_dist.config.errors import ConfigError, did_you_mean

_PLACE = Path(__file__).parent / "recipes"
#: The key, among options by dotted name, under which ``make_config`` and job and sweep files take one.
RECIPE = "recipe"
# Only one of the two can be set.
_RIVALS = {"optimizer.schedule": "optimizer.halve_every", "optimizer.halve_every": "optimizer.schedule"}


class Recipe(Checked):
    """about: what it is for. source: where its values come from. options: values by dotted name."""

    about: str
    source: str
    options: dict[str, Any]


def recipe_names() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in _PLACE.glob("*.yaml")))


def over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """The options of both, by dotted name; where they contradict each other, those of ``upper``."""
    replaced = {_RIVALS[name] for name, value in upper.items() if name in _RIVALS and value is not None}
    if upper.get("optimizer.name", "sgd") != "sgd":
        replaced.add("optimizer.nesterov")  # no other optimiser has it
    return {**{name: value for name, value in lower.items() if name not in replaced}, **upper}


@cache
def read_recipe(name: str) -> Recipe:
    """Raises ConfigError for a name that no recipe has."""
    known = recipe_names()
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"--recipe must be one of {', '.join(known)}, not {name!r}{hint}.")
    tree = yaml.safe_load((_PLACE / f"{name}.yaml").read_text(encoding="utf-8"))
    return validated(Recipe, tree, f"The recipe {name}")


def with_recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` by dotted name, with those of their recipe, if they name one, where they say nothing."""
    name = options.get(RECIPE)
    beneath = {} if name is None else read_recipe(str(name)).options
    return over(beneath, {key: value for key, value in options.items() if key != RECIPE})
