"""Where results go, and paths as the user types them."""

import os
from pathlib import Path


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
