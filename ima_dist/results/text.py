"""Tables of plain text, for the terminal."""

from collections.abc import Sequence
from typing import Any

NORM_SIGN = {"linf": "L∞", "l2": "L2"}


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines whose columns stand below one another: the first ``left`` ones flush left, the others flush right."""
    columns = [*zip(*lines, strict=True)]
    for i, column in enumerate(columns):
        width = max(map(len, column))
        columns[i] = tuple(cell.ljust(width) if i < left else cell.rjust(width) for cell in column)
    return ["  ".join(line) for line in zip(*columns, strict=True)]


def accuracy(value: float | None) -> str:
    """An accuracy with four places, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def percent(part: float) -> str:
    """A share with two digits: "3 %", "0.042 %"."""
    return f"{100 * part:.2g} %" if part < 1 else f"{100 * part:,.0f} %"


def percents(part: float, places: int = 1) -> str:
    """A share in the form of the dashboard and the report: "9.7 %"."""
    return f"{100 * part:.{places}f} %"


def harmless(value: Any) -> Any:
    """A value for a cell of a CSV file: a text that a spreadsheet would take for a formula gets an apostrophe."""
    if not isinstance(value, str):
        return value
    formula = value.startswith(("=", "+", "-", "@", "\t", "\r"))
    # A carriage return would end the row for many readers.
    return ("'" + value if formula else value).replace("\r", " ")


def number_in(value: Any) -> float | None:
    """A value from a file that may have been changed by hand, if it is a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
