"""SVHN, cropped digits, from its published MATLAB files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.io
import torch

from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.schema import DataConfig
from ima_dist.data.published import Download, Published
from ima_dist.data.types import DataSet, Split

_CLASSES = 10
# Of the published training set. Of fewer images the same share is held out.
_TRAINING_IMAGES = 73257


def load(config: DataConfig, seed: int) -> DataSet:
    """SVHN: 73257 training and validation images and 26032 test images; x (N, 3, 32, 32) uint8, y the digit.

    ``config.val_size`` of the 73257 are held out for validation, class-balanced, by ``seed``. A prepared copy is
    used if there is one (see prepared.py). Otherwise files are taken from ``config.dir`` (itself, or svhn/ in it) or
    from ./data or ~/.cache/ima_dist; ``config.download`` fetches them if they are in none of these.
    Raises ConfigError if a file is missing, damaged or of the wrong kind, or cannot be fetched.
    """
    return SVHN.data_set(config, seed, lambda images: round(images * config.val_size / _TRAINING_IMAGES))


def _read_all(paths: list[Path]) -> dict[str, Split]:
    return {"train": _read(paths[0]), "test": _read(paths[1])}


def _read(path: Path) -> Split:
    """X (32, 32, 3, N) uint8 and y (N, 1), where 10 stands for the digit 0."""
    try:
        content = scipy.io.loadmat(path, variable_names=["X", "y"])
    except Exception as e:  # the parser may raise anything for a damaged file
        raise ConfigError(f"{path} cannot be read as a MATLAB file ({first_line(e)})") from e
    for name in ("X", "y"):
        if not isinstance(content.get(name), np.ndarray):
            raise ConfigError(f"{path} holds no array {name}")
    images, labels = content["X"], content["y"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise ConfigError(f"{path} holds X of {images.dtype} {images.shape} instead of uint8 (32, 32, 3, N)")
    count = images.shape[3]
    if count == 0:
        raise ConfigError(f"{path} holds no images")
    if labels.dtype.kind not in "uif" or labels.shape != (count, 1):
        raise ConfigError(f"{path} holds labels y of {labels.dtype} {labels.shape} instead of numbers ({count}, 1)")
    wrong = ~np.isin(labels, np.arange(1, _CLASSES + 1))
    if wrong.any():
        raise ConfigError(f"{path} has the label {labels[wrong][0]}, outside 1 to {_CLASSES}")
    x = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
    return Split(torch.from_numpy(x), torch.from_numpy(labels[:, 0].astype(np.int64) % _CLASSES))


def _downloads() -> Iterator[Download]:
    from torchvision import datasets

    for split in ("train", "test"):
        url, name, md5 = datasets.SVHN.split_list[split]
        yield [url], name, md5


SVHN = Published(
    name="svhn",
    title="SVHN",
    class_names=tuple("0123456789"),
    names=("train_32x32.mat", "test_32x32.mat"),
    cache="svhn",
    layouts=("", "svhn"),
    data_layouts=("", "svhn"),
    hint="pass --data.dir with a directory of whole files, or pass --data.download",
    read=_read_all,
    checksums={
        "train_32x32.mat": (182040794, "e26dedcc434d2e4c54c9b2d4a06d8373"),
        "test_32x32.mat": (64275384, "eb5a983be6a315427106f1b164d9cef3"),
    },
    downloads=_downloads,
)
