"""MNIST and Fashion-MNIST from their published idx files, plain or gzipped."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.schema import DataConfig
from ima_dist.data.published import Download, Published, Unfit
from ima_dist.data.types import DataSet, Split

_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_UNSIGNED_BYTE, GZIP, _ZIP = 0x08, b"\x1f\x8b", b"PK\x03\x04"
# Of the published training set. Of fewer images the same share is held out.
_TRAINING_IMAGES = 60000
_CLASSES = 10
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_Sums = tuple[tuple[tuple[int, str], tuple[int, str]], ...]  # per file: size and MD5 checksum of it gzipped, and plain


def load_fashion_mnist(config: DataConfig, seed: int) -> DataSet:
    """Fashion-MNIST: 60000 training and validation images and 10000 test images; x (N, 1, 28, 28) uint8.

    ``config.val_size`` of the 60000 are held out for validation, class-balanced, by ``seed``. A prepared copy is
    used if there is one (see prepared.py). Otherwise files are taken from ``config.dir`` (itself, or torchvision's
    layout in it) or from ./data, ~/.cache/ima_dist or the Debian package's directory; ``config.download`` fetches
    them if they are in none of these.
    Raises ConfigError if a file is missing, damaged or of the wrong kind, or cannot be fetched.
    """
    return FASHION_MNIST.data_set(config, seed, lambda images: images * config.val_size // _TRAINING_IMAGES)


def load_mnist(config: DataConfig, seed: int) -> DataSet:
    """MNIST, as ``load_fashion_mnist`` but without a Debian package."""
    return MNIST.data_set(config, seed, lambda images: images * config.val_size // _TRAINING_IMAGES)


# ---- helpers -------------------------------------------------------------------------------------------


def _content(path: Path) -> tuple[bytes, tuple[str, ...]]:
    """A file's content, uncompressed, and the MD5 checksums of what it holds and of the file itself."""
    try:
        stored = path.read_bytes()
        content = gzip.decompress(stored) if stored.startswith(GZIP) else stored
    except (OSError, EOFError, zlib.error) as e:
        raise ConfigError(f"{path} cannot be read ({first_line(e)})") from e
    if content.startswith(_ZIP):
        raise Unfit(f"{path} is a ZIP archive: unpack it")
    return content, tuple(hashlib.md5(c, usedforsecurity=False).hexdigest() for c in {content, stored})


