"""Numbers in the place of names of files and groups, which may identify persons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ima_dist.data.types import PARTS, DataSet


def hidden(data: DataSet) -> DataSet:
    """The data with numbers for names and groups; a group has the same number wherever it occurs."""
    parts = {name: getattr(data, name) for name in PARTS}
    numbers = numbers_of(group for part in parts.values() for group in part.groups or ())
    for name, part in parts.items():
        names = None if part.names is None else tuple(f"{name} {i}" for i in range(len(part)))
        groups = None if part.groups is None else tuple(numbers[group] for group in part.groups)
        parts[name] = replace(part, names=names, groups=groups)
    return replace(data, **parts)


def numbers_of(groups: Iterable[str | None]) -> dict[str | None, str | None]:
    """Group -> its number, as text, in the order in which groups occur; None, which is no group, stays."""
    found: dict[str | None, str | None] = {None: None}
    for group in groups:
        found.setdefault(group, str(len(found)))
    return found
