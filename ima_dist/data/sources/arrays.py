"""``--data.source npz|hdf5``: arrays of samples and labels in one file, MedMNIST's layout included."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ima_dist.config.errors import ConfigError, first_line, printable
from ima_dist.config.schema import DataConfig
from ima_dist.data.pictures import DEEPEST
from ima_dist.data.sources.folder import PARTS
from ima_dist.data.sources.listed import the_file
from ima_dist.data.sources.samples import Labels, Samples, check_directory, data_set, note
from ima_dist.data.types import UINT8_BOX, DataSet

_SAMPLES = ("images", "image", "x", "data", "features", "samples")
_LABELS = ("labels", "label", "y", "targets", "target")
Read = Callable[[], np.ndarray]


def load_npz(config: DataConfig, seed: int) -> DataSet:
    """The arrays of a .npz file; ``config.dir`` is the file, or the only one in that directory.

    Samples and labels are called images and labels or x and y, alone or with a part: train_images, y_test. Without
    parts they are divided as those of a folder. Images (N, H, W), (N, H, W, C) or (N, C, H, W) become (N, C, H, W);
    bytes stay bytes, uint16 becomes float32 from 0 to 1, other numbers become floating point as they are; with
    ``config.window`` they are cut to it and keep their units. Raises ConfigError.
    """
    path = the_file(check_directory(config), "npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            return _load(path, {name: _reader(file, name) for name in file.files}, config, seed)
    except ConfigError:
        raise
    except Exception as e:  # the parser may raise anything for a damaged file
        raise ConfigError(f"{path} cannot be read as a .npz file of arrays ({first_line(e)}).") from e


def load_hdf5(config: DataConfig, seed: int) -> DataSet:
    """The data sets of an HDF5 file, which may lie in groups (train/images); otherwise as ``load_npz``."""
    try:
        import h5py
    except ImportError as e:
        raise ConfigError("--data.source hdf5 needs h5py, which is not installed: pip install h5py.") from e
    path = the_file(check_directory(config), "hdf5")
    try:
        with h5py.File(path, "r") as file:
            found: dict[str, Read] = {}

            def visit(name: str, node: Any) -> None:
                if isinstance(node, h5py.Dataset) and node.shape:
                    found[name] = lambda: _plain(node)

            file.visititems(visit)
            return _load(path, found, config, seed)
    except ConfigError:
        raise
    except Exception as e:
        raise ConfigError(f"{path} cannot be read as an HDF5 file ({first_line(e)}).") from e


def _reader(file: Mapping[str, np.ndarray], name: str) -> Read:
    return lambda: file[name]


def _plain(node: Any) -> np.ndarray:
    values: np.ndarray = node[()]
    return values.astype(str) if values.dtype.kind == "O" else values  # texts


def _load(path: Path, arrays: Mapping[str, Read], config: DataConfig, seed: int) -> DataSet:
    if config.size or config.channels or config.resize != "fit":
        raise ConfigError(
            f"--data.size, --data.channels and --data.resize are for images in files: {path} holds arrays, which are "
            "taken as they are."
        )
    parts = _parts(path, arrays)
    xs, texts, where = [], [], []
    for part, (x, y) in parts.items():
        values, labels = arrays[x](), _labels(path, y, arrays[y]())
        if len(values) != len(labels):
            raise ConfigError(f"{path}: {x} has {len(values)} samples, but {y} {len(labels)} labels.")
        xs.append(values)
        texts += labels
        where += [part] * len(labels)
    for name, values in zip(parts.values(), xs, strict=True):
        if values.shape[1:] != xs[0].shape[1:] or values.dtype != xs[0].dtype:
            first, one, other = next(iter(parts.values()))[0], _kind(xs[0]), _kind(values)
            raise ConfigError(f"{path}: a sample of {first} is {one}, but one of {name[0]} is {other}.")
    names = [f"{part or 'sample'} {i}" for part, values in zip(parts, xs, strict=True) for i in range(len(values))]
    values, box = _values(path, np.concatenate(xs) if len(xs) > 1 else xs[0], config)
    return data_set(Samples(torch.from_numpy(values), Labels.of_texts(texts, names, where), box), seed)


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


def _values(path: Path, x: np.ndarray, config: DataConfig) -> tuple[np.ndarray, tuple[float, float] | None]:
    """The samples as a network takes them, and their box."""
    if x.dtype.kind not in "buif" or x.dtype.itemsize > 8 or x.ndim < 2:
        raise ConfigError(f"{path}: samples must be numbers of shape (N, …), not {_kind(x)} each.")
    x = np.ascontiguousarray(_channels_first(x), x.dtype.newbyteorder("="))
    if config.window:
        low, high = config.window
        if x.dtype == np.uint8:
            raise ConfigError("the samples have 8 bits, and --data.window is for more: leave it out.")
        return x.astype(np.float32).clip(low, high), (low, high)
    if x.dtype == np.uint8:
        return x, UINT8_BOX
    low, high = (x.min().item(), x.max().item()) if x.size else (0, 0)
    if x.dtype == np.uint16:
        note(
            f"The samples are uint16 from {low} to {high}: they are divided by {DEEPEST}. With --data.window "
            f"{low},{high} they and the noise levels keep these units."
        )
        return (x / np.float32(DEEPEST)).astype(np.float32), UINT8_BOX
    note(f"The samples are {x.dtype} from {low:g} to {high:g}, taken as they are: --eps-max is in their units.")
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32), None


def _channels_first(x: np.ndarray) -> np.ndarray:
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        return np.moveaxis(x, -1, 1)
    return x


def _kind(x: np.ndarray) -> str:
    return f"{x.dtype} of shape {x.shape[1:]}"
