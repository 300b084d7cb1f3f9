"""Numbers as people write noise levels: 0.03, or 8/255 for eight of the 255 grey levels of an image."""

import math
from typing import Any


def number(text: str) -> float:
    """The number in ``text``, a fraction included. Raises ValueError."""
    top, slash, bottom = text.partition("/")
    try:
        found = float(top) / float(bottom) if slash else float(top)
    except ZeroDivisionError:
        raise ValueError(f"{text} divides by zero") from None
    if not math.isfinite(found):
        raise ValueError(f"{text} is not finite")
    return found


def level_text(value: float) -> str:
    """``value`` as ``number`` takes it, exactly, and in grey levels where that is shorter: 8/255."""
    if float(short := f"{value:g}") == value:
        return short
    levels = round(255 * value)
    return f"{levels}/255" if levels / 255 == value else repr(value)


def level(value: Any) -> Any:
    """``value`` as a number if it is text that holds one; else as it is, for the configuration to refuse."""
    try:
        return number(value) if isinstance(value, str) else value
    except ValueError:
        return value
