"""The exit statuses of all commands, the errors that a user can mend, and the sentences in them."""

import contextlib
import difflib
import sys
from typing import Any

# 75 is EX_TEMPFAIL of sysexits.h: interrupted, and to be continued. 130 is the shell's for Ctrl-C where that leaves
# nothing to continue; after another signal it is 128 + its number.
EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, EXIT_STOPPED = 0, 1, 2, 75, 130


class ConfigError(ValueError):
    """A configuration or an input is at fault. The message is one sentence for the user; exit status 2."""


class DataWarning(UserWarning):
    """Something about the data that the user should know. The message is one sentence."""


class DataNote(DataWarning):
    """What was found or done, and is no cause for doubt."""


def complain(text: str) -> None:
    """Print a sentence on the error stream; a log on a full disk ends nothing."""
    # RuntimeError: a signal that comes while the main thread is printing.
    with contextlib.suppress(OSError, RuntimeError):
        print(text, file=sys.stderr, flush=True)


def printable(name: str) -> str:
    """A file's name on one line of valid text: line breaks, and bytes that are not UTF-8, as backslash and number."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, most: int = 600) -> str:
    """``text``, shortened in its middle if it is longer: what a damaged file holds must not fill a page."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[-most // 4 :]}"


def did_you_mean(word: Any, names: Any) -> str:
    close = difflib.get_close_matches(str(word), list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def first_line(e: BaseException) -> str:
    """Type and first line of an exception's message, for use inside a sentence."""
    lines = str(e).strip().splitlines()
    return f"{type(e).__name__}: {lines[0].rstrip('.')}" if lines else type(e).__name__


def one_line(error: BaseException) -> str:
    """Type and last line of an exception's message: where it is a page of text, as Ray's, that is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
