"""The learning rate over a training, as a pure function of the position, so that nothing of it needs to be saved."""

import math
from typing import NamedTuple

from ima_dist.config.numbers import number

KINDS = ("constant", "steps", "cosine", "one-cycle")
_FACTOR = 0.1
# As torch's OneCycleLR has them: the share of the rise, and by what the largest rate is divided at start and end.
_RISE, _START, _END = 0.3, 25.0, 25.0 * 1e4


class Schedule(NamedTuple):
    """kind: one of KINDS. steps: epochs, or shares of all epochs if ``in_shares``. factor: of each step."""

    kind: str
    steps: tuple[float, ...] = ()
    in_shares: bool = False
    factor: float = _FACTOR

    @classmethod
    def read(cls, text: str) -> "Schedule":
        """From ``constant``, ``cosine``, ``one-cycle`` or ``steps:E1,E2,…[:FACTOR]``. Raises ValueError."""
        kind, _, rest = text.partition(":")
        if kind != "steps" and kind in KINDS and not rest:
            return cls(kind)
        listed, _, factor = rest.partition(":")
        parts = [part.strip() for part in listed.split(",")]
        shares = [part.endswith("%") for part in parts]
        if kind != "steps" or len(set(shares)) != 1:
            raise ValueError
        values = tuple(number(part.rstrip("%")) / (100 if shares[0] else 1) for part in parts)
        by = number(factor) if factor else _FACTOR
        rising = all(a < b for a, b in zip((0.0, *values), values, strict=False))
        if not rising or not 0 < by < 1 or (shares[0] and values[-1] >= 1):
            raise ValueError
        return cls(kind, values, shares[0], by)

    def epochs_of(self, epochs: int) -> tuple[float, ...]:
        """The steps in epochs, of a training of so many."""
        return tuple(step * epochs for step in self.steps) if self.in_shares else self.steps


def schedule_text(text: str) -> str:
    """The text of a schedule, checked. Raises ValueError, which says what is accepted."""
    try:
        Schedule.read(text)
    except ValueError:
        raise ValueError(
            f"be one of {', '.join(KINDS)}, with the epochs of the steps, such as steps:100,105 or steps:50%,75%"
        ) from None
    return text


def rate_factor(text: str, warmup: float, epochs: int, steps: int, done: int) -> float:
    """By what the learning rate is multiplied in the step after ``done`` steps of the whole training.

    Args:
        text: the schedule. warmup: epochs of a linear rise at the beginning.
        epochs, steps: length of the training, and of an epoch in steps.
    """
    schedule, total = Schedule.read(text), epochs * steps
    warm = round(warmup * steps)
    rise = (done + 1) / warm if done < warm else 1.0
    if schedule.kind == "cosine":
        return rise * _half_wave(1.0, 0.0, (max(done, warm) - warm) / max(total - warm, 1))
    if schedule.kind == "one-cycle":
        top = max(_RISE * total - 1, 0.0)
        if done < top:
            return _half_wave(1 / _START, 1.0, done / top)
        return _half_wave(1.0, 1 / _END, (done - top) / max(total - 1 - top, 1e-9))
    passed = sum(done >= round(at * steps) for at in schedule.epochs_of(epochs))
    return float(rise * schedule.factor**passed)


def _half_wave(first: float, last: float, share: float) -> float:
    """From the first value to the last one along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
