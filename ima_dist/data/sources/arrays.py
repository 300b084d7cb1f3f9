"""``--data.source npz|hdf5``: arrays of samples and labels in one file, MedMNIST's layout included."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ima_dist.config.errors import ConfigError, first_line, printable
from ima_dist.config.schema import DataConfig
from ima_dist.data.encoded import Encoded
from ima_dist.data.fetched import Fetched
from ima_dist.data.pictures import DEEPEST
from ima_dist.data.sources import array_files, copy
from ima_dist.data.sources.array_files import InFiles, Rows
from ima_dist.data.sources.folder import PARTS
from ima_dist.data.sources.listed import the_file
from ima_dist.data.sources.samples import (
    ArrayLook,
    Catalogue,
    Labels,
    Samples,
    box_of,
    check_directory,
    data_set,
    note,
    tell,
)
from ima_dist.data.types import UINT8_BOX

_SAMPLES = ("images", "image", "x", "data", "features", "samples")
_LABELS = ("labels", "label", "y", "targets", "target")
Read = Callable[[], Rows]


class InMemory:
    """Contents that are rows of an array."""

    def __init__(self, x: np.ndarray, names: tuple[str, ...]) -> None:
        self.x, self._names = x, names

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> bytes:
        return self.x[row].tobytes()

    def name(self, row: int) -> str:
        return self._names[row]


def load_npz(config: DataConfig, seed: int) -> dict[str, Any]:
    """The arrays of a .npz file; ``config.dir`` is the file, or the only one in that directory, or a prepared copy.

    Samples and labels are called images and labels or x and y, alone or with a part: train_images, y_test. Without
    parts they are divided as those of a folder. Images (N, H, W), (N, H, W, C) or (N, C, H, W) become (N, C, H, W);
    bytes stay bytes, uint16 becomes float32 from 0 to 1, other numbers become floating point as they are; with
    ``config.window`` they are cut to it and keep their units. Raises ConfigError.
    """
    return _data_set("npz", config)


def load_hdf5(config: DataConfig, seed: int) -> dict[str, Any]:
    """The data sets of an HDF5 file, which may lie in groups (train/images); otherwise as ``load_npz``."""
    return _data_set("hdf5", config)


def _data_set(source: str, config: DataConfig) -> dict[str, Any]:
    place = check_directory(config)
    if config.size or config.channels or config.resize != "fit":
        raise ConfigError(
            f"--data.size, --data.channels and --data.resize are for images in files: {place} holds arrays, which are "
            "taken as they are."
        )
    found = copy.read(place, source) if copy.is_copy(place) else find(source, place)
    look = found.looks
    assert isinstance(look, ArrayLook)
    taken = _taken(look, config)
    stored: torch.Tensor | Fetched
    if isinstance(found.contents, InMemory):
        stored = torch.from_numpy(taken.convert(found.contents.x))
    else:
        kind, shape = np.dtype(look.dtype), tuple(look.shape)
        stored = Encoded(
            found.contents,
            lambda content, _: taken.convert(np.frombuffer(content, kind).reshape(shape)),
            shape,
            taken.dtype,
            advice=found.contents.advice if isinstance(found.contents, InFiles) else "",
        )
    return data_set(Samples(stored, found.labels, taken.box))


def find(source: str, place: Path) -> Catalogue:
    """The samples with their labels: in memory, or in the file if they are large and it is not compressed.

    Raises ConfigError.
    """
    path = the_file(place, source)
    if source == "npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                return _found(path, {name: _reader(path, file, name) for name in file.files})
        except ConfigError:
            raise
        except Exception as e:  # the parser may raise anything for a damaged file
            raise ConfigError(f"{path} cannot be read as a .npz file of arrays ({first_line(e)}).") from e
    try:
        import h5py
    except ImportError as e:
        raise ConfigError("--data.source hdf5 needs h5py, which is not installed: pip install h5py.") from e
    try:
        with h5py.File(path, "r") as file:
            nodes: dict[str, Read] = {}

            def visit(name: str, node: Any) -> None:
                if isinstance(node, h5py.Dataset) and node.shape:
                    nodes[name] = lambda: _plain(path, name, node)

            file.visititems(visit)
            return _found(path, nodes)
    except ConfigError:
        raise
    except Exception as e:
        raise ConfigError(f"{path} cannot be read as an HDF5 file ({first_line(e)}).") from e


def _reader(path: Path, file: Mapping[str, np.ndarray], name: str) -> Read:
    def read() -> Rows:
        there = array_files.in_npz(path, name)
        if there is not None and array_files.size(there) >= array_files.LARGE:
            return there
        values = file[name]
        if values.nbytes >= array_files.LARGE:
            tell(array_files.compressed(path, values.nbytes))
        return values

    return read


def _plain(path: Path, name: str, node: Any) -> Rows:
    if node.dtype.kind in "buif" and node.nbytes >= array_files.LARGE:
        return array_files.in_hdf5(path, name, node)
    values: np.ndarray = node[()]
    return values.astype(str) if values.dtype.kind == "O" else values  # texts


def _found(path: Path, arrays: Mapping[str, Read]) -> Catalogue:
    parts = _parts(path, arrays)
    xs: list[Rows] = []
    texts: list[str] = []
    where: list[str] = []
    for part, (of_samples, of_labels) in parts.items():
        values, found = arrays[of_samples](), _labels(path, of_labels, arrays[of_labels]()[:])
        if len(values) != len(found):
            raise ConfigError(f"{path}: {of_samples} has {len(values)} samples, but {of_labels} {len(found)} labels.")
        if xs and (values.shape[1:] != xs[0].shape[1:] or values.dtype != xs[0].dtype):
            first, one, other = next(iter(parts.values()))[0], _kind(xs[0]), _kind(values)
            raise ConfigError(f"{path}: a sample of {first} is {one}, but one of {of_samples} is {other}.")
        xs.append(values)
        texts += found
        where += [part] * len(found)
    names = [f"{part or 'sample'} {i}" for part, values in zip(parts, xs, strict=True) for i in range(len(values))]
    dtype = xs[0].dtype
    if dtype.kind not in "buif" or dtype.itemsize > 8 or len(xs[0].shape) < 2:
        raise ConfigError(f"{path}: samples must be numbers of shape (N, …), not {_kind(xs[0])} each.")
    low, high = _range(path, xs)
    labels = Labels.of_texts(texts, names, where)
    contents: InMemory | InFiles
    loaded = [x for x in xs if isinstance(x, np.ndarray)]
    if len(loaded) == len(xs):
        contents = InMemory(_as_network(np.concatenate(loaded) if len(xs) > 1 else loaded[0]), labels.names)
    else:
        contents = InFiles(xs, labels.names, _as_network)
    shape = _as_network(np.empty((1, *xs[0].shape[1:]), dtype)).shape[1:]
    return Catalogue(contents, labels, ArrayLook(dtype.newbyteorder("=").str, list(shape), low, high))


def _range(path: Path, xs: list[Rows]) -> tuple[float, float]:
    """The smallest and largest value. Raises ConfigError if they are not finite."""
    if xs[0].dtype == np.uint8:
        return 0.0, 255.0  # what is there makes no difference
    ends = [(float(part.min()), float(part.max())) for x in xs for part in array_files.pieces(x) if part.size]
    low, high = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (0.0, 0.0)
    if not np.isfinite(ends).all():
        raise ConfigError(f"{path}: the samples have NaN or infinite values.")
    return low, high


def _parts(path: Path, arrays: Mapping[str, Read]) -> dict[str, tuple[str, str]]:
    """Part ("" if none is named) -> the names of the arrays with its samples and labels."""
    plain = {name.lower().replace("/", "_"): name for name in arrays}

    def named(kinds: tuple[str, ...], words: tuple[str, ...]) -> str | None:
        forms = (f"{w}_{k}" if first else f"{k}_{w}" for w, k, first in itertools.product(words, kinds, (True, False)))
        return next((plain[form] for form in (forms if words else kinds) if form in plain), None)

    found = {}
    for part in ("", "train", "val", "test"):
        words = tuple(word for word, meant in PARTS.items() if meant == part)
        x, y = named(_SAMPLES, words), named(_LABELS, words)
        if x and y:
            found[part] = (x, y)
    if "train" in found:
        found.pop("", None)
    if not found.keys() & {"", "train"}:
        raise ConfigError(
            f"{path} holds the arrays {', '.join(map(printable, arrays)) or 'none'}: call samples and labels x and y, "
            "or images and labels, alone or with a part such as train_images and train_labels."
        )
    return found


def _labels(path: Path, name: str, values: np.ndarray) -> list[str]:
    """The labels as text."""
    if values.ndim == 2 and values.shape[1] == 1:  # MedMNIST's
        values = values[:, 0]
    if values.ndim != 1:
        raise ConfigError(f"{path}: {name} must have one label per sample, not the shape {values.shape}.")
    if values.dtype.kind == "f" and (values == np.floor(values)).all():
        values = values.astype(np.int64)
    if values.dtype.kind not in "biuUS":
        raise ConfigError(f"{path}: {name} must hold whole numbers or text, not {values.dtype}.")
    if values.dtype.kind == "b":
        values = values.astype(np.int64)
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]


class _Taken(NamedTuple):
    """How arrays become what a network takes: values, in any shape, and the kind and the box of the result."""

    convert: Callable[[np.ndarray], np.ndarray]
    dtype: torch.dtype
    box: tuple[float, float] | None


def _taken(look: ArrayLook, config: DataConfig) -> _Taken:
    kind, low, high = np.dtype(look.dtype), look.low, look.high
    if config.window:
        least, most = box_of(config.window)
        if kind == np.uint8:
            raise ConfigError("the samples have 8 bits, and --data.window is for more: leave it out.")
        return _Taken(lambda x: x.astype(np.float32).clip(least, most), torch.float32, (least, most))
    if kind == np.uint8:
        return _Taken(lambda x: x, torch.uint8, UINT8_BOX)
    if kind == np.uint16:
        note(
            f"The samples are uint16 from {low:g} to {high:g}: they are divided by {DEEPEST}. With --data.window "
            f"{low:g},{high:g} they and the noise levels keep these units."
        )
        return _Taken(lambda x: x / np.float32(DEEPEST), torch.float32, UINT8_BOX)
    note(f"The samples are {kind} from {low:g} to {high:g}, taken as they are: --eps-max is in their units.")
    result = kind if kind in (np.float32, np.float64) else np.dtype(np.float32)
    return _Taken(lambda x: x.astype(result, copy=False), torch.from_numpy(np.empty(0, result)).dtype, None)


def _as_network(x: np.ndarray) -> np.ndarray:
    """Samples (N, …) with the channels first, in C order and this machine's byte order."""
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = np.moveaxis(x, -1, 1)
    return np.ascontiguousarray(x, x.dtype.newbyteorder("="))


def _kind(x: Rows) -> str:
    return f"{x.dtype} of shape {x.shape[1:]}"
