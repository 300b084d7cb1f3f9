"""Snapshots of the margins: directories of Parquet shards, whole or absent. Needs no torch.

Each worker writes the shard of the samples that it owns, in row groups of bounded size. ``manifest.json`` is written
last: the shards, their rows and SHA-256, and the configuration they belong to. A directory without it is not a
snapshot.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST = "manifest.json"
ROWS = 1 << 20  # rows in memory at once, in addition to the store itself

# With a checksum per page, damage shows to whoever reads a part of a file. Consecutive numbers take next to no space
# as differences, and a dictionary of margins would be as long as the margins.
_HOW: dict[str, Any] = {
    "write_page_checksum": True,
    "use_dictionary": ["label"],
    "column_encoding": {"index": "DELTA_BINARY_PACKED"},
}

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shard:
    """A file with the samples ``first`` to ``first + rows − 1``."""

    file: str
    first: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """shards: in the order of their samples. configuration: its fingerprint, or None."""

    shards: tuple[Shard, ...]
    configuration: str | None

    @property
    def samples(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def text(self) -> str:
        return json.dumps({"samples": self.samples, **asdict(self)}, indent=1)


def write_shard(
    directory: Path, rank: int, world: int, first: int, last: int, columns: Callable[[int, int], Columns]
) -> Shard:
    """Write ``shard-RRRR-of-WWWW.parquet`` with the samples [first, last), and sync it to disk.

    columns: (start, stop) -> arrays of stop − start rows, to which the column "index" is added. Raises OSError.
    """
    file = directory / f"shard-{rank:04d}-of-{world:04d}.parquet"
    writer = None
    try:
        for start in range(first, max(last, first + 1), ROWS):  # at least one piece, for the types
            stop = min(start + ROWS, last)
            table = pa.table({"index": np.arange(start, stop), **columns(start, stop)})
            writer = writer or pq.ParquetWriter(file, table.schema, **_HOW)
            writer.write_table(table)
        assert writer is not None, "there is at least one piece"
        writer.close()
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk needs the room
            file.unlink(missing_ok=True)
        raise
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        return Shard(file.name, first, last - first, hashlib.file_digest(stream, "sha256").hexdigest())


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Declare the snapshot whole; one worker calls it when all shards are written. Raises OSError."""
    with (directory / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(manifest.text)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a snapshot.

    Raises:
        FileNotFoundError: there is none, or a shard is missing; both are named.
        ValueError: the manifest is damaged; it is named.
    """
    path = directory / MANIFEST
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(tuple(Shard(**shard) for shard in tree["shards"]), tree["configuration"])
        whole = manifest.samples == tree["samples"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{directory} holds no whole snapshot: {MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    next_one = 0
    for shard in manifest.shards:
        # A file in another directory is not a shard of this snapshot, whatever the manifest says.
        whole = whole and shard.first == next_one and os.path.basename(shard.file) == shard.file
        next_one += shard.rows
        if not (directory / shard.file).exists():
            raise FileNotFoundError(f"{directory / shard.file} is missing")
    if not whole or not manifest.shards:
        raise ValueError(f"{path} is damaged (its shards are not consecutive)")
    return manifest


def read_rows(directory: Path, manifest: Manifest, first: int, last: int) -> Iterator[tuple[int, Columns]]:
    """The rows of the samples [first, last), a bounded piece at a time, as (index of the piece's first, columns).

    Raises ValueError naming a shard that is damaged.
    """
    for shard in manifest.shards:
        if shard.first >= last or shard.first + shard.rows <= first:
            continue
        path = directory / shard.file
        try:
            yield from _rows_of(path, shard, first, last)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def _rows_of(path: Path, shard: Shard, first: int, last: int) -> Iterator[tuple[int, Columns]]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        if file.metadata.num_rows != shard.rows:
            raise ValueError(f"{path} is damaged: it has {file.metadata.num_rows} rows, not {shard.rows}")
        start = shard.first
        for number in range(file.num_row_groups):
            stop = start + file.metadata.row_group(number).num_rows
            low, high = max(start, first), min(stop, last)
            if low < high:
                table = file.read_row_group(number).slice(low - start, high - low)
                columns = {name: table[name].to_numpy() for name in table.column_names}
                if not np.array_equal(columns["index"], np.arange(low, high)):
                    raise ValueError(f"{path} does not hold the samples {low} to {high - 1} in order")
                yield low, columns
            start = stop
