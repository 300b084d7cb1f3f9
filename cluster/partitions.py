"""Partitions as data: what a node of each has, and what sbatch must be told. See partitions.toml."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError, did_you_mean

DEFAULT_FILE = Path(__file__).with_name("partitions.toml")
OWN_FILE = "partitions.toml"  # in the current directory
# What a job needs beside its notice: SLURM may send the signal a minute early, and starting takes its time.
_LEAST_MINUTES = 3


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One table of partitions.toml; the keys are explained there. time in minutes, notice and join_timeout in s."""

    name: str
    cards: int
    cpus_per_card: int
    time: int
    partition: str = ""
    gres: str | None = None
    memory: str | None = None
    notice: int = 180
    compute_capability: str | None = None
    autocast: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    setup: list[str] = field(default_factory=list)
    python: str | None = None
    srun: list[str] = field(default_factory=list)
    sbatch: dict[str, Any] = field(default_factory=dict)
    interface: str | None = None
    temp: str | None = None
    join_timeout: int = 300

    def check(self) -> Partition:
        """Return self, or raise ConfigError with one sentence."""
        where = f"Partition {self.name}"
        if self.cards < 1 or self.cpus_per_card < 1:
            raise ConfigError(f"{where}: cards and cpus_per_card must be at least 1.")
        if self.notice < 10 or self.join_timeout < 1:
            raise ConfigError(f"{where}: notice must be at least 10 seconds and join_timeout at least 1.")
        if self.time * 60 < self.notice + 60 * _LEAST_MINUTES:
            raise ConfigError(
                f"{where}: a time of {self.time} min leaves too little beside the notice of {self.notice} s: "
                f"give at least {_LEAST_MINUTES} min more than the notice."
            )
        if self.autocast not in (None, "float16", "bfloat16"):
            raise ConfigError(f"{where}: autocast must be float16 or bfloat16, not {self.autocast!r}.")
        if self.compute_capability and not re.fullmatch(r"\d+\.\d", self.compute_capability):
            raise ConfigError(f'{where}: compute_capability must look like "7.0", not {self.compute_capability!r}.')
        if self.autocast == "bfloat16" and not self._may_have_bfloat16:
            raise ConfigError(
                f"{where}: cards of compute capability {self.compute_capability} have no bfloat16: "
                'say autocast = "float16".'
            )
        return self

    @property
    def _may_have_bfloat16(self) -> bool:
        return not self.compute_capability or float(self.compute_capability) >= 8

    @property
    def has_bfloat16(self) -> bool:
        """As far as is known; a partition without cards computes it on its CPUs."""
        if self.gres is None:
            return True
        return self._may_have_bfloat16 if self.autocast is None else self.autocast == "bfloat16"


def minutes(text: str | int) -> int:
    """A time limit as sbatch writes it (``90``, ``1:30:00``, ``2-00``, ``2-12:00:00``) in minutes, rounded up.

    Raises ConfigError.
    """
    days, dash, rest = str(text).rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) > 3 or (dash and not days.isdigit()):
        raise ConfigError(f"{text!r} is no time limit: write minutes, hours:minutes:seconds or days-hours:minutes.")
    numbers = [int(part) for part in parts]
    if dash:
        hours, mins, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:
        hours, mins, seconds = 0, *[*numbers, 0][:2]
    total = (int(days or 0) * 24 + hours) * 3600 + mins * 60 + seconds
    return -(-total // 60)


def load(own: Path | None = None) -> dict[str, Partition]:
    """All partitions: the package's, and on top those in ``own`` (default: ./partitions.toml, if there).

    Raises ConfigError naming the file and the entry.
    """
    tables = _read(DEFAULT_FILE)
    file = own if own is not None else Path(OWN_FILE)
    if own is not None or file.exists():
        for name, table in _read(file).items():
            tables[name] = {**tables.get(name, {}), **table}
    return {name: _partition(name, table, file) for name, table in tables.items()}


def choose(name: str, own: Path | None = None, **changes: Any) -> Partition:
    """The partition of that name, with ``changes`` (None leaves what is there). Raises ConfigError."""
    known = load(own)
    if name not in known:
        raise ConfigError(
            f"No partition {name!r} is described{did_you_mean(name, known)}: "
            f"there are {', '.join(known)}; add yours to {own or OWN_FILE}."
        )
    return dataclasses.replace(known[name], **{k: v for k, v in changes.items() if v is not None}).check()


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror or error}): check the path.") from None
    except ValueError as error:
        raise ConfigError(f"{file} is not valid TOML ({error}): correct it.") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {name} stands outside a table: write [name of the partition] above it.")
    return tables


def _partition(name: str, table: dict[str, Any], file: Path) -> Partition:
    fields = {f.name: f for f in dataclasses.fields(Partition) if f.name != "name"}
    hints = typing.get_type_hints(Partition)
    for key, value in table.items():
        if key not in fields:
            raise ConfigError(f"{file}: partition {name} has an unknown entry {key!r}{did_you_mean(key, fields)}.")
        if key != "time" and not _is(value, hints[key]):
            raise ConfigError(f"{file}: partition {name}: {key} is of the wrong kind ({value!r}).")
    for key in ("cards", "cpus_per_card", "time"):
        if key not in table:
            raise ConfigError(f"{file}: partition {name} lacks the entry {key!r}.")
    values = {**table, "time": minutes(table["time"]), "partition": table.get("partition", name)}
    return Partition(name=name, **values).check()


def _is(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_is(value, inner) for inner in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind is list and isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
