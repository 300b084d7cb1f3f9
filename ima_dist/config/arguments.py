"""Arguments of the user's own functions: ``--data.args.KEY`` and ``--model.args.KEY``, and what functions take."""

import inspect
import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

from ima_dist.config.errors import ConfigError, did_you_mean

# The sections that have arguments, as dotted names.
SECTIONS = ("data.args", "model.args")
# YAML takes 1e-4 for text.
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def is_argument(name: str) -> bool:
    """True for the dotted name of an argument, such as data.args.size."""
    return name.startswith(tuple(f"{section}." for section in SECTIONS))


def checked_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """``given`` with plain values that a file can hold and give back. Raises ConfigError."""
    for name in given:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigError(f"An argument must have a name that a Python function can take, not {name!r}.")
    return {name: _plain(name, value) for name, value in given.items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(name, one) for one in value]
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ConfigError(
        f"The argument {name} must be text, a number, true, false, null, or a list of these, not {value!r}."
    )


def argument_value(text: str) -> Any:
    """A value as typed on the command line: as JSON, or else as text."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def argument_text(value: Any) -> str:
    """Inverse of ``argument_value``."""
    plain = isinstance(value, str) and argument_value(value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)


def check_call(function: Callable[..., Any], reference: str, option: str, values: int, given: dict[str, Any]) -> None:
    """Raise ConfigError unless ``function`` takes ``values`` values in order and the arguments ``given`` by name.

    ``option``: the section of ``given``, "data.args" or "model.args".
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return  # written in C: it says itself what it takes
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p.name for p in (*places[values:], *(p for p in parameters if p.kind == p.KEYWORD_ONLY))]
    known = [name for name in by_name if name not in {p.name for p in places if p.kind == p.POSITIONAL_ONLY}]
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        for name in given:
            if name not in known:
                takes = f"it takes {', '.join(known)}" if known else f"it takes none beside its first {values}"
                raise ConfigError(
                    f"--{option}.{name}: {reference} has no argument {name}{did_you_mean(name, known)}; {takes}."
                )
    required = [p.name for p in parameters if p.default is p.empty and p.name in known and p.name not in given]
    if required:
        raise ConfigError(f"{reference} needs the argument {required[0]}: give --{option}.{required[0]}.")
