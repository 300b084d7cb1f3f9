"""Exit statuses; a user's mistake becomes one sentence and status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ima_dist.config import ConfigError

EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE = 0, 1, 2, 75


def guarded(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run an entry point; 130 after Ctrl-C."""
    try:
        return command(argv)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}.", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130
