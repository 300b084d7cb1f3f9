"""MNIST and Fashion-MNIST from idx files, the format of their publishers (plain or gzipped)."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ima_dist.config import ConfigError, DataConfig
from ima_dist.data.dataset import DataSet, Split, hold_out
from ima_dist.data.files import Files, fetch_file, find
from ima_dist.references import first_line

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_UNSIGNED_BYTE = 0x08
# 5000 of the 60000 training images become the validation set, whose size the paper does not give.
_VAL_SHARE = 12


@dataclass(frozen=True)
class _Source:
    files: Files
    torchvision: str  # torchvision's class
    class_names: tuple[str, ...]


def _files(title: str, cache: str, torchvision: str, hint: str, elsewhere: tuple[str, ...] = ()) -> Files:
    # Both sets have the same file names, so the layout that says which one it is comes first, and is where
    # fetched files go.
    layout = f"{torchvision}/raw"
    return Files(title, _FILES, cache, hint, (layout, "", "raw"), (layout,), elsewhere, suffix=".gz")


_FASHION_MNIST = _Source(
    _files(
        "Fashion-MNIST",
        "fashion_mnist",
        "FashionMNIST",
        "install the Debian package dataset-fashion-mnist, pass --data.dir with a directory of whole files, "
        "or pass --data.download",
        elsewhere=("/usr/share/datasets/fashion-mnist",),
    ),
    "FashionMNIST",
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
)
_MNIST = _Source(
    _files("MNIST", "mnist", "MNIST", "pass --data.dir with a directory of whole files, or pass --data.download"),
    "MNIST",
    tuple("0123456789"),
)


def load_fashion_mnist(config: DataConfig, seed: int) -> DataSet:
    """Fashion-MNIST: 55000 training, 5000 validation and 10000 test images; x (N, 1, 28, 28) uint8.

    The validation set is held out of the 60000 training images, class-balanced, by ``seed``. Files are taken
    from ``config.dir`` (itself, or torchvision's layout in it) or else from ./data, ~/.cache/ima_dist or the
    Debian package's directory; ``config.download`` fetches them if they are in none of these.
    Raises ConfigError if a file is missing, damaged or of the wrong kind, or cannot be fetched.
    """
    return _load(_FASHION_MNIST, config, seed)


def load_mnist(config: DataConfig, seed: int) -> DataSet:
    """MNIST, as ``load_fashion_mnist`` but without a Debian package."""
    return _load(_MNIST, config, seed)


def read_idx(path: Path, dims: int) -> np.ndarray:
    """The array of unsigned bytes with ``dims`` dimensions in an idx file, gzipped if its name ends in .gz.

    Raises ConfigError, ending without a full stop so that a hint can follow, if it is not exactly that.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as e:
        raise ConfigError(f"{path} cannot be read ({first_line(e)})") from e
    if content[:4] != bytes([0, 0, _UNSIGNED_BYTE, dims]):
        raise ConfigError(f"{path} does not begin like an idx file of bytes with {dims} dimensions")
    header = 4 + 4 * dims
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    if len(content) != header + math.prod(shape):
        raise ConfigError(f"{path} is truncated or too long ({len(content)} bytes for the shape {shape})")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


# ---- helpers -------------------------------------------------------------------------------------------


def _load(source: _Source, config: DataConfig, seed: int) -> DataSet:
    paths = find(source.files, config, lambda target: _download(source, target))
    classes = len(source.class_names)
    try:
        train = _read_split(paths[0], paths[1], classes)
        test = _read_split(paths[2], paths[3], classes)
    except ConfigError as e:
        raise source.files.damaged(e) from e.__cause__
    train, val = hold_out(train, len(train) // _VAL_SHARE, classes, seed)
    return DataSet(train=train, val=val, test=test, box=(0.0, 1.0), num_classes=classes, class_names=source.class_names)


def _read_split(images: Path, labels: Path, classes: int) -> Split:
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if x.shape[1:] != (28, 28):
        raise ConfigError(f"{images} holds images of {x.shape[1]}×{x.shape[2]} pixels instead of 28×28")
    if len(x) == 0:
        raise ConfigError(f"{images} holds no images")
    if len(x) != len(y):
        raise ConfigError(f"{labels} has {len(y)} labels for the {len(x)} images of {images.name}")
    if y.max() >= classes:
        raise ConfigError(f"{labels} has the label {y.max()}, above {classes - 1}")
    return Split(torch.from_numpy(x[:, None].copy()), torch.from_numpy(y.astype(np.int64)))


def _download(source: _Source, target: Path) -> None:
    """Fetch the files that ``target`` lacks from torchvision's mirrors."""
    from torchvision import datasets

    kind = getattr(datasets, source.torchvision)
    for name, md5 in kind.resources:
        if not (target / name).is_file() and not (target / name.removesuffix(".gz")).is_file():
            fetch_file(source.files.title, [mirror + name for mirror in kind.mirrors], name, md5, target)
