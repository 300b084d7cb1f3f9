"""Where results go, and paths as a user types them."""

from __future__ import annotations

import os
from pathlib import Path


def results_root() -> Path:
    """Directory that holds runs when no --out is given: ``runs`` here, or in the home directory under Ray jobs."""
    return user_directory() / "runs"


def absolute_output(out: str | Path) -> Path:
    """``out`` made absolute against a directory of the user's."""
    return user_directory() / out


def existing(path: str | Path) -> Path:
    """A directory that a user names: seen from here, or from where a submitted job's results go."""
    return Path(path) if Path(path).exists() else user_directory() / path


def user_directory() -> Path:
    """The current directory, unless it is Ray's temporary copy of a submitted job, which Ray deletes."""
    here = Path.cwd()
    if "working_dir_files" in here.parts and any(p.startswith("_ray_pkg_") for p in here.parts):
        return Path(os.environ.get("IMA_DIST_HOME", Path.home()))
    return here


def shown(path: Path) -> str:
    """A path as the user would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
