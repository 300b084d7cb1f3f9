"""The built-in sources of data, by short name, and which of them a directory is for."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ima_dist.config.errors import ConfigError

# Short name for --data.source -> the function that it stands for.
SOURCES = {
    name: f"ima_dist.data.sources.{module}:{function}"
    for name, module, function in (
        ("folder", "folder", "load"),
        ("list", "listed", "load"),
        ("npz", "arrays", "load_npz"),
        ("hdf5", "arrays", "load_hdf5"),
        ("dicom", "medical", "load_dicom"),
        ("nifti", "medical", "load_nifti"),
    )
}
ENDINGS = {
    "list": (".csv", ".parquet"),
    "npz": (".npz",),
    "hdf5": (".h5", ".hdf5"),
    "dicom": (".dcm", ".dicom"),
    "nifti": (".nii", ".nii.gz"),
    "folder": (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"),
}
_BELOW = (*ENDINGS["folder"], *ENDINGS["dicom"], *ENDINGS["nifti"])
# A directory with this file is a prepared copy, which says what it was made from.
MANIFEST = "prepared.json"
# Directories, from the top one, in which a guess looks for files.
_DEPTH = 4


def is_built_in(source: str) -> bool:
    """True for a source of this package: a short name, or the function of a published data set."""
    return source in SOURCES or source.startswith("ima_dist.")


def guess_source(place: str) -> str:
    """The built-in source for a directory or file. Raises ConfigError if that is not plain."""
    path = Path(place).expanduser()
    if not path.exists():
        raise ConfigError(
            f"--data.dir {place}: there is no such directory here: correct it, or if it exists only where the run will "
            f"be, say what it holds with --data.source {'|'.join(SOURCES)}."
        )
    if (path / MANIFEST).is_file():
        try:
            return str(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["source"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"--data.dir {place} is a prepared copy of a published data set, or damaged: name its preset, or "
                "prepare the data again."
            ) from None
    found: dict[str, str] = {}
    for file in [path.name] if path.is_file() else _files(path):
        kind = next((kind for kind, endings in ENDINGS.items() if file.lower().endswith(endings)), None)
        if kind is not None and kind not in found:
            found[kind] = file
    # A list names the images beside it, which may be DICOM or NIfTI files.
    kinds = found.keys() - {"folder"} if "list" in found else found.keys()
    if kinds in ({"list", "dicom"}, {"list", "nifti"}):
        kinds = kinds - {"list"}
    if len(kinds) == 1:
        return next(iter(kinds))
    why = ", ".join(sorted(found.values())) or "no file of a known kind"
    raise ConfigError(
        f"--data.dir {place} holds {why}: say what to read with --data.source {'|'.join(SOURCES)}, or name your own "
        "function with --data.source mine:load."
    )


def _files(folder: Path, depth: int = 0) -> Iterator[str]:
    """The names of some files in a directory: lists and arrays at its top, images in it or below."""
    try:
        entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_file() and (depth == 0 or entry.name.lower().endswith(_BELOW)):
            yield entry.name
    if depth < _DEPTH:
        for entry in entries:
            if entry.is_dir():
                yield from list(_files(Path(entry.path), depth + 1))[:1]
