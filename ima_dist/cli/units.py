"""``--eps-unit range``: noise levels as shares of the range of the inputs, turned into units of the data."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ima_dist.cli.entry import say
from ima_dist.config.schema import Config
from ima_dist.config.values import option_values, with_options

if TYPE_CHECKING:
    from ima_dist.data.types import DataSet

LEVELS = ("eps_max", "delta_eps", "eval.noise", "eval.val_noise")


def add_unit(parser: argparse.ArgumentParser) -> None:
    about = "unit of all noise levels: that of the data, or the range of the training inputs (default: data)"
    parser.add_argument("--eps-unit", choices=("data", "range"), default="data", help=about)


def in_data_units(config: Config, names: Iterable[str]) -> tuple[Config, DataSet]:
    """``config`` with its noise levels ``names`` multiplied by the range of the inputs, which is printed.

    The range is that of the box, or else from the smallest to the largest training input. Also returns the data, so
    that they are loaded once. Raises ConfigError.
    """
    from ima_dist.cli.running import see_users_modules
    from ima_dist.data.load import load
    from ima_dist.training.door import input_range

    see_users_modules()
    data = load(config.data, config.seed)
    found = input_range(data, every=data.box is None)
    low, high = found["box"] or (found["low"], found["high"])
    own = {name: value for name, value in option_values(config).items() if name in names and value is not None}
    scaled = {
        name: [level * (high - low) for level in value] if isinstance(value, list) else value * (high - low)
        for name, value in own.items()
    }
    for name in own.keys() & {"eps_max"}:
        say(f"The inputs range from {low:g} to {high:g}: ε {own[name]:g} of it is {scaled[name]:g}.")
    return with_options(config, scaled), data
