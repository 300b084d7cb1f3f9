"""MNIST and Fashion-MNIST from idx files, the format of their publishers (plain or gzipped)."""

from __future__ import annotations

import gzip
import http.client
import math
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ima_dist.config import ConfigError, DataConfig
from ima_dist.data.dataset import DataSet, Split, hold_out
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
    title: str
    cache: str  # directory in ~/.cache/ima_dist
    torchvision: str  # torchvision's class, also the name of its directory
    debian: str | None  # directory of the Debian package
    hint: str  # what to do when the files are absent or damaged
    class_names: tuple[str, ...]


_FASHION_MNIST = _Source(
    title="Fashion-MNIST",
    cache="fashion_mnist",
    torchvision="FashionMNIST",
    debian="/usr/share/datasets/fashion-mnist",
    hint="install the Debian package dataset-fashion-mnist, pass --data.dir with a directory of whole files, "
    "or pass --data.download",
    class_names=(
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
    title="MNIST",
    cache="mnist",
    torchvision="MNIST",
    debian=None,
    hint="pass --data.dir with a directory of whole files, or pass --data.download",
    class_names=tuple("0123456789"),
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
    files = _find(source, config)
    try:
        train = _read_split(files[0], files[1], len(source.class_names))
        test = _read_split(files[2], files[3], len(source.class_names))
    except ConfigError as e:
        raise ConfigError(f"{e}: {source.hint}.") from e.__cause__
    classes = len(source.class_names)
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


def _find(source: _Source, config: DataConfig) -> list[Path]:
    cache = Path.home() / ".cache" / "ima_dist" / source.cache
    if config.dir is not None:
        root = Path(config.dir).expanduser()
        if not root.is_dir() and not config.download:
            raise ConfigError(f"--data.dir {config.dir}: there is no such directory.")
        # Both sets have the same file names, so the layout that says which one it is comes first, and is
        # where fetched files go.
        directories = [root / source.torchvision / "raw", root, root / "raw"]
        target = directories[0]
    else:
        directories = [Path("data", source.torchvision, "raw"), cache]
        if source.debian is not None:
            directories.append(Path(source.debian))
        target = cache
    for directory in directories:
        found = _files_in(directory)
        if len(found) == len(_FILES):
            return found
    if config.download:
        _download(source, target)
        return _files_in(target)
    for directory in directories:
        found = _files_in(directory)
        if found:
            have = {p.name.removesuffix(".gz") for p in found}
            missing = next(name for name in _FILES if name not in have)
            raise ConfigError(f"{source.title}: {directory / missing}.gz is missing: {source.hint}.")
    looked = ", ".join(str(d) for d in directories)
    raise ConfigError(f"{source.title}: {_FILES[0]}.gz is in none of {looked}: {source.hint}.")


def _files_in(directory: Path) -> list[Path]:
    candidates = [[directory / name, directory / f"{name}.gz"] for name in _FILES]
    return [next(p for p in pair if p.is_file()) for pair in candidates if any(p.is_file() for p in pair)]


def _download(source: _Source, target: Path) -> None:
    """Fetch the files that ``target`` lacks from torchvision's mirrors, checked against its checksums."""
    # torchvision takes seconds to import, and only a download needs it.
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    kind = getattr(datasets, source.torchvision)
    for name, md5 in kind.resources:
        if (target / name).is_file() or (target / name.removesuffix(".gz")).is_file():
            continue
        failure: Exception | None = None
        for mirror in kind.mirrors:
            try:
                target.mkdir(parents=True, exist_ok=True)
                # Fetched aside and moved, so that an interruption leaves no half file under the final name.
                with tempfile.TemporaryDirectory(dir=target) as aside:
                    download_url(mirror + name, aside, name, md5)
                    os.replace(Path(aside, name), target / name)
                break
            except (OSError, RuntimeError, http.client.HTTPException) as e:
                failure = e
        else:
            raise ConfigError(
                f"{source.title}: {name} could not be fetched from {' or '.join(kind.mirrors)} "
                f"({first_line(failure) if failure else 'no mirrors'}): copy the file to {target} yourself."
            ) from failure
