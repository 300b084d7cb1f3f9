"""Shared by all commands: exit statuses, and errors as one sentence."""

import io
import os
import sys
from collections.abc import Callable

from ima_dist.config.errors import ConfigError
from ima_dist.config.exit_status import EXIT_DONE as EXIT_DONE
from ima_dist.config.exit_status import EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, EXIT_STOPPED
from ima_dist.launch.signals import Stopped, stopping_at_once
from ima_dist.rundir.lease import LeaseLost


def guarded(command: Callable[[list[str]], int], argv: list[str], *, resumable: bool = False) -> int:
    """Run an entry point: a user's mistake, a full disk and a signal become one sentence and an exit status.

    resumable: the same command, or its --resume, continues what a signal has stopped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An ASCII log shows a question mark for a letter it lacks.
            stream.reconfigure(errors="replace")
    try:
        with stopping_at_once():
            return command(argv)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    except Stopped:
        if resumable:
            print("Stopped. Everything saved so far is kept.", file=sys.stderr)
            return EXIT_REQUEUE
        print("Stopped.", file=sys.stderr)
        return EXIT_STOPPED
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
