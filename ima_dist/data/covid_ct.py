"""COVID-19 CT images (Soares et al. 2020; paper, section 3.3) from their published PNG files."""

import warnings
from pathlib import Path

import numpy as np
import torch

from ima_dist.config.errors import ConfigError, DataWarning, printable
from ima_dist.config.presets import SPLIT_LEVELS
from ima_dist.config.schema import DataConfig
from ima_dist.data.choosing import hold_out
from ima_dist.data.pictures import decode, pictures_in
from ima_dist.data.published import Published, Unfit
from ima_dist.data.types import DataSet, Split

# The folder is the label: 0 uninfected, 1 infected.
_FOLDERS = ("non-COVID", "COVID")
_SIDE = 224
# Of the 2482 images, 1252 infected and 1230 not, 200 of each become the test set and 30 of each the validation set.
_TEST_SHARE, _VAL_SHARE = 400 / 2482, 60 / 2482


def load(config: DataConfig, seed: int) -> DataSet:
    """COVID-19 CT: 2022 training (1022 infected), 60 validation and 400 test images; x (N, 1, 224, 224) uint8.

    Label 1 is infected. Every image is converted to grey and resized. Validation and test set hold equally many
    images of each class, chosen by ``seed``; with another number of files they take the same share, at least one of
    each class. Names are folder/file. A prepared copy is used if there is one (see prepared.py). Otherwise files are
    taken from ``config.dir`` (itself, or covid_ct/ in it) or from ./data or ~/.cache/ima_dist; they cannot be fetched
    without an account.
    Raises ConfigError if a folder is missing or empty, or a file is damaged or not an 8-bit image.
    """
    whole = COVID_CT.load(config)["images"]
    classes = len(_FOLDERS)
    rest, test = hold_out(whole, max(classes, round(len(whole) * _TEST_SHARE)), classes, seed)
    train, val = hold_out(rest, max(classes, round(len(whole) * _VAL_SHARE)), classes, seed)
    return DataSet(
        train=train,
        val=val,
        test=test,
        box=(0.0, 1.0),
        num_classes=classes,
        class_names=_FOLDERS,
        split_level=SPLIT_LEVELS["covid_ct"],  # the files do not name the patients
    )


def _read_all(folders: list[Path]) -> dict[str, Split]:
    images, labels, names, transparent = [], [], [], []
    for label, folder in enumerate(folders):
        for path in _pictures(folder):
            image, composed = decode(path, str(path), (1, _SIDE, _SIDE))
            if image.dtype != np.uint8:
                raise Unfit(f"{path} has more than 8 bits per channel: convert it to an 8-bit image")
            images.append(image)
            labels.append(label)
            names.append(printable(f"{folder.name}/{path.name}"))
            transparent += names[-1:] if composed else []
    if transparent:
        text = f"{len(transparent)} of the {len(names)} images are transparent, such as {transparent[0]}"
        warnings.warn(DataWarning(f"COVID-19 CT: {text}: they were laid on black."), stacklevel=2)
    return {"images": Split(torch.from_numpy(np.stack(images)), torch.tensor(labels), tuple(names))}


def _pictures(folder: Path) -> list[Path]:
    """The images of a folder, but not of its subfolders, sorted by name."""
    found = pictures_in(folder, below=False).files
    # One for each of training, validation and test.
    if len(found) < 3:
        raise ConfigError(f"{folder} holds {len(found)} images, where at least 3 are needed")
    return found


COVID_CT = Published(
    name="covid_ct",
    title="COVID-19 CT",
    class_names=_FOLDERS,
    names=_FOLDERS,
    cache="covid_ct",
    layouts=("", "covid_ct"),
    data_layouts=("", "covid_ct"),
    hint="get the SARS-CoV-2 CT-scan data set from kaggle.com/datasets/plameneduardo/sarscov2-ctscan-dataset and pass "
    "--data.dir with the directory that holds its folders COVID and non-COVID",
    read=_read_all,
    contents=_pictures,
)
