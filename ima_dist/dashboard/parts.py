"""The parts of a view, before they become components of a page."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ima_dist.dashboard.state import Control, State
from ima_dist.tracking.collection import Collection


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

    links: column -> function from a row to an address within the page.
    """

    name: str
    heading: str
    columns: list[str]
    rows: list[dict[str, Any]]
    digits: int = 4
    links: dict[str, Callable[[dict[str, Any]], str]] = field(default_factory=dict, repr=False)

    def csv(self) -> str:
        file = io.StringIO()
        writer = csv.DictWriter(file, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return file.getvalue()


@dataclass(frozen=True)
class Note:
    """A sentence of text."""

    text: str


Part = Plot | Grid | Note


def notes(texts: Iterable[str]) -> list[Part]:
    return [Note(text) for text in texts]


Values = dict[str, Any]  # of the controls, by name


class View(Protocol):
    """The interface of a module of ``views``."""

    TITLE: str
    INTRODUCTION: str

    def controls(self, runs: Collection, state: State) -> list[Control]: ...

    def show(self, runs: Collection, values: Values) -> list[Part]: ...


def shown(value: Any, digits: int) -> str:
    """The text of a cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
