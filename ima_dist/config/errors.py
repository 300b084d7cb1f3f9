"""Errors that a user can mend, and the sentences in them."""

import difflib
from typing import Any


class ConfigError(ValueError):
    """A configuration or an input is at fault. The message is one sentence for the user; exit status 2."""


def did_you_mean(word: Any, names: Any) -> str:
    close = difflib.get_close_matches(str(word), list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def first_line(e: BaseException) -> str:
    """Type and first line of an exception's message, for use inside a sentence."""
    lines = str(e).strip().splitlines()
    return f"{type(e).__name__}: {lines[0].rstrip('.')}" if lines else type(e).__name__
