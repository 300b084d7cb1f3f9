"""Prepared copies of data sets: Arrow files that every process maps into memory instead of reading the published files.

A prepared copy is a directory with one Arrow IPC file (uncompressed, one record batch) per published part, before any
split by seed, and ``prepared.json``, which describes them. That file is written last: a directory without it is not a
prepared copy.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import torch

from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.schema import DataConfig
from ima_dist.config.sources import MANIFEST
from ima_dist.data.types import Split

# Format 2 is of one's own data (sources/copy.py).
FORMAT, OWN_FORMAT = 1, 2
_LOCK, ASIDE = "lock", ".aside-"


def default_directory(name: str) -> Path:
    """The default place of the prepared copy of the data set ``name``."""
    return Path.home() / ".cache" / "ima_dist" / "prepared" / name


def locate(name: str, config: DataConfig) -> Path | None:
    """The prepared copy of ``name`` in ``config.dir`` (itself, or NAME in it) or the default directory, if any."""
    if config.dir is None:
        candidates = [default_directory(name)]
    else:
        root = Path(config.dir).expanduser()
        candidates = [root, root / name]
    return next((c for c in candidates if (c / MANIFEST).exists()), None)


def read(directory: Path, name: str, classes: int) -> dict[str, Split]:
    """The parts of a prepared copy, mapped into memory: x (N, *shape) uint8, y (N,) int64, names if it has them.

    Nothing is copied, and images are read from the disk when they are used, so several processes share their memory.
    Raises ConfigError if a file is missing, differs in size or layout from what was written, or has a label outside
    0 to ``classes`` - 1, or if the copy is of another data set.
    """
    manifest = read_manifest(directory, name)
    if manifest["name"] != name:
        raise ConfigError(
            f"{directory} is a prepared copy of {manifest['name']}, not of {name}: name another directory."
        )
    parts = {}
    for part, path, entry in part_files(directory, manifest):
        try:
            split = _map(path, entry)
        except Exception as e:  # the parser may raise anything for a damaged file
            raise damaged(directory, f"{path} cannot be read as an Arrow file ({first_line(e)})", name) from e
        if split.y.min() < 0 or split.y.max() >= classes:
            raise damaged(directory, f"{path} is damaged (it has a label outside 0 to {classes - 1})", name)
        parts[part] = split
    return parts


def read_manifest(directory: Path, name: str = "NAME") -> dict[str, Any]:
    """The manifest that ``write`` returned. Raises ConfigError if it is missing, damaged or of another version."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{directory} holds no prepared data ({MANIFEST} is missing): prepare them with {_command(name)}."
        ) from None
    except (OSError, ValueError) as e:
        raise damaged(directory, f"{path} cannot be read ({first_line(e)})", name) from e
    if not isinstance(manifest, dict):
        raise damaged(directory, f"{path} is damaged", name)
    if manifest.get("format", FORMAT) not in (FORMAT, OWN_FORMAT):
        what = f"{path} has version {manifest['format']} of the format, not {FORMAT} or {OWN_FORMAT}"
        raise damaged(directory, what, name)
    if manifest.pop("checksum", None) != digest(manifest):
        raise damaged(directory, f"{path} is damaged (its checksum is wrong)", name)
    return manifest


def verify(directory: Path, name: str = "NAME") -> dict[str, Any]:
    """The manifest, after every byte of every file has been checked against it. Raises ConfigError."""
    manifest = read_manifest(directory, name)
    for _, path, entry in part_files(directory, manifest):
        try:
            found = _sha256(path)
        except OSError as e:
            raise damaged(directory, f"{path} cannot be read ({first_line(e)})", manifest["name"]) from e
        if found != entry["sha256"]:
            raise damaged(directory, f"{path} is damaged (its checksum is wrong)", manifest["name"])
    return manifest


def write(directory: Path, name: str, parts: dict[str, Split], sources: dict[str, Any]) -> dict[str, Any]:
    """Write ``parts`` (x uint8, all of them in memory) into ``directory``, held with ``writing``; returns the manifest.

    sources: what the parts were read from, as plain values. All files are written aside and then moved, the manifest
    last; an older manifest is removed first. Raises OSError if the disk is full or read-only.
    """
    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=directory) as aside:
        entries: dict[str, dict[str, Any]] = {}
        for part, split in parts.items():
            path = Path(aside, f"{part}.arrow")
            _write_arrow(path, split)
            entries[part] = {
                **entry_of(path, len(split)),
                "shape": list(split.shape),
                "dtype": "uint8",
            }
        manifest = {"format": FORMAT, "name": name, "parts": entries, "sources": sources}
        put(directory, Path(aside), manifest)
    return manifest


