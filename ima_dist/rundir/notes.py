"""What people write about a run: a text and tags, kept in its directory as notes.json."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import inside, read_json, write_json

#: The longest text, the longest tag, and the most tags, in characters.
LONGEST, LONGEST_TAG, MOST_TAGS = 20_000, 40, 20


@dataclass(frozen=True)
class Notes:
    """text: free. tags: single words or a few, in order, none twice."""

    text: str = ""
    tags: tuple[str, ...] = ()


def tags_in(line: str) -> tuple[str, ...]:
    """The tags in a line of them, separated by commas."""
    found = dict.fromkeys(" ".join(tag.split())[:LONGEST_TAG] for tag in line.split(","))
    return tuple(tag for tag in found if tag)[:MOST_TAGS]


def read_notes(run: RunDir) -> Notes:
    """The notes of a run; empty if there are none, or they cannot be read."""
    try:
        found = os.stat(inside(run.path, run.notes_path))
        return _read(run.notes_path, found.st_mtime_ns, found.st_size)
    except (ConfigError, OSError):
        return Notes()


@functools.lru_cache(maxsize=4096)
def _read(path: Path, time: int, size: int) -> Notes:
    found: dict[str, Any] = read_json(path) or {}
    text, tags = found.get("text"), found.get("tags")
    words = ",".join(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ""
    return Notes(text[:LONGEST] if isinstance(text, str) else "", tags_in(words))


def write_notes(run: RunDir, notes: Notes) -> None:
    """Replace the notes of a run, whoever writes the rest of it. Raises ConfigError if they lie elsewhere, OSError."""
    write_json(inside(run.path, run.notes_path), {"text": notes.text[:LONGEST], "tags": list(notes.tags)})
