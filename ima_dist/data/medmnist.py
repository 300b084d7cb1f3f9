"""PathMNIST from MedMNIST's published .npz file (Yang et al., Scientific Data 10, 2023)."""

from pathlib import Path

import numpy as np
import torch

from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.schema import DataConfig
from ima_dist.data.published import Download, Published
from ima_dist.data.types import PARTS, UINT8_BOX, DataSet, Split

_FILE, _MD5 = "pathmnist.npz", "a8b06965200029087d5bd730944a56c1"
_SHAPE = (28, 28, 3)
_CLASS_NAMES = (
    "adipose",
    "background",
    "debris",
    "lymphocytes",
    "mucus",
    "smooth muscle",
    "normal colon mucosa",
    "cancer-associated stroma",
    "colorectal adenocarcinoma epithelium",
)


def load(config: DataConfig, seed: int) -> DataSet:
    """PathMNIST: 89996 training, 10004 validation and 7180 test images, as published; x (N, 3, 28, 28) uint8.

    A prepared copy is used if there is one (see prepared.py). Otherwise pathmnist.npz is taken from ``config.dir``
    (itself, or medmnist/ in it), from ./data, or from ~/.cache/ima_dist or ~/.medmnist; ``config.download`` fetches it
    if it is in none of these.
    Raises ConfigError if the file is missing, damaged or of another set, or cannot be fetched.
    """
    parts = PATHMNIST.load(config)
    train, val, test = (parts[name] for name in PARTS)
    return DataSet(train, val, test, UINT8_BOX, len(_CLASS_NAMES), _CLASS_NAMES)


def _read(paths: list[Path]) -> dict[str, Split]:
    """The parts, from train_images (N, 28, 28, 3) uint8, train_labels (N, 1), and so on."""
    (path,) = paths
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as e:  # the parser may raise anything for a damaged file
        raise ConfigError(f"{path} cannot be read as a .npz file of arrays ({first_line(e)})") from e
    return {part: _part(path, arrays, part) for part in PARTS}


def _part(path: Path, arrays: dict[str, np.ndarray], part: str) -> Split:
    for name in (f"{part}_images", f"{part}_labels"):
        if name not in arrays:
            raise ConfigError(f"{path} holds no array {name}")
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if images.dtype != np.uint8 or images.shape[1:] != _SHAPE:
        raise ConfigError(
            f"{path} holds {part}_images of {images.dtype} {images.shape} instead of uint8 (N, 28, 28, 3)"
        )
    if not len(images):
        raise ConfigError(f"{path} holds no images in {part}_images")
    if labels.dtype.kind not in "ui" or labels.shape != (len(images), 1):
        what = f"{labels.dtype} {labels.shape} instead of whole numbers ({len(images)}, 1)"
        raise ConfigError(f"{path} holds {part}_labels of {what}")
    wrong = (labels < 0) | (labels >= len(_CLASS_NAMES))
    if wrong.any():
        raise ConfigError(f"{path} has the label {labels[wrong][0]}, outside 0 to {len(_CLASS_NAMES) - 1}")
    x = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return Split(torch.from_numpy(x), torch.from_numpy(labels[:, 0].astype(np.int64)))


def _downloads() -> list[Download]:
    """The file of MedMNIST's versions 3 and 2, which is the same in both."""
    records = ("10519652", "6496656")
    return [([f"https://zenodo.org/records/{record}/files/{_FILE}?download=1" for record in records], _FILE, _MD5)]


PATHMNIST = Published(
    name="pathmnist",
    title="PathMNIST",
    class_names=_CLASS_NAMES,
    names=(_FILE,),
    cache="medmnist",
    layouts=("", "medmnist"),
    data_layouts=("", "medmnist"),
    elsewhere=("~/.medmnist",),  # where the package medmnist keeps it
    hint="pass --data.dir with a directory of whole files, or pass --data.download",
    read=_read,
    checksums={_FILE: (205615438, _MD5)},
    downloads=_downloads,
)
