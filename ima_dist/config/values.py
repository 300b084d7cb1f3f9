"""Configurations as plain values: dictionaries, command-line words, differences."""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
import typing
from typing import Any

from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.schema import Config, flatten, result_fields


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dictionary (lists, numbers, strings) for YAML or JSON."""
    return {
        f.name: to_dict(v) if dataclasses.is_dataclass(v) else list(v) if isinstance(v, tuple) else v
        for f in dataclasses.fields(config)
        for v in [getattr(config, f.name)]
    }


def from_dict(values: dict[str, Any], cls: type = Config, where: str = "") -> Any:
    """Inverse of ``to_dict``. Raises ConfigError for an unknown key or a value of the wrong type."""
    if not isinstance(values, dict):
        raise ConfigError(f"The configuration's {where or 'top level'} must be a mapping of names to values.")
    hints = typing.get_type_hints(cls)
    names = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ConfigError(
            f"The configuration has an unknown entry {where}{unknown[0]!r}{did_you_mean(unknown[0], names)}."
        )
    missing = sorted(n for n in names if n not in values and _required(names[n]))
    if missing:
        raise ConfigError(f"The configuration lacks the entry {where}{missing[0]!r}.")
    out = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            out[name] = from_dict(value, typing.cast(type, hint), f"{where}{name}.")
        else:
            out[name] = _coerce(value, hint, f"{where}{name}")
    config = cls(**out)
    return config.check() if isinstance(config, Config) else config


def with_options(config: Config, changes: dict[str, Any]) -> Config:
    """Config with dotted names replaced, e.g. ``{"beta": 0.3, "data.subset": 2000}``; checked."""
    tree = to_dict(config)
    for dotted, value in changes.items():
        node = tree
        *parents, last = dotted.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = list(value) if isinstance(value, tuple) else value
    return typing.cast(Config, from_dict(tree))


def option_values(config: Config) -> dict[str, Any]:
    """Every option by its dotted name, as plain values."""
    return flatten(to_dict(config))


def as_flags(options: dict[str, Any]) -> list[str]:
    """Command-line words for options by dotted name, the inverse of ``given_options``."""
    words = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return words


def differences(a: Config, b: Config) -> list[str]:
    """Dotted names of the fields that determine results and differ between the two."""
    left, right = flatten(result_fields(a)), flatten(result_fields(b))
    return sorted(k for k in left | right if left.get(k) != right.get(k))


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def unwrap(hint: Any) -> tuple[Any, bool]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return functools.reduce(operator.or_, inner), True
    return hint, False


def type_name(kind: Any) -> str:
    return "|".join(one.__name__ for one in typing.get_args(kind) or (kind,))


def _coerce(value: Any, hint: Any, name: str) -> Any:
    kind, optional = unwrap(hint)
    if value is None and optional:
        return None
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"The configuration's {name} must be a list, not {value!r}.")
        return tuple(_coerce(v, element, name) for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"The configuration's {name} must be of type {type_name(kind)}, not {value!r}.")
    return value
