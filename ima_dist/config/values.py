"""Configurations as plain values: dictionaries, command-line words, differences."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ima_dist.config.arguments import argument_text, is_argument
from ima_dist.config.checked import validated
from ima_dist.config.schema import Config, result_fields


def to_dict(config: BaseModel) -> dict[str, Any]:
    """Plain nested dictionary (lists, numbers, strings) for YAML or JSON."""
    return config.model_dump(mode="json")


def from_dict(values: Mapping[str, Any]) -> Config:
    """Inverse of ``to_dict``. Raises ConfigError for an unknown entry or a value that cannot work."""
    return validated(Config, values, "The configuration", as_option)


def with_options(config: Config, changes: Mapping[str, Any]) -> Config:
    """Config with dotted names replaced, e.g. ``{"beta": 0.3, "data.subset": 2000}``; checked."""
    stale = {f"{name}_sha256": None for name in ("data.groups", "model.weights") if name in changes}
    return from_dict(nested(to_dict(config), {**stale, **changes}))


def nested(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``tree`` with the values of ``changes``, by dotted name, put in."""
    for dotted, value in changes.items():
        node = tree
        *parents, last = str(dotted).split(".")
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = dict(value) if isinstance(value, dict) else value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a nested dictionary by dotted name."""
    out = {}
    for key, value in tree.items():
        out.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return out


def option_values(config: Config) -> dict[str, Any]:
    """Every option by its dotted name, as plain values."""
    return flatten(to_dict(config))


def as_option(name: str) -> str:
    """A dotted name as it stands on the command line: eps_max -> --eps-max."""
    return "--" + name.replace("_", "-")


def is_on(name: str) -> bool:
    """Whether the option with this dotted name is a switch that is on by default, so that a value must be given."""
    fields, default = Config.model_fields, None
    for part in name.split("."):
        field = fields.get(part)
        default = field.default if field else None
        fields = getattr(field.annotation, "model_fields", {}) if field else {}
    return default is True


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """Command-line words for options by dotted name, the inverse of ``user_options``."""
    words = []
    for name, value in options.items():
        if is_argument(name):
            text = argument_text(value)
            # argparse takes -1e-05 for an option.
            words += [f"{as_option(name)}={text}"] if text.startswith("-") else [as_option(name), text]
            continue
        if is_on(name):
            words += [as_option(name), str(value).lower()]
            continue
        if value is None or value is False:
            continue
        words.append(as_option(name))
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return words


def differences(a: Config, b: Config) -> list[str]:
    """Dotted names of the options that determine results and differ between the two."""
    left, right = flatten(result_fields(a)), flatten(result_fields(b))
    return sorted(k for k in left | right if left.get(k) != right.get(k))