def entry_of(path: Path, rows: int) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def put(directory: Path, aside: Path, manifest: dict[str, Any]) -> None:
    """Move the files of ``manifest`` from ``aside`` into ``directory``, it last; an older manifest is removed first."""
    with open(aside / MANIFEST, "w", encoding="utf-8") as file:
        json.dump({**manifest, "checksum": digest(manifest)}, file, indent=1)
        to_disk(file)
    (directory / MANIFEST).unlink(missing_ok=True)
    for name in [*(entry["file"] for entry in manifest["parts"].values()), MANIFEST]:
        os.replace(aside / name, directory / name)


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Create ``directory`` if necessary, and hold a lock on it; waits while another process holds the lock.

    Leftovers of a killed writer are removed, and so is a directory that was created and stays empty.
    Raises ConfigError if it cannot be created or written, or holds other files.
    """
    made = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        entries = sorted(directory.iterdir())
        # The lock stays where we have written, so that a user's own Arrow files are not taken for ours.
        kinds = (".arrow",) if any(entry.name in (MANIFEST, _LOCK) for entry in entries) else ()
        for entry in entries:
            if not (entry.suffix in kinds or entry.name in (MANIFEST, _LOCK) or entry.name.startswith(ASIDE)):
                raise ConfigError(
                    f"{directory} holds other files ({entry.name}): name a new or empty directory with --to."
                )
        with open(directory / _LOCK, "a") as lock:
            # A file system without locks: better unlocked than not at all.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            for left in directory.glob(f"{ASIDE}*"):
                shutil.rmtree(left)
            yield
    except OSError as e:
        raise ConfigError(
            f"{directory} cannot be written ({first_line(e)}): make room, or name another directory with --to."
        ) from e
    finally:
        if made and not (directory / MANIFEST).exists():
            with contextlib.suppress(OSError):
                # With files of ours, which a signal may have left, the lock says whose they are.
                if all(entry.name == _LOCK for entry in directory.iterdir()):
                    (directory / _LOCK).unlink(missing_ok=True)
                directory.rmdir()


def digest(values: Any) -> str:
    """SHA-256 of plain values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# ---- helpers -------------------------------------------------------------------------------------------


def _write_arrow(path: Path, split: Split) -> None:
    kind = _image_type(split.shape)
    pixels = pa.array(split.x.contiguous().view(-1).numpy())
    images = pa.FixedSizeListArray.from_arrays(pixels, kind.storage_type.list_size)
    columns = {"image": pa.ExtensionArray.from_storage(kind, images), "label": pa.array(split.y.numpy())}
    if split.names is not None:
        columns["name"] = pa.array(split.names, pa.string())
    batch = pa.record_batch(columns)
    with open(path, "wb") as file:
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        to_disk(file)


def _map(path: Path, entry: dict[str, Any]) -> Split:
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    batch.validate()
    images, labels = batch["image"], batch["label"]
    if (images.type, labels.type, len(batch)) != (_image_type(entry["shape"]), pa.int64(), entry["rows"]):
        raise ValueError(f"its arrays are not those that {MANIFEST} describes")
    names = tuple(batch["name"].to_pylist()) if "name" in batch.schema.names else None
    x = _view(images.storage.values, np.uint8).view(len(batch), *entry["shape"])
    return Split(x, _view(labels, np.int64), names, mapped=True)


def _image_type(shape: Sequence[int]) -> pa.FixedShapeTensorType:
    return pa.fixed_shape_tensor(pa.uint8(), list(shape))


def _view(array: pa.Array, dtype: type[np.generic]) -> torch.Tensor:
    # pyarrow's own conversion to numpy imports pandas, which takes longer than everything else here.
    values = np.frombuffer(array.buffers()[1], dtype, len(array))
    with warnings.catch_warnings():
        # torch has no read-only tensors; nothing writes into a data set.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(values)


def part_files(directory: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """The name, file and entry of each part. Raises ConfigError if a file is missing or has another size."""
    for part, entry in manifest["parts"].items():
        path = directory / entry["file"]
        try:
            size = path.stat().st_size
        except OSError as e:
            raise damaged(directory, f"{path} cannot be read ({first_line(e)})", manifest["name"]) from e
        if size != entry["bytes"]:
            what = f"{path} is damaged ({size} bytes instead of {entry['bytes']})"
            raise damaged(directory, what, manifest["name"])
        yield part, path, entry


def damaged(directory: Path, what: str, name: str) -> ConfigError:
    again = f"{_command(name)} --to {shlex.quote(str(directory))}"
    return ConfigError(f"{what}: prepare the data again with {again}, or delete that directory.")


def _command(name: str) -> str:
    return f"python -m ima_dist.data prepare {name} --source DIR"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