def _array(path: Path, content: bytes, dims: int) -> np.ndarray:
    if content[:4] != bytes([0, 0, _UNSIGNED_BYTE, dims]):
        raise ConfigError(f"{path} does not begin like an idx file of bytes with {dims} dimensions")
    header = 4 + 4 * dims
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    if len(content) != header + math.prod(shape):
        raise ConfigError(f"{path} is truncated or too long ({len(content)} bytes for the shape {shape})")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _spellings(name: str) -> Iterator[str]:
    """The names under which people pass a file on: with a dot, gzipped or not, in a folder of that name (Kaggle)."""
    files = [base + end for base in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    yield from files
    for folder in files:
        yield from (f"{folder}/{file}" for file in files)


def _read_all(title: str, paths: list[Path]) -> dict[str, Split]:
    arrays = []
    for name, path in zip(_FILES, paths, strict=True):
        content, sums = _content(path)
        owner = next((_KNOWN[md5] for md5 in sums if md5 in _KNOWN), (title, name))
        if owner != (title, name):
            raise Unfit(
                f"{path} is the published {owner[1]} of {owner[0]}, where {name} of {title} is needed: "
                "name the right directory with --data.dir"
            )
        arrays.append(_array(path, content, 3 if "idx3" in name else 1))
    return {part: _split(paths[i], paths[i + 1], arrays[i], arrays[i + 1]) for part, i in (("train", 0), ("test", 2))}


def _split(images: Path, labels: Path, x: np.ndarray, y: np.ndarray) -> Split:
    if x.shape[1:] != (28, 28):
        raise ConfigError(f"{images} holds images of {x.shape[1]}×{x.shape[2]} pixels instead of 28×28")
    if len(x) == 0:
        raise ConfigError(f"{images} holds no images")
    if len(x) != len(y):
        raise ConfigError(f"{labels} has {len(y)} labels for the {len(x)} images of {images.name}")
    if y.max() >= _CLASSES:
        raise ConfigError(f"{labels} has the label {y.max()}, above {_CLASSES - 1}")
    return Split(torch.from_numpy(x[:, None].copy()), torch.from_numpy(y.astype(np.int64)))


def _published(
    name: str, title: str, kind: str, class_names: tuple[str, ...], sums: _Sums, hint: str = "", elsewhere: str = ""
) -> Published:
    """kind: torchvision's name. sums: of ``_FILES``. hint: another remedy. elsewhere: a directory to search."""
    # Both sets have the same file names, so the layout that names the set comes first, and fetched files go there.
    layout = f"{kind}/raw"

    def downloads() -> Iterator[Download]:
        from torchvision import datasets

        of_set = getattr(datasets, kind)
        for file, md5 in of_set.resources:
            yield [mirror + file for mirror in of_set.mirrors], file, md5

    checksums: dict[str, tuple[int, str]] = {}
    for file, (compressed, plain) in zip(_FILES, sums, strict=True):
        checksums |= {f"{file}.gz": compressed, file: plain}
    return Published(
        name=name,
        title=title,
        class_names=class_names,
        names=_FILES,
        cache=name,
        layouts=(layout, "", "raw"),
        data_layouts=(layout,),
        hint=f"{hint}pass --data.dir with a directory of whole files, or pass --data.download",
        read=partial(_read_all, title),
        elsewhere=(elsewhere,) if elsewhere else (),
        spellings=_spellings,
        suffix=".gz",
        checksums=checksums,
        downloads=downloads,
    )


FASHION_MNIST = _published(
    "fashion_mnist",
    "Fashion-MNIST",
    "FashionMNIST",
    _CLOTHES,
    sums=(
        ((26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"), (47040016, "f4a8712d7a061bf5bd6d2ca38dc4d50a")),
        ((29515, "25c81989df183df01b3e8a0aad5dffbe"), (60008, "9018921c3c673c538a1fc5bad174d6f9")),
        ((4422102, "bef4ecab320f06d8554ea6380940ec79"), (7840016, "8181f5470baa50b63fa0f6fddb340f0a")),
        ((5148, "bb300cfdad3c16e7a12a480ee83cd310"), (10008, "15d484375f8d13e6eb1aabb0c3f46965")),
    ),
    hint="install the Debian package dataset-fashion-mnist, ",
    elsewhere="/usr/share/datasets/fashion-mnist",
)
MNIST = _published(
    "mnist",
    "MNIST",
    "MNIST",
    tuple("0123456789"),
    sums=(
        ((9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"), (47040016, "6bbc9ace898e44ae57da46a324031adb")),
        ((28881, "d53e105ee54ea40749a09fcbcd1e9432"), (60008, "a25bea736e30d166cdddb491f175f624")),
        ((1648877, "9fb629c4189551a2d022fa330f9573f3"), (7840016, "2646ac647ad5339dbf082846283269ea")),
        ((4542, "ec29112dd5afa0611ce80d1b7f02629c"), (10008, "27ae3e4e09519cfbb04c329615203637")),
    ),
)
# MD5 checksums of published files that have the same names, plain or gzipped: the set and the name of each. KMNIST's
# are torchvision's.
_KUZUSHIJI = (
    "bdb82020997e1d708af4cf47b453dcf7",
    "e144d726b3acfaa3e44228e80efcd344",
    "5c965bf0a639b31b8f53240b1b52f4d7",
    "7320c461ea6c1c855c0b718fb2a4b134",
)
_KNOWN = {
    **{md5: ("KMNIST", file) for md5, file in zip(_KUZUSHIJI, _FILES, strict=True)},
    **{
        md5: (published.title, file.removesuffix(".gz"))
        for published in (FASHION_MNIST, MNIST)
        for file, (_, md5) in published.checksums.items()
    },
}
