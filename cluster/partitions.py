"""The partitions of partitions.toml: what their nodes have, and what to tell sbatch."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, Strict, model_validator

from cluster import directives
from cluster.directives import Directives
from ima_dist.config.checked import Checked, validated
from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.plans.jobfile import parsed

DEFAULT_FILE = Path(__file__).with_name("partitions.toml")
OWN_FILE = "partitions.toml"  # in the current directory
# A start must be longer than its notice: SLURM may send the signal a minute early, and starting takes time.
_LEAST_MINUTES = 3


def minutes(text: str | int) -> int:
    """A time limit as sbatch takes it (``90``, ``1:30:00``, ``2-00``, ``2-12:00:00``) in minutes, rounded up.

    Raises ConfigError.
    """
    days, dash, rest = str(text).rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) > 3 or (dash and not days.isdigit()):
        raise ConfigError(f"{text!r} is not a time limit: write minutes, hours:minutes:seconds or days-hours:minutes.")
    # Without days, one or two numbers begin with the minutes.
    hours, mins, seconds, *_ = [*([0] if not dash and len(parts) < 3 else []), *map(int, parts), 0, 0]
    return (int(days or 0) * 24 + hours) * 60 + mins + -(-seconds // 60)


def _capability(text: str) -> str:
    if not re.fullmatch(r"\d+\.\d", text):
        raise ValueError('look like "7.0"')
    return text


def _or_none(text: Any) -> Any:
    """An empty text leaves an entry out."""
    return None if text == "" else text


def _directives(given: Any) -> Any:
    return directives.normalised(given) if isinstance(given, dict) else given


Words = Annotated[tuple[str, ...], Strict(False)]
Text = Annotated[str | None, BeforeValidator(_or_none)]


class Partition(Checked):
    """One table of partitions.toml, which explains the keys. time is in minutes, notice and join_timeout in seconds.

    sbatch: as ``directives.normalised`` returns them.
    """

    name: str
    cards: int = Field(ge=1)
    cpus_per_card: int = Field(ge=1)
    time: Annotated[int, BeforeValidator(minutes)]
    partition: Text = None
    gres: Text = None
    memory: Text = None
    notice: int = Field(180, ge=10)
    compute_capability: Annotated[str, AfterValidator(_capability)] | None = None
    autocast: Literal["float16", "bfloat16"] | None = None
    account: Text = None
    qos: Text = None
    constraint: Text = None
    reservation: Text = None
    setup: Words = ()
    python: Text = None
    srun: Words = ()
    sbatch: Annotated[dict[str, Any], BeforeValidator(_directives)] = Field(default_factory=dict)
    interface: Text = None
    temp: Text = None
    join_timeout: int = Field(300, ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.time * 60 < self.notice + 60 * _LEAST_MINUTES:
            raise ConfigError(
                f"Partition {self.name}: a time of {self.time} min is too short for a notice of {self.notice} s: "
                f"it must be at least {_LEAST_MINUTES} min longer than the notice."
            )
        if self.autocast == "bfloat16" and not self._may_have_bfloat16:
            raise ConfigError(
                f"Partition {self.name}: cards of compute capability {self.compute_capability} have no bfloat16: "
                'set autocast = "float16".'
            )
        return self

    @property
    def _may_have_bfloat16(self) -> bool:
        return not self.compute_capability or float(self.compute_capability) >= 8

    @property
    def has_bfloat16(self) -> bool:
        """Whether the cards have bfloat16, as far as is known."""
        return self.autocast == "bfloat16" if self.autocast else self._may_have_bfloat16

    def asked(self, nodes: int) -> Directives:
        """What sbatch is asked for, but for the names of job and log, and the array."""
        counted = bool(re.search(r":\d+$", self.gres or ""))
        ours: dict[str, str | bool | None] = {
            "account": self.account,
            "constraint": self.constraint,
            "cpus-per-task": str(self.cards * self.cpus_per_card),
            "gres": self.gres if counted or not self.gres else f"{self.gres}:{self.cards}",
            "mem": self.memory,
            "nodes": str(nodes),
            "ntasks": str(nodes),  # some sites want it said, and so does gpus-per-task
            "ntasks-per-node": "1",
            "partition": self.partition,
            "qos": self.qos,
            "requeue": True,
            "reservation": self.reservation,
            "signal": f"USR2@{self.notice}",
            "time": str(self.time),
        }
        return directives.merged(ours, self.sbatch)

    def gpus(self, nodes: int) -> int:
        """GPUs that a job of so many nodes asks for on each. Raises ConfigError if that cannot be told."""
        return directives.gpus(self.asked(nodes), nodes)

    def for_nodes(self, nodes: int, cards: int | None = None) -> "Partition":
        """This partition with as many cards as sbatch is asked for on each of so many nodes.

        cards: the number given on the command line, if any. Raises ConfigError if the two differ.
        """
        count = self.gpus(nodes)
        if cards is not None and count not in (0, cards):
            raise ConfigError(
                f"Partition {self.name}: --cards {cards} was given, but sbatch is asked for {count} GPUs on each node: "
                "change one of them."
            )
        return self.model_copy(update={"cards": count or self.cards})


def load(own: Path | None = None) -> dict[str, Partition]:
    """All partitions: the package's, overridden by those in ``own`` (default: ./partitions.toml, if it exists).

    Raises ConfigError naming the file and the entry.
    """
    tables, file = _read(DEFAULT_FILE), own or Path(OWN_FILE)
    if own or file.exists():
        for name, table in _read(file).items():
            tables[name] = {**tables.get(name, {}), **table}
    found = {}
    for name, table in tables.items():
        where = f"{file}: partition {name}"
        if "name" in table:
            raise ConfigError(f"{where} has an unknown entry 'name': its name is the one in brackets.")
        found[name] = _partition({"name": name, "partition": name, **table}, where)
    return found


def choose(name: str, own: Path | None = None, **changes: Any) -> Partition:
    """The partition of that name, with ``changes`` (None leaves what is there); those of sbatch are added to it.

    Raises ConfigError.
    """
    known = load(own)
    if name not in known:
        raise ConfigError(
            f"No partition {name!r} is described{did_you_mean(name, known)}: "
            f"there are {', '.join(known)}; add yours to {own or OWN_FILE}."
        )
    given = {key: value for key, value in changes.items() if value is not None}
    given["sbatch"] = {**known[name].sbatch, **directives.normalised(given.get("sbatch") or {})}
    return _partition({**dict(known[name]), **given}, f"Partition {name}")


def _read(file: Path) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = parsed(file, tomllib.loads, "TOML")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {name} is outside a table: write [name of the partition] above it.")
    return tables


def _partition(values: dict[str, Any], where: str) -> Partition:
    return validated(Partition, values, where, lambda key: f"{where}: {key}")
