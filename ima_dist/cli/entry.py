"""What every command shares: exit statuses, and errors as one sentence."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from ima_dist.config.errors import ConfigError
from ima_dist.config.exit_status import EXIT_DONE as EXIT_DONE
from ima_dist.config.exit_status import EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE
from ima_dist.launch.signals import Stopped, stopping_at_once
from ima_dist.rundir.lease import LeaseLost


def guarded(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run an entry point: a user's mistake, a full disk and a signal become one sentence and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A log in ASCII shows a question mark for a letter that it lacks.
            stream.reconfigure(errors="replace")
    try:
        with stopping_at_once():
            return command(argv)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    except Stopped:
        print("Stopped; what had been saved is kept.", file=sys.stderr)
        return EXIT_REQUEUE
    except OSError as error:
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        return EXIT_FAILED
    except LeaseLost as error:
        print(f"error: {error}.", file=sys.stderr)
        return EXIT_FAILED


def say(text: str) -> None:
    """Print a line; a reader who has gone away (``| head``) does not end the run."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would write what is left at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe_os_error(error: OSError) -> str:
    """One sentence: which file, and what the system says."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}."
