"""Arrays in .npz and HDF5 files whose rows are read one by one, for sets that should not be in memory as a whole."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ima_dist.config.errors import ConfigError, first_line, printable

# Smaller arrays are read as a whole, which is quicker.
LARGE = 1 << 28
_LOCAL_HEADER = 30  # bytes of a zip file's entry before its name
_AT_ONCE = 1 << 24
_ADVICE = (
    "A row of a chunked HDF5 data set is unpacked with its whole chunk, which may be slow: make a prepared copy "
    "(python -m ima_dist.data prepare own --source FILE --to COPY), and give that with --data.dir."
)


class Rows(Protocol):
    """An array (N, …) whose rows are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: Any, /) -> Any: ...


class FileRows:
    """Rows of an array that lies in a file as in memory, in C order from byte ``first`` on."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], first: int) -> None:
        self.path, self.shape, self.dtype, self.first = path, shape, dtype, first

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """One row, or a slice of them. Raises OSError or ValueError."""
        start, stop, _ = rows.indices(len(self)) if isinstance(rows, slice) else (rows, rows + 1, 1)
        each = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.first + start * each)
            content = file.read((stop - start) * each)
        if len(content) != (stop - start) * each:
            raise ValueError(f"{self.path} is shorter than it was")
        found = np.frombuffer(content, self.dtype).reshape(stop - start, *self.shape[1:])
        return found if isinstance(rows, slice) else found[0]


class Hdf5Rows:
    """Rows of a compressed or chunked data set of an HDF5 file, which is opened where it is used."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.name, self.shape, self.dtype = path, name, shape, dtype
        self._node: Any = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        import h5py

        if self._node is None:
            self._node = h5py.File(self.path, "r")[self.name]
        found: np.ndarray = self._node[rows]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_node": None}


class InFiles:
    """Contents that are rows of arrays in files, one array after another, each row as ``change`` makes it."""

    def __init__(
        self, arrays: Sequence[Rows], names: tuple[str, ...], change: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        self.arrays, self._names, self._change = arrays, names, change
        self._ends = np.cumsum([len(array) for array in arrays])
        self.advice = _ADVICE if any(isinstance(array, Hdf5Rows) for array in arrays) else ""

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> bytes:
        place = int(np.searchsorted(self._ends, row, side="right"))
        array = self.arrays[place]
        try:
            found = array[row - int(self._ends[place]) + len(array)]
        except Exception as e:  # the parser may raise anything for a damaged file
            raise ConfigError(f"{self.name(row)} cannot be read ({first_line(e)})") from e
        return self._change(found[None])[0].tobytes()

    def name(self, row: int) -> str:
        return self._names[row]


def pieces(array: Rows) -> Iterator[np.ndarray]:
    """All rows, a few megabytes at a time."""
    step = max(1, _AT_ONCE * len(array) // max(size(array), 1))
    for start in range(0, len(array), step):
        yield array[start : min(start + step, len(array))]


def in_npz(path: Path, name: str) -> FileRows | None:
    """The array ``name`` of a .npz file, if it is not compressed and in C order. Raises OSError or ValueError."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        return None
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        name_length, extra_length = struct.unpack("<HH", file.read(_LOCAL_HEADER)[-4:])
        file.seek(name_length + extra_length, 1)
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        first = file.tell()
    if fortran or dtype.hasobject or not shape:
        return None
    return FileRows(path, shape, dtype, first)


def in_hdf5(path: Path, name: str, node: Any) -> Rows:
    """The data set ``node``, called ``name``, of an HDF5 file."""
    first = node.id.get_offset()
    if first is None or node.chunks is not None or node.external:
        return Hdf5Rows(path, name, node.shape, node.dtype)
    return FileRows(path, node.shape, node.dtype, int(first))


def size(array: Rows) -> int:
    """Its bytes in memory."""
    return int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize


def compressed(path: Path, count: int) -> str:
    """A sentence for a compressed array, which is read as a whole."""
    return (
        f"{printable(str(path))} is compressed, so that its {count / 1e9:.3g} GB are unpacked into the memory of every "
        "worker: make a prepared copy (python -m ima_dist.data prepare own --source FILE --to COPY), or save it with "
        "numpy.savez."
    )
