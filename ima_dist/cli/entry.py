"""Shared by all commands: exit statuses, errors as one sentence, and paths as the user types them."""

import atexit
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ima_dist.config.errors import (
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_REQUEUE,
    ConfigError,
    DataNote,
    DataWarning,
    complain,
)
from ima_dist.launch.signals import Stopped, ignore, stopping_at_once
from ima_dist.rundir.lease import LeaseLost


def guarded(command: Callable[[list[str]], int], argv: list[str], *, resumable: bool = False) -> int:
    """Run an entry point: a user's mistake, a full disk and a signal become one sentence and an exit status.

    resumable: the same command continues what a signal has stopped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An ASCII log shows a question mark for a letter it lacks.
            stream.reconfigure(errors="replace")
    warnings.formatwarning = _format_warning
    _told.clear()
    try:
        with stopping_at_once():
            return command(argv)
    except ConfigError as error:
        complain(f"error: {error}")
        return EXIT_INPUT
    except Stopped as stopped:
        if _part:
            raise
        if resumable:
            stopped.sentence, stopped.status = f"Stopped. {AGAIN}", EXIT_REQUEUE
        complain(stopped.sentence)
        return stopped.status
    except OSError as error:
        complain(f"error: {describe_os_error(error)}")
        return EXIT_FAILED
    except LeaseLost as error:
        complain(f"error: {error}.")
        return EXIT_FAILED
    finally:
        _let_go()
        # What has been said is the end: a signal while Python unloads torch must not put another status in its place.
        atexit.unregister(ignore)
        atexit.register(ignore)


def leave(status: int) -> NoReturn:
    """End the process with ``status``.

    After Ray was used, Python is not unloaded: threads that are still in Ray's C++ can crash the process meanwhile.
    """
    if "ray" not in sys.modules:
        sys.exit(status)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


AGAIN = "Run the same command again to continue."
# Whether the command is part of another one, which tells the user how to continue.
_part = False


@contextlib.contextmanager
def as_part() -> Iterator[None]:
    """Commands inside are steps of another one: a signal ends that, and it tells the user how to continue."""
    global _part
    before, _part = _part, True
    try:
        yield
    finally:
        _part = before


def say_interrupted(how: str) -> None:
    """Say how to continue, unless this is a step of a command that says it."""
    if not _part:
        say(f"Interrupted. {how}")


def _let_go() -> None:
    """Drop what the streams could not write, as to a log on a full disk: Python would end with a status of its own."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None if it is closed
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # such as a stream that has no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


_usual_format = warnings.formatwarning
# What this command has said of the data, which it may load several times.
_told: set[str] = set()


def _format_warning(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> str:
    """A sentence for the user without the line of code that it comes from, once; other warnings as usual."""
    if not issubclass(category, DataWarning):
        return _usual_format(message, category, *where, **line)
    sentence = f"{'note' if issubclass(category, DataNote) else 'warning'}: {message}\n"
    if sentence in _told:
        return ""
    _told.add(sentence)
    return sentence


def say(text: str) -> None:
    """Print a line; neither a reader who has gone away (``| head``) nor a log on a full disk ends the run."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would write what is left at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        pass  # what is buffered may find room later


def describe_os_error(error: OSError) -> str:
    """One sentence: which file, and what the system says."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}."


def results_root() -> Path:
    """Default directory of runs: ``runs`` in the current directory, or in the home directory in a Ray job."""
    return user_directory() / "runs"


def absolute_output(out: str | Path) -> Path:
    """``out`` as an absolute path, relative to ``user_directory``."""
    return user_directory() / out


def existing(path: str | Path) -> Path:
    """A path that the user gave, relative to the current directory or else to ``user_directory``."""
    return Path(path) if Path(path).exists() else user_directory() / path


def user_directory() -> Path:
    """The current directory, or IMA_DIST_HOME or the home directory in a Ray job, whose own directory Ray deletes."""
    here = Path.cwd()
    if "working_dir_files" in here.parts and any(p.startswith("_ray_pkg_") for p in here.parts):
        return Path(os.environ.get("IMA_DIST_HOME", Path.home()))
    return here


def shown(path: Path) -> str:
    """A path as the user would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
