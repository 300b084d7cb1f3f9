"""One robust accuracy for each run, measured alike for all runs of a data set and norm.

The attack is the strictest that at least half as many of them have as have the most common one, with the settings that
most of them share; the noise level is the middle one of those that it was run at.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ima_dist.config.attacks import STRICTEST_FIRST
from ima_dist.results.same_data import data_sets
from ima_dist.rundir.curves import noise_key
from ima_dist.tracking.collection import Recorded


@dataclass(frozen=True)
class Robust:
    """An accuracy under ``attack`` at ``noise`` with its 95 % interval."""

    attack: str
    noise: float
    accuracy: float
    low: float
    high: float
    samples: int


class _Measured(NamedTuple):
    """The attack with its settings, of which rows may be compared; the strength of the protocol; noise -> accuracy."""

    attack: str
    settings: tuple[object, ...]
    strength: tuple[object, ...]
    levels: dict[float, Robust]


_COLUMNS = ["run", "attack", "epoch", "noise", "accuracy", "low95", "high95", "samples", "version", "steps"]
_COLUMNS += ["step_scale", "spsa_samples", "order"]


def experiments(runs: Sequence[Recorded]) -> dict[str, tuple[str, str]]:
    """The data set and norm of each run, by its name: only runs with equal ones may be compared."""
    return {run.name: (data, str(run.info["norm"])) for run, data in zip(runs, data_sets(list(runs)), strict=True)}


def headlines(runs: Sequence[Recorded], kinds: dict[str, tuple[str, str]]) -> dict[str, Robust]:
    """Name -> robust accuracy, for the runs that have one. kinds: as ``experiments`` returns them."""
    measured = _measured([run for run in runs if run.curves_table.num_rows])
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in measured:
        groups[kinds[name]].append(name)
    found: dict[str, Robust] = {}
    for names in groups.values():
        yardstick = _yardstick([m for name in names for m in measured[name]])
        for name in names:
            for m in measured[name]:
                if (m.attack, m.settings) == yardstick[0] and yardstick[1] in m.levels:
                    found[name] = m.levels[yardstick[1]]
    return found


def _yardstick(every: Sequence[_Measured]) -> tuple[tuple[str, tuple[object, ...]], float]:
    """The attack with its settings, and the noise level."""
    count = Counter((m.attack, m.settings) for m in every)
    strength = {(m.attack, m.settings): m.strength for m in every}
    common = max(count.values())
    able = [key for key, number in count.items() if 2 * number >= common]
    chosen = min(able, key=lambda key: (STRICTEST_FIRST.index(key[0]), -count[key], strength[key]))
    levels = Counter(level for m in every if (m.attack, m.settings) == chosen for level in m.levels)
    usual = sorted(level for level, number in levels.items() if 2 * number >= max(levels.values()))
    return chosen, usual[len(usual) // 2]


def _measured(runs: Iterable[Recorded]) -> dict[str, list[_Measured]]:
    """The accuracies of each run by attack, of its newest network and by the strictest protocol."""
    tables = [run.curves_table for run in runs]
    if not tables:
        return {}
    table = pa.concat_tables(tables)
    wanted = (pc.field("loss") == "both") & (pc.field("split") == "test") & pc.field("accuracy").is_valid()
    columns = [column.to_pylist() for column in table.filter(wanted).select(_COLUMNS).itercolumns()]
    rows: dict[tuple[str, str], dict[tuple[object, ...], dict[float, Robust]]] = defaultdict(dict)
    for run, attack, epoch, noise, accuracy, low, high, samples, version, steps, scale, spsa, order in zip(
        *columns, strict=True
    ):
        strength = (epoch, version or 1, steps or 0, spsa or 0, samples, order == "stratified", scale or 0.0)
        point = Robust(attack, noise_key(noise), accuracy, low, high, samples)
        rows[run, attack].setdefault(strength, {})[point.noise] = point
    found: dict[str, list[_Measured]] = defaultdict(list)
    for (run, attack), protocols in rows.items():
        best = max(protocols, key=lambda strength: strength[:6])
        if attack in STRICTEST_FIRST:
            found[run].append(_Measured(attack, (*best[1:4], best[6]), best[1:], protocols[best]))
    return found
