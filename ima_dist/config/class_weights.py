"""The option ``--class-weights``: "balanced", or weights by class, which are read from a file once and then saved."""

import csv
import json
import math
from pathlib import Path

from ima_dist.config.errors import ConfigError

BALANCED = "balanced"


def weights_text(value: str) -> str:
    """``value`` if it is "balanced"; else the weights in the file of that name, or in the text itself, as JSON.

    Raises ConfigError for a file that cannot be read, and for what is no positive number for each class.
    """
    if value == BALANCED:
        return value
    if value.lstrip().startswith("{"):
        try:
            found = json.loads(value)
        except ValueError:
            raise ConfigError(f'--class-weights {value} is not valid JSON: write {{"class": weight, …}}.') from None
        return _canonical(found, "--class-weights")
    try:
        with Path(value).open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--class-weights {value} cannot be read ({reason}): give {BALANCED}, or a CSV file of class,weight."
        ) from None
    if rows and len(rows[0]) == 2 and _number(rows[0][1]) is None:
        rows = rows[1:]  # a heading
    for row in rows:
        if len(row) != 2:
            raise ConfigError(f"{value} has the line {','.join(row)!r}: write a class and its weight, class,weight.")
    if len({row[0].strip() for row in rows}) < len(rows):
        raise ConfigError(f"{value} names a class twice.")
    return _canonical({row[0].strip(): _number(row[1]) for row in rows}, value)


def weights_in(text: str) -> dict[str, float]:
    """Class, by name or number -> weight, from what ``weights_text`` has returned."""
    return {str(name): float(weight) for name, weight in json.loads(text).items()}


def _canonical(found: object, where: str) -> str:
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{where} has no weights: give one for each class.")
    for name, weight in found.items():
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not (math.isfinite(weight) and weight > 0)
        ):
            raise ConfigError(f"{where} gives the class {name!r} no positive number as its weight.")
    return json.dumps({str(name): float(weight) for name, weight in sorted(found.items())}, ensure_ascii=False)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
