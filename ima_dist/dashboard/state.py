"""The selection, which only the address holds, and the controls that change it."""

import math
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

State = dict[str, list[str]]


def parse(search: str | None) -> State:
    """The query of an address, with or without its question mark; empty if it is malformed."""
    try:
        return parse_qs((search or "").removeprefix("?"), keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        return {}


def unparse(state: State) -> str:
    """Inverse of ``parse``, with a question mark unless empty."""
    query = urlencode(state, doseq=True)
    return f"?{query}" if query else ""


@dataclass(frozen=True)
class _Named:
    name: str
    label: str


@dataclass(frozen=True)
class Choice(_Named):
    """Pick among ``options`` (value -> label): one of a few shown side by side, or from a list that can be searched.

    about: value -> a line of help.
    """

    options: dict[str, str]
    value: str | None
    long: bool = False
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Several(_Named):
    """Pick any number from a list that can be searched.

    placeholder: shown as long as none is. short: a narrow one. usual: what an address without the name means.
    """

    options: dict[str, str]
    value: list[str]
    placeholder: str = "choose runs"
    short: bool = False
    usual: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text(_Named):
    """Words that are typed. placeholder: shown as long as there are none."""

    value: str
    placeholder: str = ""


@dataclass(frozen=True)
class Slider(_Named):
    """A whole number from low to high."""

    low: int
    high: int
    value: int


@dataclass(frozen=True)
class Number(_Named):
    """A number that is typed."""

    low: float
    high: float
    step: float
    value: float | None


Control = Choice | Several | Text | Slider | Number


def one_of(
    state: State, name: str, label: str, options: dict[str, str], default: str | None = None, long: bool = False
) -> Choice:
    """The value of the state if it is among the options, else ``default`` or the first."""
    given = [v for v in state.get(name, []) if v in options]
    if default not in options:
        default = next(iter(options), None)
    return Choice(name, label, options, given[0] if given else default, long)


def some_of(state: State, name: str, label: str, options: dict[str, str], default: list[str]) -> Several:
    """The values of the state that are among the options; ``default`` if the state has none at all."""
    given = [v for v in dict.fromkeys(state.get(name, [])) if v in options]
    return Several(name, label, options, given or [v for v in default if v in options])


def any_of(state: State, name: str, label: str, options: dict[str, str]) -> Several:
    """The values of the state that are among the options; none means all."""
    return Several(name, label, options, some_of(state, name, label, options, []).value, "all", short=True)


def text(state: State, name: str, label: str, placeholder: str = "") -> Text:
    """The words of the state."""
    return Text(name, label, next(iter(state.get(name, [])), "")[:200], placeholder)


def slider(state: State, name: str, label: str, low: int, high: int, default: int) -> Slider:
    """The whole number of the state, brought within the range."""
    number = _float(state, name)
    return Slider(name, label, low, high, max(low, min(high, default if number is None else int(number))))


def number(state: State, name: str, label: str, low: float, high: float, step: float, default: float | None) -> Number:
    """The number of the state if it lies in the range."""
    found = _float(state, name)
    return Number(name, label, low, high, step, found if found is not None and low <= found <= high else default)


def words(value: Any) -> list[str]:
    """A control's value as the address holds it."""
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    return [f"{v:g}" if isinstance(v, float) else str(v) for v in values]


def _float(state: State, name: str) -> float | None:
    try:
        found = float(state[name][0])
    except (KeyError, IndexError, ValueError):
        return None
    return found if math.isfinite(found) else None
