"""The parts of a view, before they become components of a page."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ima_dist.config.errors import cut
from ima_dist.dashboard.state import Control, State
from ima_dist.results.text import harmless
from ima_dist.tracking.collection import Collection

CLEAN, ROBUST, INTERVAL, LEVEL = "clean accuracy", "robust accuracy", "95 % interval", "noise level ε"  # columns
_SIGN = {"eps_max": "ε_max", "beta": "β"}
_LONGEST_CELL, _LONGEST_TEXT = 400, 4000  # characters that are shown


@dataclass(frozen=True)
class Plot:
    """A figure. name: its identity in the page and in the names of downloads. caption: also for screen readers."""

    name: str
    heading: str
    caption: str
    figure: Any


@dataclass(frozen=True)
class Grid:
    """A table. rows: column -> value. digits: decimal places shown; a download has them all.

    links: column -> function from a row to an address within the page. also: columns that only a download has.
    """

    name: str
    heading: str
    columns: list[str]
    rows: list[dict[str, Any]]
    digits: int = 3
    links: dict[str, Callable[[dict[str, Any]], str]] = field(default_factory=dict, repr=False)
    also: tuple[str, ...] = ()

    def csv(self) -> str:
        file, columns = io.StringIO(), [*self.columns, *self.also]
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({column: harmless(row.get(column)) for column in columns} for row in self.rows)
        return file.getvalue()


@dataclass(frozen=True)
class Browser(Grid):
    """A table of hundreds of rows that is sorted in the page, and whose rows can be chosen.

    Its first column, a different text in each row, links to ``links``. widths: column -> pixels.
    """

    widths: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """A sentence of text. warning: one that puts something in doubt."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Item:
    """One thing in a short list: a title that leads somewhere, unless ``href`` is empty, and what is said of it.

    tag: a word or two that stand out; tone: "good", "bad" or "". share: of a bar, 0 to 1, or None. command: what to
    type next; caution: what to know before one does.
    """

    title: str
    href: str
    text: str = ""
    tag: str = ""
    tone: str = ""
    share: float | None = None
    command: str = ""
    caution: str = ""


@dataclass(frozen=True)
class Panel:
    """A short list with a heading; ``more`` is the text and the address of a link to the rest.

    about: a sentence on how to read the items, above them.
    """

    name: str
    heading: str
    items: list[Item]
    empty: str
    more: tuple[str, str] | None = None
    about: str = ""


@dataclass(frozen=True)
class Side:
    """Parts beside one another, where the page is wide enough: columns from left to right."""

    columns: list[list["Part"]]


@dataclass(frozen=True)
class Command:
    """A line to be copied into a terminal."""

    label: str
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values. folded: shown only when asked for."""

    name: str
    heading: str
    pairs: list[tuple[str, str]]
    folded: bool = False


@dataclass(frozen=True)
class Lines:
    """Lines of plain text, such as a log's."""

    name: str
    heading: str
    text: str


@dataclass(frozen=True)
class Picture:
    """An image. source: its address, within the page or as data."""

    source: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Cells of one or more pictures that belong together. cells: heading, pictures, address that the heading leads to
    or "". about: a sentence above them."""

    name: str
    heading: str
    caption: str
    cells: list[tuple[str, list[Picture], str]]
    about: str = ""


@dataclass(frozen=True)
class Editor:
    """A text and tags of a run that can be changed."""

    run: str
    text: str
    tags: tuple[str, ...]


Part = Plot | Grid | Note | Panel | Side | Command | Facts | Lines | Gallery | Editor


def notes(texts: Iterable[str]) -> list[Part]:
    return [Note(text) for text in texts]


Values = dict[str, Any]  # of the controls, by name


class View(Protocol):
    """The interface of a module of ``views``. LIVE: whether it is drawn again when something has changed."""

    TITLE: str
    INTRODUCTION: str
    LIVE: bool

    def controls(self, runs: Collection, state: State) -> list[Control]: ...

    def show(self, runs: Collection, values: Values) -> list[Part]: ...


def shown(value: Any, digits: int) -> str:
    """The text of a cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{digits}f}" if isinstance(value, float) else cut(str(value), _LONGEST_CELL)


def paragraph(text: str) -> str:
    """A text as it is shown as a whole."""
    return cut(text, _LONGEST_TEXT)


def interval_text(bounds: tuple[float, float]) -> str:
    """The ends of an interval as they are shown everywhere."""
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"


def share_text(value: float) -> str:
    """An accuracy as it is shown everywhere; downloads have all digits."""
    return f"{value:.3f}"


def with_interval(value: float, bounds: tuple[float, float]) -> str:
    """A measured share and its 95 % interval in one cell or sentence."""
    return f"{share_text(value)} {interval_text(bounds)}"


def sign_of(option: str) -> str:
    """The name of an option as labels have it: that of the paper, if it has one."""
    return _SIGN.get(option, option)


def p_text(p: float) -> str:
    return f"{p:.4f}" if p >= 1e-4 else "< 0.0001"
