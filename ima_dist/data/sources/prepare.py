"""``python -m ima_dist.data prepare own``: the prepared copy of one's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.sources import SOURCES, guess_source
from ima_dist.data.sources import arrays, copy, folder, listed, medical
from ima_dist.data.sources.images import check_image
from ima_dist.data.sources.samples import Catalogue


def prepare(place: str, source: str | None, to: str, hide_names: bool = False) -> tuple[Path, dict[str, Any], bool]:
    """Write the prepared copy of the data in ``place``, of the form ``source`` (default: guessed), into ``to``.

    hide_names: as of ``copy.write``. Every image is decoded once, to see that it is whole. Returns the directory, its
    manifest, and whether the copy was there already. Raises ConfigError.
    """
    path = Path(place).expanduser()
    if copy.is_copy(path):
        raise ConfigError(f"--source {place} is a prepared copy already.")
    source = source or guess_source(place)
    if source not in SOURCES:
        known = ", ".join(SOURCES)
        raise ConfigError(f"--form must be one of {known}, not {source!r}{did_you_mean(source, SOURCES)}.")
    directory = Path(to).expanduser().absolute()
    found, is_images = _find(source, path)
    manifest, already = copy.write(directory, source, path, found, check_image if is_images else None, hide_names)
    return directory, manifest, already


def _find(source: str, path: Path) -> tuple[Catalogue, bool]:
    if not path.exists():
        raise ConfigError(f"--source {path}: there is no such directory.")
    if source in ("folder", "list"):
        return (folder if source == "folder" else listed).find(path), True
    return (medical if source in ("dicom", "nifti") else arrays).find(source, path), False
