"""Reading and writing single files; a file is complete or absent, never half written."""

import contextlib
import errno
import json
import os
import platform
import shutil
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic_core

from ima_dist.config.errors import ConfigError, cut
from ima_dist.rundir.remedies import remedy

#: Bytes of the largest JSON file, of the largest arrays once unpacked, and of the largest picture; ours have a few
#: megabytes. A file of a few kilobytes can claim to hold more than the memory.
LARGEST_JSON, LARGEST_ARRAYS, LARGEST_PICTURE = 1 << 26, 1 << 29, 1 << 24
#: Rows of the largest table that is read as a whole to be shown.
MOST_ROWS = 1 << 26
# Seconds after which a file that was written on one node must be visible on all; NFS may take half a minute.
VISIBLE_WITHIN = 60.0


def wait_for(paths: Iterable[Path]) -> None:
    """Wait until every one of these files, which other processes have written, is visible on this node.

    Their names must be known: on shared storage a list of a directory's files may be old. Raises FileNotFoundError
    naming one that is still not there after ``VISIBLE_WITHIN`` seconds.
    """
    until = time.monotonic() + VISIBLE_WITHIN
    for path in paths:
        while not path.exists():
            if time.monotonic() >= until:
                reason = f"another worker has written it, but after {VISIBLE_WITHIN:.0f} s {platform.node()} lacks it"
                raise FileNotFoundError(errno.ENOENT, reason, str(path))
            time.sleep(0.2)


def _at_once() -> None:
    """The usual ``check`` of what is written: none."""


@contextlib.contextmanager
def replacing(path: Path, check: Callable[[], object] = _at_once, durable: bool = True) -> Iterator[BinaryIO]:
    """Binary file that takes the place of ``path`` when the block ends, and vanishes if it fails.

    Makes missing parent directories. ``check`` is called when all is written, just before the file is moved to its
    place, and may raise. ``durable``: wait until it is on the disk; without, a machine that crashes may leave it empty
    or old. Raises OSError if the disk is full or read-only.
    """
    make_directory(path.parent)
    # In the same directory, as a rename is atomic only within one file system; hidden, and with a suffix
    # of its own, so that no search for shards or checkpoints finds it.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(aside, "xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        check()
        os.replace(aside, path)
        if durable:
            sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(aside)):
            error.filename = str(path)  # a full disk does not say where, and the user knows no other name
        raise


def move_directory(aside: Path, place: Path, check: Callable[[], object] = _at_once) -> None:
    """Let the finished directory ``aside`` take the place of ``place``, beside it, and sync all of it to disk.

    ``check`` is called just before the move, and may raise. Raises OSError.
    """
    for path in (*aside.iterdir(), aside):
        sync(path)
    old = aside.with_name(f"{aside.name}.old")
    check()
    if place.exists():
        place.rename(old)
    aside.rename(place)
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def why_unwritable(path: Path) -> str | None:
    """Why ``path`` cannot be made, as far as can be known before; None if nothing speaks against it. Raises OSError."""
    above = next(place for place in path.absolute().parents if place.exists())
    if not above.is_dir():
        return "Not a directory"
    # Root may write wherever the file system lets anybody write.
    return None if os.access(above, os.W_OK) else "Permission denied"


def make_directory(path: Path) -> None:
    """Make a directory and its parents unless they exist, to last. Raises OSError."""
    missing = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync(place.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk. Raises OSError."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return  # one that may be written but not listed
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot sync a directory, and keep the order of its changes themselves or not at all.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            error.filename = error.filename or str(path)
            raise
    finally:
        os.close(handle)


def append(path: Path, data: bytes) -> None:
    """Add ``data`` to the end of a file, all of it or nothing. Makes missing parents. Raises OSError."""
    make_directory(path.parent)
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            error.filename = error.filename or str(path)
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def write_text_atomic(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8. Raises OSError."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, obj: dict[str, Any], check: Callable[[], object] = _at_once, durable: bool = True) -> None:
    """Write a dictionary as JSON; NaN and infinity, which JSON lacks, become null. Raises OSError.

    check, durable: as in ``replacing``.
    """
    with replacing(path, check, durable) as file:
        file.write(pydantic_core.to_json(obj, indent=2, inf_nan_mode="null", fallback=np.generic.item) + b"\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Dictionary in the file, or None if there is no such file. Raises ConfigError if it is damaged."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError("far larger than a file of ours")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ConfigError(f"{path} is damaged (nested too deeply): {remedy(path)}.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({cut(str(error))}): {remedy(path)}.") from None
    return value


def write_parquet(path: Path, table: pa.Table, check: Callable[[], object] = _at_once) -> None:
    """Write a table. check: as in ``replacing``. Raises OSError."""
    with replacing(path, check) as file:
        pq.write_table(table, file)


def read_parquet(path: Path, most_rows: int | None = None) -> pa.Table:
    """Table in one file. Raises FileNotFoundError if it is missing, ConfigError if it cannot be read.

    most_rows: raise ConfigError if it has more; few bytes may stand for many rows.
    """
    with _reading(path), pq.ParquetFile(path) as file:
        if most_rows is not None and file.metadata.num_rows > most_rows:
            raise ConfigError(f"{path} has {file.metadata.num_rows:,} rows, too many to be shown.")
        # pq.read_table would add a column for a parent directory called epoch=0001.
        return file.read()


def read_row_groups(path: Path) -> Iterator[pa.Table]:
    """The row groups of one file, one after the other. Raises as ``read_parquet``."""
    with _reading(path), pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        what = f"cannot be read as Parquet ({reason})"
        raise ConfigError(f"{path} {what}: {remedy(path)}.") from None


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of these names in an .npz file, without unpickling.

    Raises FileNotFoundError if it is missing, ConfigError if it is damaged or lacks one of them.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > LARGEST_ARRAYS:
                raise ValueError("its arrays are far larger than those of ours")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is damaged ({cut(str(error))}): {remedy(path)}.") from None


def read_picture(path: Path) -> bytes:
    """The content of a picture. Raises OSError, ConfigError if it is no PNG or far larger than one of ours."""
    if path.stat().st_size <= LARGEST_PICTURE:
        found = path.read_bytes()
        if found.startswith(b"\x89PNG"):
            return found
    raise ConfigError(f"{path} is not a picture of ours, so it is not shown.")


def inside(directory: Path, path: Path) -> Path:
    """``path``, unless symbolic links make it lead out of ``directory``: then ConfigError."""
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ConfigError(f"{path} leads out of {directory}, so it is not read.")
    return path


def sentence(error: Exception) -> str:
    """An error that concerns a file, as one sentence for the user."""
    if isinstance(error, OSError):
        return f"{error.filename} cannot be read ({error.strerror or error})."
    return str(error)
