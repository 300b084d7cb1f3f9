"""The log of a run: what its own process noted, or what a sweep or a job kept of its output."""

import contextlib
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import inside, read_json
from ima_dist.rundir.run import Run

_LINES, _BYTES = 40, 1 << 15


def log_of(run: Run, root: Path) -> tuple[str, str]:
    """The last lines of the newest log of a run, and the file that they are from; ("", "") if there is none."""
    found = []
    for path in (run.dir.log_path, run.dir.path.parent / "trials" / f"{run.dir.path.name}.txt", *_of_jobs(run, root)):
        with contextlib.suppress(ConfigError, OSError):
            found.append((inside(root, path).stat().st_mtime, path))
    for _, path in sorted(found, reverse=True):
        with contextlib.suppress(OSError):
            return _tail(path), path.relative_to(root).as_posix()
    return "", ""


def _of_jobs(run: Run, root: Path) -> list[Path]:
    """The outputs of the rows of submitted jobs that made this run."""
    found = []
    for file in root.glob("cluster/*/job.json"):
        with contextlib.suppress(ConfigError, OSError):
            rows: Any = (read_json(inside(root, file)) or {}).get("rows")
            for row in rows if isinstance(rows, list) else []:
                if isinstance(row, dict) and row.get("run") == str(run.dir.path) and isinstance(row.get("name"), str):
                    found.append(file.parent / row["name"] / "output.txt")
    return found


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _BYTES))
        text = file.read(_BYTES).decode(errors="replace")
    # A bar on a terminal writes over its line.
    lines = [line.rsplit("\r", 1)[-1][:300] for line in text.splitlines()]
    return "\n".join(lines[-_LINES:])
