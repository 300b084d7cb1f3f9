"""``--data.source list``: images that a CSV or Parquet file names, with their labels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError, did_you_mean, first_line, printable
from ima_dist.config.schema import DataConfig
from ima_dist.config.sources import ENDINGS
from ima_dist.data.sources import copy
from ima_dist.data.sources.folder import PARTS
from ima_dist.data.sources.images import images, look_at, say_equal
from ima_dist.data.sources.samples import Catalogue, Files, Labels, check_directory, data_set, tell

# Column -> its names, in lower case.
_COLUMNS = {
    "file": ("file", "path", "image", "filename", "file_name", "filepath"),
    "label": ("label", "class", "target"),
    "split": ("split", "part", "subset"),
    "group": ("group", "patient", "patient_id"),
}


def load(config: DataConfig, seed: int) -> dict[str, Any]:
    """The images that a list names; ``config.dir`` is the list, or the only one in that directory.

    The list has the columns file (relative to the list) and label, and optionally split (train, val, test) and group.
    Otherwise as ``folder.load``. Raises ConfigError if a column or a file is missing, or an image is damaged.
    """
    place = check_directory(config)
    return data_set(images(copy.read(place, "list") if copy.is_copy(place) else find(place, config.groups), config))


def find(path: Path, column: str | None = None) -> Catalogue:
    """The images with their labels; none is decoded. ``column``: as of ``files``. Raises ConfigError."""
    paths, labels = files(the_file(path, "list"), column)
    contents = Files(paths)
    say_equal(contents, labels)
    return Catalogue(contents, labels, look_at(contents))


def files(path: Path, column: str | None = None) -> tuple[list[Path], Labels]:
    """The files that the list at ``path`` names, with their labels, and groups from ``column`` if it has that.

    Raises ConfigError.
    """
    rows, grouped_by = _columns(path, column)
    if not rows["file"]:
        raise ConfigError(f"{path} lists no files.")
    paths = [path.parent / name for name in rows["file"]]
    for number, (file, label) in enumerate(zip(paths, rows["label"], strict=True), 1):
        if not file.is_file():
            raise ConfigError(f"{path}, entry {number}: there is no file {printable(str(file))}.")
        if not label:
            raise ConfigError(f"{path}, entry {number}: {printable(rows['file'][number - 1])} has no label.")
    parts = [_part(path, number, text) for number, text in enumerate(rows.get("split", []), 1)]
    groups = [text or None for text in rows["group"]] if "group" in rows else None
    alone = groups.count(None) if groups else 0
    if alone:
        tell(f"{alone} of {len(rows['file'])} samples have no {grouped_by}: each of them is taken for one of its own.")
    names = [printable(name) for name in rows["file"]]
    texts = [printable(text) for text in rows["label"]]
    return paths, Labels.of_texts(texts, names, parts or None, groups, grouped_by)


def the_file(path: Path, source: str) -> Path:
    """``path``, or the only file of this source in that directory. Raises ConfigError."""
    endings = ENDINGS[source]
    if path.is_file():
        return path
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in endings and not p.name.startswith("."))
    if len(found) != 1:
        what = f"{len(found)} files" if found else "no file"
        raise ConfigError(f"{path} holds {what} {' or '.join(endings)}: name one with --data.dir.")
    return found[0]


def _columns(path: Path, group: str | None) -> tuple[dict[str, list[str]], str | None]:
    """The columns under our names, as text, and what that of groups is called; ``group``: what it should be called.

    Raises ConfigError.
    """
    try:
        table = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    except (OSError, ValueError, csv.Error) as e:
        raise ConfigError(f"{path} cannot be read as a list ({first_line(e)}).") from e
    found, grouped_by = {}, None
    for column, names in _COLUMNS.items():
        name = next((given for given in table if given.strip().lower() in names), None)
        if column == "group":
            wanted = (given for given in table if group and given.strip().lower() == group.strip().lower())
            name = group if group in table else next(wanted, name)
            grouped_by = None if name is None else printable(name.strip())
        if name is not None:
            found[column] = ["" if value is None else str(value).strip() for value in table[name]]
        elif column in ("file", "label"):
            hint = did_you_mean(column, table)
            raise ConfigError(
                f"{path} has no column {column!r}{hint}: it has {', '.join(map(printable, table))}. A list names image "
                "files; a table of numbers is given as arrays, in .npz or HDF5 (docs/data.md)."
            )
    return found, grouped_by


def _csv(path: Path) -> dict[str, list[Any]]:
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        head = file.readline()
        file.seek(0)
        rows = [row for row in csv.reader(file, delimiter=max(",;\t", key=head.count)) if row]
    if not rows:
        raise ValueError("it is empty")
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise ValueError(f"line {number} has {len(row)} entries, the first one {width}")
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}


def _parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    found: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    return found


def _part(path: Path, number: int, text: str) -> str:
    if text and text.lower() not in PARTS:
        raise ConfigError(f"{path}, entry {number}: the split must be train, val or test, not {printable(text)!r}.")
    return PARTS[text.lower()] if text else ""
