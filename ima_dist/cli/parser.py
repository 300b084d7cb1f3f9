"""The command line, derived from the fields of the configuration."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import typing
from pathlib import Path
from typing import Any, NoReturn

from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.schema import Config
from ima_dist.config.values import type_name, unwrap


class OneLineParser(argparse.ArgumentParser):
    """argparse that reports a mistake in one sentence, with status 2 and no usage block."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message[0].upper() + message[1:].rstrip(".") + f". See {self.prog} --help.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            names = [o for a in self._actions for o in a.option_strings]
            word = rest[0].split("=")[0]
            raise ConfigError(f"Unknown option {word!r}{did_you_mean(word, names)}. See {self.prog} --help.")
        return known, rest


def add_options(parser: argparse.ArgumentParser, only: str | None = None) -> None:
    """Add one option for every field (``--eps-max``, ``--data.subset``); ``only`` restricts to a section."""
    for name, f, hint in _leaves(Config):
        if name == "preset" or (only is not None and not name.startswith(only)):
            continue
        flag = "--" + name.replace("_", "-")
        kind, _ = unwrap(hint)
        common: dict[str, Any] = {
            "dest": name,
            "default": None,
            "help": f.metadata["help"].replace("%", "%%"),
        }
        choices = f.metadata["choices"]
        if kind is bool:
            parser.add_argument(flag, action="store_true", **common)
        elif typing.get_origin(kind) is tuple:
            element = typing.get_args(kind)[0]
            parser.add_argument(flag, type=_list_of(element, choices), metavar="A,B,…", **common)
        elif choices:
            parser.add_argument(flag, type=_one_of(choices), metavar="|".join(choices), **common)
        else:
            parser.add_argument(flag, type=_number(kind), metavar=type_name(kind).upper(), **common)


def given_options(namespace: argparse.Namespace) -> dict[str, Any]:
    """The configuration options that stand on the command line, by dotted name."""
    names = {name for name, _, _ in _leaves(Config)}
    return {k: v for k, v in vars(namespace).items() if k in names and k != "preset" and v is not None}


def _leaves(cls: type, prefix: str = "") -> list[tuple[str, dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    out: list[tuple[str, dataclasses.Field[Any], Any]] = []
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            out += _leaves(hints[f.name], f"{prefix}{f.name}.")
        else:
            out.append((prefix + f.name, f, hints[f.name]))
    return out


def _one_of(choices: tuple[str, ...]) -> Any:
    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(choices)}, not {text!r}{did_you_mean(text, choices)}"
            )
        return text

    return convert


def _number(kind: Any) -> Any:
    def convert(text: str) -> Any:
        for one in typing.get_args(kind) or (kind,):
            with contextlib.suppress(ValueError):
                return one(text)
        what = {"int": "a whole number", "float": "a number"}.get(type_name(kind), type_name(kind))
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")

    return convert


def _list_of(element: Any, choices: tuple[str, ...]) -> Any:
    convert_one = _one_of(choices) if choices else _number(element)

    def convert(text: str) -> tuple[Any, ...]:
        return tuple(convert_one(part.strip()) for part in text.split(",") if part.strip())

    return convert


def user_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given; directories made absolute, because workers have another one."""
    options = given_options(arguments)
    if "data.dir" in options:
        options["data.dir"] = str(Path(options["data.dir"]).absolute())
    return options
