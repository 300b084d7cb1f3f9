"""CIFAR-10 from its published "python version": pickled batches, read without executing anything in them."""

import io
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.schema import DataConfig
from ima_dist.data.published import Download, Published
from ima_dist.data.types import DataSet, Split

_FOLDER = "cifar-10-batches-py"
_CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SHAPE = (3, 32, 32)
# Of the published training set. Of fewer images the same share is held out.
_TRAINING_IMAGES = 50000


def load(config: DataConfig, seed: int) -> DataSet:
    """CIFAR-10: 50000 training and validation images and 10000 test images; x (N, 3, 32, 32) uint8.

    Training images are cropped and flipped at random (appendix D.2). ``config.val_size`` of the 50000 are held out for
    validation, class-balanced, by ``seed``. A prepared copy is used if there is one (see prepared.py). Otherwise
    files are taken from ``config.dir`` (itself, or torchvision's layout in it) or from ./data or
    ~/.cache/ima_dist; ``config.download`` fetches them if they are in none of these.
    Raises ConfigError if a file is missing, damaged or of the wrong kind, or cannot be fetched.
    """
    return CIFAR10.data_set(config, seed, lambda images: images * config.val_size // _TRAINING_IMAGES, augment=True)


def _read_all(paths: list[Path]) -> dict[str, Split]:
    *batches, test = (_read(path) for path in paths)
    return {"train": Split(torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])), "test": test}


# ---- one batch file ------------------------------------------------------------------------------------


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes in a pickle of protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it holds bytes in a form that CIFAR-10 does not use")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries, lists, strings and numpy arrays; refuses anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        # The files name numpy.core; numpy 2 writes numpy._core.
        if (module.replace("numpy._core", "numpy.core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return _RECONSTRUCT
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")


# numpy's function, taken from an array because its module has moved between versions.
_RECONSTRUCT: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]


def _read(path: Path) -> Split:
    """A dictionary with "data" (N, 3072) uint8, channel by channel and row by row, and "labels", a list of N."""
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as e:  # the parser may raise anything for a damaged file
        raise ConfigError(f"{path} cannot be read as a batch of CIFAR-10 ({first_line(e)})") from e
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__} instead of a dictionary")
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    for name in ("data", "labels"):
        if name not in batch:
            raise ConfigError(f"{path} has no entry {name!r}")
    data, labels = batch["data"], batch["labels"]
    size = int(np.prod(_SHAPE))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != size:
        raise ConfigError(f"{path} holds images other than an array of bytes (N, {size})")
    if len(data) == 0:
        raise ConfigError(f"{path} holds no images")
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ConfigError(f"{path} holds labels other than a list of whole numbers")
    if len(labels) != len(data):
        raise ConfigError(f"{path} has {len(labels)} labels for {len(data)} images")
    wrong = [label for label in labels if not 0 <= label < len(_CLASS_NAMES)]
    if wrong:
        raise ConfigError(f"{path} has the label {wrong[0]}, outside 0 to {len(_CLASS_NAMES) - 1}")
    return Split(torch.from_numpy(data.reshape(-1, *_SHAPE).copy()), torch.tensor(labels))


# ---- download ------------------------------------------------------------------------------------------


def _downloads() -> list[Download]:
    """The archive, at torchvision's address."""
    from torchvision.datasets import CIFAR10 as kind

    return [([kind.url], kind.filename, kind.tgz_md5)]


def _unpack(archive: Path, directory: Path) -> None:
    # Extract only the named files, whatever else the archive contains or wherever it would write.
    try:
        with tarfile.open(archive) as tar:
            for name in CIFAR10.names:
                source = tar.extractfile(f"{_FOLDER}/{name}")
                if source is None:
                    raise ConfigError(f"{CIFAR10.title}: {archive.name} holds no file {_FOLDER}/{name}.")
                with source, open(directory / name, "wb") as file:
                    shutil.copyfileobj(source, file)
    except (tarfile.TarError, KeyError, EOFError) as e:
        raise ConfigError(f"{CIFAR10.title}: {archive.name} cannot be unpacked ({first_line(e)}).") from e


CIFAR10 = Published(
    name="cifar10",
    title="CIFAR-10",
    class_names=_CLASS_NAMES,
    names=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
    cache=f"cifar10/{_FOLDER}",
    layouts=(_FOLDER, "", f"cifar10/{_FOLDER}"),
    data_layouts=(_FOLDER, f"cifar10/{_FOLDER}"),
    hint="pass --data.dir with a directory of whole files, or pass --data.download",
    read=_read_all,
    checksums={
        "data_batch_1": (31035704, "c99cafc152244af753f735de768cd75f"),
        "data_batch_2": (31035320, "d4bba439e000b95fd0a9bffe97cbabec"),
        "data_batch_3": (31035999, "54ebc095f3ab1f0389bbae665268c751"),
        "data_batch_4": (31035696, "634d18415352ddfa80567beed471001a"),
        "data_batch_5": (31035623, "482c414d41f54cd18b22e5b47cb7c3cb"),
        "test_batch": (31035526, "40351d587109b95175f43aff81a1287e"),
    },
    downloads=_downloads,
    unpack=_unpack,
)
