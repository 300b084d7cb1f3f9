"""What an earlier version has saved: see README.md. The copy that a test gets is laid out as a user's ``runs``."""

from __future__ import annotations

import shutil
from pathlib import Path

SAVED = Path(__file__).parent
RESULTS = SAVED / "results"


def copied_to(directory: Path) -> Path:
    """The saved results directory as ``directory/runs``."""
    return Path(shutil.copytree(RESULTS, directory / "runs"))


def files_below(directory: Path) -> dict[str, bytes]:
    """Every file below a directory with its content, but for locks."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and path.name != "lock"
    }
