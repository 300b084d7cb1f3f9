"""The command line, derived from the options of the configuration."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ima_dist.config.checked import Accepts, accepts
from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.schema import Config
from ima_dist.config.values import as_option

PROGRAM = "ima-dist"


class OneLineParser(argparse.ArgumentParser):
    """argparse that reports a mistake in one sentence, with status 2 and no usage block.

    A command that was started as a sub-command of ``ima-dist`` calls itself so.
    """

    def __init__(self, *, prog: str, **rest: Any) -> None:
        if Path(sys.argv[0]).name == PROGRAM:
            prog = prog.replace("python -m ima_dist.", f"{PROGRAM} ").replace("python -m cluster.", f"{PROGRAM} ")
        super().__init__(prog=prog, **rest)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message[0].upper() + message[1:].rstrip(".") + f". See {self.prog} --help.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            names = [o for a in self._actions for o in a.option_strings]
            word = rest[0].split("=")[0]
            raise ConfigError(f"Unknown option {word!r}{did_you_mean(word, names)}. See {self.prog} --help.")
        return known, rest


def cluster_parser(name: str, description: str | None) -> OneLineParser:
    """Parser of ``python -m cluster.NAME``; its help shows the description as it is written."""
    raw = argparse.RawDescriptionHelpFormatter
    return OneLineParser(
        prog=f"python -m cluster.{name}", description=description, formatter_class=raw, allow_abbrev=False
    )


def add_options(parser: argparse.ArgumentParser, *only: str) -> None:
    """Add the options of a configuration (``--eps-max``, ``--data.subset``): all, or ``only`` those and sections."""
    for name, option in _options(Config):
        if only and not name.startswith(only):
            continue
        takes = accepts(option.annotation, option.metadata)
        common: dict[str, Any] = {"dest": name, "default": None, "help": (option.description or "").replace("%", "%%")}
        if takes.kinds == (bool,):
            parser.add_argument(as_option(name), action="store_true", **common)
        else:
            kind = "|".join(takes.choices or (kind.__name__.upper() for kind in takes.kinds))
            metavar = "A,B,…" if takes.many else kind
            parser.add_argument(as_option(name), type=_converter(takes), metavar=metavar, **common)


def user_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration options on the command line, by dotted name.

    Directories are made absolute, because workers have another one.
    """
    names = dict(_options(Config))
    options = {k: v for k, v in vars(arguments).items() if k in names and v is not None}
    if "data.dir" in options:
        options["data.dir"] = str(Path(options["data.dir"]).absolute())
    return options


def listed(text: str | None, kind: Callable[[str], Any], must_be: str) -> list[Any]:
    """The numbers in ``text``, which commas separate; [] for None. Raises ConfigError: ``must_be``, not ``text``."""
    if text is None:
        return []
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise ConfigError(f"{must_be}, not {text!r}.")
    return found


def _options(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, option in model.model_fields.items():
        if isinstance(option.annotation, type) and issubclass(option.annotation, BaseModel):
            yield from _options(option.annotation, f"{prefix}{name}.")
        elif name != "preset":
            yield prefix + name, option


def _converter(takes: Accepts) -> Any:
    """Text to a value; what is no number stays text, of which the configuration says what is wrong with it."""

    def one(text: str) -> Any:
        for kind in takes.kinds:
            with contextlib.suppress(ValueError):
                return kind(text)
        return text

    return (lambda text: tuple(one(p.strip()) for p in text.split(",") if p.strip())) if takes.many else one
