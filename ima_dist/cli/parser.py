"""The command line, derived from the options of the configuration."""

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ima_dist.cli.meant import meant
from ima_dist.config.arguments import argument_value, is_argument
from ima_dist.config.checked import Accepts, accepts
from ima_dist.config.errors import ConfigError
from ima_dist.config.recipe import RECIPE, read_recipe, recipe_names
from ima_dist.config.schema import Config
from ima_dist.config.values import as_option, is_on

PROGRAM = "ima-dist"
_NEGATIVE = re.compile(r"-[\d.]+(e[-+]?\d+)?(,[-+\d.e]+)+")
# What only some commands take, which others are often given.
_ELSEWHERE = {
    "--eps-unit": ": only train and evaluate take it; in a job or sweep file give noise levels in units of the data",
    "--show-config": ": only train, evaluate, audit, job and sweep have a configuration to show",
}


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
        words = self._with_arguments_of_functions(sys.argv[1:] if args is None else args)
        words = [self._as_switch(word) for word in words]
        known, rest = super().parse_known_args(words, namespace)
        if rest:
            word = rest[0].split("=")[0]
            hint = meant(word, self._option_string_actions)
            hint = hint or _ELSEWHERE.get(word, "")
            raise ConfigError(f"Unknown option {word!r}{hint}. See {self.prog} --help.")
        return known, rest

    def _as_switch(self, word: str) -> str:
        """``--tf32`` or ``--no-tf32`` for ``--tf32=true`` and ``--tf32=false``; any other word as it is."""
        option, _, value = word.partition("=")
        if isinstance(self._option_string_actions.get(option), argparse.BooleanOptionalAction):
            return {"true": option, "false": f"--no-{option[2:]}"}.get(value.lower(), word)
        return word

    def _with_arguments_of_functions(self, words: Sequence[str]) -> list[str]:
        """Add an option for each argument of the user's functions in ``words``: the user chooses their names.

        Returns the words, with a negative number, or a list that begins with one, joined to its option: argparse takes
        -1e-3 and -1,2 for options.
        """
        found: list[str] = []
        for word in words:
            option = word.split("=")[0]
            section, dot, key = option[2:].rpartition(".")
            takes_any = bool(dot and key) and as_option(f"{section}.KEY") in self._option_string_actions
            if takes_any and option not in self._option_string_actions:
                self.add_argument(option, dest=f"{section}.{key.replace('-', '_')}", type=argument_value)
            before = found[-1] if found else ""
            if "=" not in before and (
                (is_argument(before[2:]) and isinstance(argument_value(word), int | float))
                or (before.startswith("--") and _NEGATIVE.fullmatch(word))
            ):
                found[-1] = f"{before}={word}"
            else:
                found.append(word)
        return found


def cluster_parser(name: str, description: str | None) -> OneLineParser:
    """Parser of ``python -m cluster.NAME``; its help shows the description as it is written."""
    raw = argparse.RawDescriptionHelpFormatter
    return OneLineParser(
        prog=f"python -m cluster.{name}", description=description, formatter_class=raw, allow_abbrev=False
    )


def add_options(parser: argparse.ArgumentParser, *only: str) -> None:
    """Add the options of a configuration (``--eps-max``, ``--data.subset``): all, or ``only`` those and sections.

    With all of them also ``--recipe``, which sets several.
    """
    if not only:
        about = "; ".join(f"{name}, {read_recipe(name).about}" for name in recipe_names())
        parser.add_argument(
            f"--{RECIPE}",
            metavar="|".join(recipe_names()),
            help=f"values for several options at once, where no others are given: {about}".replace("%", "%%"),
        )
    for name, option in options_of_model():
        if only and not name.startswith(only):
            continue
        takes = accepts(option.annotation, option.metadata)
        common: dict[str, Any] = {"dest": name, "default": None, "help": help_of(option).replace("%", "%%")}
        if takes.kinds == (dict,):
            parser.add_argument(as_option(f"{name}.KEY"), metavar="VALUE", **{**common, "dest": f"{name}.KEY"})
        elif is_on(name):
            parser.add_argument(as_option(name), type=_switch, metavar="true|false", **common)
            off = {**common, "help": argparse.SUPPRESS}
            parser.add_argument(f"--no-{as_option(name)[2:]}", action="store_const", const=False, **off)
        elif takes.kinds == (bool,):
            # With --no-…, because a resumed run has what it began with.
            parser.add_argument(as_option(name), action=argparse.BooleanOptionalAction, **common)
        else:
            kind = "|".join(takes.choices or (kind.__name__.upper() for kind in takes.kinds))
            metavar = "A,B,…" if takes.many else kind
            parser.add_argument(as_option(name), type=_converter(takes), metavar=metavar, **common)


def _switch(text: str) -> Any:
    """A switch that is on by default; what is neither on nor off stays text, which the configuration refuses."""
    return {"true": True, "false": False}.get(text.lower(), text)


def help_of(option: FieldInfo) -> str:
    """The help text of an option, with its default."""
    text, default = option.description or "", option.default
    unsaid = option.is_required() or default is None or isinstance(default, bool | dict) or "(default" in text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return text if unsaid else f"{text} (default: {shown})"


def user_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration options on the command line, by dotted name, and the recipe.

    Directories are made absolute, because workers have another one.
    """
    names = {RECIPE: None, **dict(options_of_model())}
    given = {k: v for k, v in vars(arguments).items() if is_argument(k) or (k in names and v is not None)}
    # That of the help text stands for any key, and is not one that was given.
    options = {k: v for k, v in given.items() if not k.endswith(".args.KEY") or v is not None}
    if "data.dir" in options:
        place = options["data.dir"]
        # A variable is expanded on the node on which a SLURM job runs.
        options["data.dir"] = place if place.startswith("$") else str(Path(place).absolute())
    return options


def listed(text: str | None, kind: Callable[[str], Any], must_be: str) -> list[Any]:
    """The numbers in ``text``, which commas separate; [] for None. Raises ConfigError: ``must_be``, not ``text``."""
    if text is None:
        return []
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found:
        raise ConfigError(f"{must_be}, not {text!r}.")
    return found


def options_of_model(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name and field of every option of a configuration."""
    for name, option in model.model_fields.items():
        if isinstance(option.annotation, type) and issubclass(option.annotation, BaseModel):
            yield from options_of_model(option.annotation, f"{prefix}{name}.")
        elif name != "preset":
            yield prefix + name, option


def _converter(takes: Accepts) -> Any:
    """Text to a value; what is no number stays text, of which the configuration says what is wrong with it."""

    def one(text: str) -> Any:
        for kind in takes.kinds:
            with contextlib.suppress(ValueError):
                return kind(text)
        return text

    return (lambda text: tuple(one(p.strip()) for p in text.split(",")) if text.strip() else ()) if takes.many else one
