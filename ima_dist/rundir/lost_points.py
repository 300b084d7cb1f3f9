"""Evaluations whose outcomes are in outcomes.parquet, but whose points have been lost with summary.json."""

import re
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ima_dist.config.attacks import ATTACKS
from ima_dist.rundir.curves import Point

_FORM = re.compile(
    r"version=(?P<version>\d+) steps=(?P<steps>\d+|None) step_scale=(?P<step_scale>\S+) "
    r"spsa_samples=(?P<spsa_samples>\d+|None) samples=(?P<samples>\d+) order=(?P<order>\w+)"
)


class Lost(NamedTuple):
    """settings: the fields of ``Point`` that the protocol tells; None if an earlier version has written no protocol, or
    the outcomes are not those of all its samples."""

    attack: str
    epoch: int
    protocol: str
    settings: dict[str, Any] | None

    def of(self, outcomes: pa.Table) -> pa.Table:
        """The outcomes of this evaluation."""
        wanted = (pc.field("attack") == self.attack) & (pc.field("epoch") == self.epoch)
        return outcomes.filter(wanted & (pc.field("protocol") == self.protocol))


def lost_points(outcomes: pa.Table, points: list[Point]) -> list[Lost]:
    """The evaluations in ``outcomes`` without any of the ``points``, in order of attack and epoch."""
    known = {(point.attack, point.epoch, point.protocol) for point in points}
    if "protocol" not in outcomes.column_names:  # of an earlier version, which kept one of each attack and epoch
        known = {(attack, epoch, "") for attack, epoch, _ in known}
        outcomes = outcomes.append_column("protocol", pa.repeat("", outcomes.num_rows))
    names = ["attack", "epoch", "protocol"]
    found = outcomes.select([*names, "index"]).group_by(names).aggregate([("index", "count_distinct")])
    rows = found.to_pylist()
    samples = {(row["attack"], row["epoch"], row["protocol"]): row["index_count_distinct"] for row in rows}
    lost = sorted(samples.keys() - known)
    return [Lost(*key, settings=_settings(key[0], key[2], samples[key])) for key in lost]


def _settings(attack: str, protocol: str, samples: int) -> dict[str, Any] | None:
    match = _FORM.fullmatch(protocol)
    if attack not in ATTACKS or not match or int(match["samples"]) != samples:
        return None
    whole = {name: None if match[name] == "None" else int(match[name]) for name in ("version", "steps", "spsa_samples")}
    scale = None if match["step_scale"] == "None" else float(match["step_scale"])
    return {**whole, "step_scale": scale, "order": match["order"]}
