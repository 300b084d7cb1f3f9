"""Small data sets in their publishers' formats."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.io
import torch
from PIL import Image

from ima_dist.data.types import Split

FOLDER = "cifar-10-batches-py"
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def counts(split: Split, classes: int) -> list[int]:
    """How many samples of each class a split has."""
    return torch.bincount(split.y, minlength=classes).tolist()


def write_svhn(directory: Path, n: int = 240, **changes: Any) -> Path:
    """MATLAB 5 files, compressed like the published ones."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, size in (("train", n), ("test", n // 2)):
        y = (np.arange(size) % 10 + 1).astype(np.uint8)[:, None]
        content = {"X": rng.integers(0, 256, (32, 32, 3, size), dtype=np.uint8), "y": y} | changes
        content = {name: value for name, value in content.items() if value is not None}
        scipy.io.savemat(directory / f"{split}_32x32.mat", content, do_compression=True)
    return directory


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes strings and bytes as Python 2 did, which wrote CIFAR-10's files."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        short = len(content) < 256
        header = b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content))
        self.write(header + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2(content: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    # Newer versions of numpy have renamed the module.
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar_batch(number: int, n: int) -> dict[bytes, Any]:
    return {
        b"batch_label": b"training batch %d of 5" % number,
        b"labels": [i % 10 for i in range(n)],
        b"data": np.random.default_rng(number).integers(0, 256, (n, 3072), dtype=np.uint8),
        b"filenames": [b"picture_%d.png" % i for i in range(n)],
    }


def write_cifar(directory: Path, n: int = 40) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(BATCHES, 1):
        (directory / name).write_bytes(python2(cifar_batch(number, n)))
    return directory


def write_covid(directory: Path, infected: int = 62, uninfected: int = 60) -> Path:
    """Pictures of different sizes and modes, whose brightness tells the class and whose width the number."""
    for folder, count, level in (("COVID", infected, 200), ("non-COVID", uninfected, 50)):
        (directory / folder).mkdir(parents=True)
        for i in range(count):
            mode = ("RGB", "L", "RGBA", "P")[i % 4]
            picture = Image.new("L", (100 + i, 80), level).convert(mode)
            picture.save(directory / folder / f"{folder} ({i + 1}).png")
    return directory


def write_pathmnist(directory: Path, n: int = 90, **changes: Any) -> Path:
    """A .npz file as MedMNIST's: images (N, 28, 28, 3) and labels (N, 1) of the training, validation and test set."""
    directory.mkdir(parents=True, exist_ok=True)
    rng, content = np.random.default_rng(0), {}
    for part, size in (("train", n), ("val", n // 5), ("test", n // 3)):
        content[f"{part}_images"] = rng.integers(0, 256, (size, 28, 28, 3), dtype=np.uint8)
        content[f"{part}_labels"] = (np.arange(size) % 9).astype(np.uint8)[:, None]
    content |= changes
    np.savez_compressed(directory / "pathmnist.npz", **{k: v for k, v in content.items() if v is not None})
    return directory


CIFAR_RUN = {
    "model__factory": "tests.support.user_code:linear_images",
    "epochs": 2,
    "batch_size": 16,
    "dtype": "float64",
    "attack__steps": 2,
    "optimizer__lr": 0.01,
}


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(directory: Path, n: int = 240, compress: bool = True) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, size in (("train", n), ("t10k", n // 2)):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (size, 28, 28))),
            ("labels-idx1", np.arange(size) % 10),
        ):
            content = idx_bytes(array)
            name = f"{prefix}-{kind}-ubyte"
            if compress:
                (directory / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (directory / name).write_bytes(content)
    return directory
