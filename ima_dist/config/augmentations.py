"""What ``--data.augment`` may say: steps by name, or a function of one's own."""

from collections.abc import Callable
from typing import NamedTuple

from ima_dist.config.errors import did_you_mean

NONE = "none"


class Step(NamedTuple):
    """amount: of the step, None for those that take none."""

    name: str
    amount: float | None


class _Kind(NamedTuple):
    about: str
    fits: Callable[[float], bool] | None = None
    wanted: str = ""


KINDS = {
    "crop": _Kind("shift by up to N pixels, edges mirrored", lambda n: n >= 1 and n == int(n), "a whole number"),
    "flip": _Kind("left to right, half of the time"),
    "vflip": _Kind("upside down, half of the time"),
    "rotate": _Kind("by up to N degrees, edges mirrored", lambda n: 0 < n <= 180, "above 0 and at most 180"),
    "brightness": _Kind("times 1-N to 1+N", lambda n: 0 < n <= 1, "above 0 and at most 1"),
    "contrast": _Kind("differences from the mean times 1-N to 1+N", lambda n: 0 < n <= 1, "above 0 and at most 1"),
}


def steps_of(text: str) -> tuple[Step, ...] | None:
    """The steps of "crop:4,flip,…", () of "none"; None if the text names a function instead.

    Raises ValueError, whose message continues "--data.augment must …".
    """
    words = [word.strip() for word in text.split(",")]
    if words == [NONE]:
        return ()
    name, _, function = words[0].partition(":")
    if len(words) == 1 and name not in KINDS and function and not function[0].isdigit():
        return None
    steps = tuple(map(_step, words))
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"name each step once, and {name} is there twice")
    return steps


def _step(word: str) -> Step:
    name, colon, number = word.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise ValueError(
            f"be none, a function pkg.module:function, or steps of {', '.join(KINDS)}, not "
            f"{word or 'nothing'}{did_you_mean(name, KINDS)}"
        )
    if kind.fits is None:
        if colon:
            raise ValueError(f"have {name} without a number")
        return Step(name, None)
    try:
        amount = float(number)
    except ValueError:
        amount = float("nan")
    if not (amount == amount and abs(amount) != float("inf") and kind.fits(amount)):
        raise ValueError(f"give {name} {kind.wanted}, such as {name}:{'4' if name in ('crop', 'rotate') else '0.1'}")
    return Step(name, amount)
