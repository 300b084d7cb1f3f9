"""The points of a run's curves: accuracy under an attack at a noise level, as ``curves`` in summary.json holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ima_dist.config.attacks import ATTACKS

Row = dict[float, "Point"]  # noise level, without rounding errors -> point


@dataclass(frozen=True)
class Point:
    """The accuracy under one attack at one noise level; the fields are the keys of an entry of ``curves``.

    loss: "ce", "margin" or "both", the worse of the two for each sample. noise: radius in ``norm``, in units of the
    data. accuracy: None if it was not finite. epoch: the weights after that many epochs. more: keys that this version
    does not know, kept as they are.
    """

    attack: str
    loss: str
    norm: str
    noise: float
    split: str
    accuracy: float | None
    samples: int
    steps: int | None
    step_scale: float | None
    epoch: int
    spsa_samples: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def level(self) -> float:
        """The noise level without the rounding of float32."""
        return noise_key(self.noise)

    @property
    def share(self) -> float:
        """The accuracy of a point that has one, as those of ``attack_rows`` do."""
        assert self.accuracy is not None
        return self.accuracy

    def to_json(self) -> dict[str, Any]:
        """The entry of summary.json."""
        entry: dict[str, Any] = {name: getattr(self, name) for name in _NAMES}
        if self.spsa_samples is None:
            del entry["spsa_samples"]
        return {**entry, **self.more}

    @classmethod
    def from_json(cls, entry: Any) -> Point:
        """The point of an entry of summary.json. Raises ValueError if it is not one."""
        if not isinstance(entry, dict) or not entry.keys() >= _REQUIRED:
            raise ValueError("keys are missing")
        more = {name: value for name, value in entry.items() if name not in _NAMES}
        point = cls(**{name: entry[name] for name in _NAMES if name in entry}, more=more)
        texts, counts = (point.attack, point.loss, point.norm, point.split), (point.samples, point.epoch)
        numbers = point.noise, point.accuracy, point.steps, point.step_scale, point.spsa_samples
        if not all(isinstance(text, str) for text in texts) or point.attack not in ATTACKS:
            raise ValueError("text is expected")
        if not _are_numbers(counts) or not _are_numbers(value for value in numbers if value is not None):
            raise ValueError("numbers are expected")
        if point.noise is None or point.noise < 0 or min(counts) < 1 or not 0 <= (point.accuracy or 0.0) <= 1:
            raise ValueError("numbers out of range")
        return point


_NAMES = tuple(f.name for f in fields(Point) if f.name != "more")
_REQUIRED = frozenset(_NAMES) - {"spsa_samples"}


def attack_rows(points: Iterable[Point], epoch: int | None = None) -> dict[str, Row]:
    """Attack -> noise level -> point, for loss "both" on the test split; points without an accuracy are left out.

    ``epoch``: the network after that many epochs. Without it the newest that each attack was run on: a row never
    mixes two networks.
    """
    chosen = [p for p in points if (p.loss, p.split) == ("both", "test") and p.accuracy is not None]
    newest = {p.attack: p.epoch for p in sorted(chosen, key=lambda p: p.epoch)}
    rows: dict[str, Row] = {}
    for p in chosen:
        if p.epoch == (newest[p.attack] if epoch is None else epoch):
            rows.setdefault(p.attack, {})[p.level] = p
    return rows


def epochs_of(points: Iterable[Point]) -> list[int]:
    """The epochs after which the network was attacked, ascending."""
    return sorted({p.epoch for p in points})


def levels_of(rows: Iterable[Row]) -> list[float]:
    """The noise levels of several rows, ascending."""
    return sorted({level for row in rows for level in row})


def fewest_samples(points: Iterable[Point]) -> int:
    """The smallest number of samples behind an accuracy."""
    return min(p.samples for p in points)


def noise_key(level: float) -> float:
    """The noise level without the rounding of float32, so that ours and the paper's compare equal."""
    return round(float(level), 6)


def format_noise(level: float) -> str:
    """The noise level as the paper writes it: ``0.05``, ``8/255``, ``1``."""
    pixels = level * 255
    if abs(level - round(level, 4)) > 1e-7 and abs(pixels - round(pixels)) < 1e-3:
        return f"{round(pixels)}/255"
    return f"{level:.6g}"


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )
