"""What will run, on one screen: every option with its value, the preset's where that is another, and what it means."""

import argparse
import shutil
from collections.abc import Container
from typing import Any

from ima_dist.cli.parser import options_of_model
from ima_dist.config.presets import preset_config
from ima_dist.config.schema import EXTERNAL, Config
from ima_dist.config.sources import SOURCES
from ima_dist.config.values import as_flags, as_option, option_values
from ima_dist.plans.sweepfile import reads
from ima_dist.results.text import aligned

_LONGEST = 36  # characters of a value
# Read by the built-in sources of one's own data.
_OF_SOURCES = ("data.size", "data.channels", "data.resize", "data.window", "data.depth")


def add_show_config(parser: argparse.ArgumentParser) -> None:
    about = "print what would run, with the values of the preset, and exit"
    parser.add_argument("--show-config", action="store_true", help=about)


def config_text(config: Config, given: Container[str]) -> str:
    """A line for each option that the method and the source read; ``given``: those that the user typed, which get a
    star."""
    own, usual = option_values(config), option_values(preset_config(config))
    about = {name: option.description or "" for name, option in options_of_model()}
    left_out = {"preset", *(name for name in _idle(config) if name not in given)}
    own = {name: value for name, value in own.items() if name not in left_out}
    unread = [name for name in own if not reads(config.method, name)]
    head = ["", "option", "value", "preset", ""]
    rows = [
        ["*" * (name in given), as_option(name), _shown(name, value), _usual(name, value, usual), _about(name, about)]
        for name, value in own.items()
        if name not in unread
    ]
    width = shutil.get_terminal_size((120, 50)).columns
    lines = [line.rstrip() for line in aligned([head, *rows], left=len(head))]
    lines = [line if len(line) <= width else line[: width - 2] + " …" for line in lines]
    notes = [f"Preset {config.preset}; fingerprint {config.fingerprint()}. *: given. preset: its value, if another."]
    if unread and config.method != EXTERNAL:
        notes.append(f"Not read by --method {config.method}: {', '.join(map(as_option, unread))}.")
    return "\n".join([*lines, *notes])


def _idle(config: Config) -> set[str]:
    """Options that only other data or attacks read, or that go with what is not given."""
    source, attacks = config.data.source, config.eval.attacks
    published = source.startswith("ima_dist.")
    unread = (
        (source not in SOURCES, _OF_SOURCES),
        (published, ("data.split", "data.hide_names")),
        (not published, ("data.val_size",)),
        (source != "ima_dist.data.moons:load", ("data.noise",)),
        (config.data.groups_sha256 is None, ("data.groups_sha256",)),
        (config.model.weights is None, ("model.weights_sha256", "model.weights_strict")),
        ("spsa" not in attacks, ("eval.spsa_samples",)),
        ("smoothing" not in attacks, tuple(f"smoothing.{name}" for name in type(config.smoothing).model_fields)),
        (config.eval.val_noise is None, ("eval.val_steps", "eval.val_samples")),
    )
    return {name for off, names in unread if off for name in names}


def _about(name: str, about: dict[str, str]) -> str:
    """The help text of an option; of an argument of the user's function that of all of them."""
    return about.get(name) or about[name.rpartition(".")[0]]


def _shown(name: str, value: Any) -> str:
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, float) for number in numbers):  # 0.0313 in place of 0.03137254901960784
        return _short(",".join(f"{number:.3g}" for number in numbers))
    words = as_flags({name: value})
    text = words[1] if len(words) > 1 else "yes" if words else "no" if value is False else "-"
    return _short(text)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _usual(name: str, value: Any, usual: dict[str, Any]) -> str:
    """The preset's value, if it is another one than ``value``."""
    if name not in usual:
        return "-"
    return "" if usual[name] == value else _shown(name, usual[name])
