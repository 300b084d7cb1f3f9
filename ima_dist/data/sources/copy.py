"""Prepared copies of one's own data: one Arrow file with every sample as it came, and what a start needs to know.

Images keep their files' bytes, and are decoded when they are fetched, in the size that a run asks for; arrays keep
their values. The manifest is that of ``prepared``, in format 2.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ima_dist.config.errors import ConfigError, first_line, printable
from ima_dist.config.sources import MANIFEST
from ima_dist.data import prepared
from ima_dist.data.encoded import Contents, cpus
from ima_dist.data.hidden import numbers_of
from ima_dist.data.pictures import LOOK
from ima_dist.data.sources.samples import ArrayLook, Catalogue, Labels

NAME = "own"
_FILE = "samples.arrow"
# Samples of a record batch: as many as are in memory at once.
_ROWS = 256


class Rows:
    """Contents that are rows of a prepared copy, mapped into memory."""

    def __init__(self, table: pa.Table, names: tuple[str, ...]) -> None:
        self._chunks, self._names = table["image"].chunks, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> bytes:
        content: bytes = self._chunks[row // _ROWS][row % _ROWS].as_py()
        return content

    def name(self, row: int) -> str:
        return self._names[row]


def is_copy(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def read(directory: Path, source: str) -> Catalogue:
    """What a prepared copy of data of this form holds; contents stay in the file. Raises ConfigError."""
    manifest = prepared.read_manifest(directory, NAME)
    if manifest["name"] != NAME or manifest.get("source") != source:
        of = f"data of the form {manifest['source']}" if "source" in manifest else str(manifest["name"])
        raise ConfigError(f"{directory} is a prepared copy of {of}: leave --data.source {source} out.")
    ((_, path, entry),) = prepared.part_files(directory, manifest)
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        names = tuple(table["name"].to_pylist())
        y = np.array(table["label"].combine_chunks(), dtype=np.int64)
        groups = tuple(table["group"].to_pylist())
        labels = Labels(
            y,
            tuple(manifest["classes"]),
            names,
            np.array(["" if part is None else part for part in table["part"].to_pylist()], dtype="U5"),
            groups if any(group is not None for group in groups) else None,
            manifest.get("grouped_by"),
            np.array(table["volume"].combine_chunks()) if "volume" in table.column_names else None,
        )
        if len(y) != entry["rows"] or y.min() < 0 or y.max() >= len(labels.class_names):
            raise ValueError("its labels are not those that the manifest describes")
        looks: np.ndarray | ArrayLook
        if "array" in manifest:
            looks = ArrayLook(**manifest["array"])
        else:
            looks = np.empty(len(y), LOOK)
            for column in LOOK.names or ():
                looks[column] = np.asarray(table[column].combine_chunks())
    except Exception as e:  # the parser may raise anything for a damaged file
        raise prepared.damaged(directory, f"{path} cannot be read as an Arrow file ({first_line(e)})", NAME) from e
    return Catalogue(Rows(table, names), labels, looks)


def write(
    directory: Path,
    source: str,
    place: Path,
    found: Catalogue,
    check: Callable[[bytes, str], object] | None,
    hide_names: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Write the prepared copy of ``found``, which ``source`` has read from ``place``; unless it is there already.

    hide_names: with numbers in the place of names of files and groups, and without ``place``.
    check: called with each content and its name, before it is written; raises ConfigError. Returns the manifest, and
    whether the copy was there. Raises ConfigError if the directory holds a copy of other data or cannot be written.
    """
    if hide_names:
        found = replace(found, labels=_hidden(found.labels))
    with prepared.writing(directory):
        try:
            manifest = prepared.verify(directory, NAME)
        except ConfigError:
            manifest = None  # none, or a damaged one
        if manifest is not None:
            if manifest["name"] != NAME or manifest["sources"]["digest"] != _digest(found, found.contents):
                raise ConfigError(
                    f"{directory} holds a prepared copy of other data: delete it, or name another directory with --to."
                )
            return manifest, True
        with tempfile.TemporaryDirectory(prefix=prepared.ASIDE, dir=directory) as aside:
            path = Path(aside, _FILE)
            digest = _write_arrow(path, found, check)
            sources = {"directory": None if hide_names else printable(str(place.absolute())), "digest": digest}
            manifest = {
                "format": prepared.OWN_FORMAT,
                "name": NAME,
                "source": source,
                "classes": list(found.labels.class_names),
                "parts": {"samples": prepared.entry_of(path, len(found.contents))},
                "sources": sources,
            }
            if found.labels.grouped_by is not None:
                manifest["grouped_by"] = found.labels.grouped_by
            if isinstance(found.looks, ArrayLook):
                manifest["array"] = found.looks._asdict()
            prepared.put(directory, Path(aside), manifest)
    return manifest, False


def _hidden(labels: Labels) -> Labels:
    numbers = numbers_of(labels.groups or ())
    groups = None if labels.groups is None else tuple(numbers[group] for group in labels.groups)
    return replace(labels, names=tuple(f"sample {i}" for i in range(len(labels.names))), groups=groups)


def _write_arrow(path: Path, found: Catalogue, check: Callable[[bytes, str], object] | None) -> str:
    """Write all samples, a batch at a time; returns the digest of what was read."""
    labels, total = found.labels, len(found.contents)
    texts = pa.string()
    fields = [("image", pa.large_binary()), ("label", pa.int64()), ("name", texts), ("part", texts), ("group", texts)]
    of_looks = (
        [] if isinstance(found.looks, ArrayLook) else [(n, pa.from_numpy_dtype(LOOK[n])) for n in LOOK.names or ()]
    )
    of_volumes = [] if labels.volumes is None else [("volume", pa.int64())]
    schema = pa.schema([*fields, *of_looks, *of_volumes])
    sums = hashlib.sha256(_head(found))

    def content(row: int) -> bytes:
        content = found.contents[row]
        if check is not None:
            check(content, found.contents.name(row))
        return content

    with open(path, "wb") as file, ThreadPoolExecutor(cpus()) as threads:
        with pa.ipc.new_file(file, schema) as writer:
            for start in range(0, total, _ROWS):
                rows = range(start, min(start + _ROWS, total))
                contents = list(threads.map(content, rows))
                for one in contents:
                    sums.update(hashlib.sha256(one).digest())
                groups = labels.groups[start : rows.stop] if labels.groups else [None] * len(rows)
                columns = [
                    pa.array(contents, pa.large_binary()),
                    pa.array(labels.y[start : rows.stop]),
                    pa.array(labels.names[start : rows.stop], texts),
                    pa.array([part or None for part in labels.parts[start : rows.stop].tolist()], texts),
                    pa.array(groups, texts),
                ]
                if not isinstance(found.looks, ArrayLook):
                    columns += [pa.array(found.looks[name][start : rows.stop]) for name, _ in of_looks]
                if labels.volumes is not None:
                    columns.append(pa.array(labels.volumes[start : rows.stop]))
                writer.write_batch(pa.record_batch(columns, schema=schema))
        prepared.to_disk(file)
    return sums.hexdigest()


def _head(found: Catalogue) -> bytes:
    labels = found.labels
    known = [labels.class_names, labels.names, labels.parts.tolist(), labels.y.tolist(), labels.groups]
    known += [] if labels.volumes is None else [labels.volumes.tolist()]
    return json.dumps(known).encode()


def _digest(found: Catalogue, contents: Contents) -> str:
    """As ``_write_arrow`` returns it."""
    sums = hashlib.sha256(_head(found))
    for row in range(len(contents)):
        sums.update(hashlib.sha256(contents[row]).digest())
    return sums.hexdigest()
