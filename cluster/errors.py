"""A user's mistake becomes one sentence and status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ima_dist.config.errors import ConfigError


def guarded(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run an entry point; 130 after Ctrl-C."""
    try:
        return command(argv)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
