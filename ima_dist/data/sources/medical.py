"""``--data.source dicom|nifti``: slices of medical images, in the units of the scanner.

A sample is a slice: a DICOM file, a frame of one, or a slice of a NIfTI volume, without its header; or with
``config.depth`` a volume (a series, a file of several frames, a NIfTI file), its slices as channels. Slices of one
patient, or of one volume, are a group; groups are numbered, so that nothing of the header is kept.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ima_dist.config.errors import ConfigError, first_line, printable
from ima_dist.config.schema import DataConfig
from ima_dist.config.sources import ENDINGS
from ima_dist.data.encoded import Encoded
from ima_dist.data.groups import HEADER
from ima_dist.data.pictures import LOOK, resized
from ima_dist.data.sources import copy, folder, listed
from ima_dist.data.sources.images import size_of
from ima_dist.data.sources.samples import Catalogue, Labels, Samples, box_of, check_directory, data_set, note, tell
from ima_dist.data.sources.volumes import Volumes, as_volumes

_HEADER = [
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient",
    "ImageOrientationPatient", "Rows", "Columns", "NumberOfFrames", "PhotometricInterpretation", "SamplesPerPixel",
]  # fmt: skip


# What a group may be called, from the best to the worst -> more of them.
_LEVELS = {"patient": "patients", "study": "studies", "series": "series", "file": "files", "volume": "volumes"}
_FIELDS = {"patient": "PatientID", "study": "StudyInstanceUID", "series": "SeriesInstanceUID"}


_ADVICE = (
    "Each slice is read from its whole volume, which is slow: make a prepared copy (python -m ima_dist.data prepare "
    "own --source DIR --to COPY), and give that with --data.dir."
)


class Slice(NamedTuple):
    """path: of its file. number: of the slice or frame in it. order: what slices of one folder are sorted by.

    group: (its level, of ``_LEVELS``, and what it is called). volume: of what it is a slice, such as a series.
    """

    path: Path
    number: int
    height: int
    width: int
    group: tuple[str, str]
    order: tuple[Any, ...]
    volume: tuple[str, ...]


class Slices:
    """Contents that are slices, each as a NumPy file of its values (height, width), in units of the scanner."""

    def __init__(self, slices: Sequence[Slice], read: Callable[[Path, int], np.ndarray]) -> None:
        self._slices, self._read = slices, read

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, row: int) -> bytes:
        here = self._slices[row]
        try:
            values = self._read(here.path, here.number)
        except ConfigError:
            raise
        except Exception as e:  # the parser may raise anything for a damaged file
            raise ConfigError(f"{self.name(row)} cannot be read ({first_line(e)}): mend it, or move it away.") from e
        out = io.BytesIO()
        np.save(out, values, allow_pickle=False)
        return out.getvalue()

    def name(self, row: int) -> str:
        return printable(str(self._slices[row].path))


def load_dicom(config: DataConfig, seed: int) -> dict[str, Any]:
    """Slices x (N, 1, H, W) float32 of DICOM files, in folders or a list as images are, cut to ``config.window``; with
    ``config.depth`` volumes (N, depth, H, W).

    Values are rescaled by slope and intercept (to Hounsfield units, for example); those of MONOCHROME1 are mirrored, so
    that more is brighter. Slices of a series are sorted by their position. Raises ConfigError.
    """
    return _data_set("dicom", config)


def load_nifti(config: DataConfig, seed: int) -> dict[str, Any]:
    """Slices x (N, 1, H, W) float32 of NIfTI volumes, in folders or a list as images are, cut to ``config.window``;
    with ``config.depth`` volumes (N, depth, H, W).

    A volume is turned to the nearest anatomical axes and cut across its thickest voxels (if they are cubes, into axial
    slices); the first axis of a slice goes down, as the last but one does up in the volume. Raises ConfigError.
    """
    return _data_set("nifti", config)


def _data_set(source: str, config: DataConfig) -> dict[str, Any]:
    place = check_directory(config)
    if not config.window:
        raise ConfigError(
            f"--data.source {source} needs --data.window LOW,HIGH, the values that matter, such as -1350,150 for lungs "
            "in Hounsfield units: noise levels are then in these units."
        )
    if config.channels == 3:
        raise ConfigError(f"--data.channels 3 is for images with colours: --data.source {source} gives grey slices.")
    found = copy.read(place, source) if copy.is_copy(place) else find(source, place, config.groups)
    low, high = box_of(config.window)
    size, resize = size_of(found, config), config.resize

    def decode(content: bytes, name: str) -> np.ndarray:
        values = np.load(io.BytesIO(content), allow_pickle=False).astype(np.float32)
        if not np.isfinite(values).all():
            raise ConfigError(f"{name} has NaN or infinite values: mend it, or move it away.")
        return resized(values.clip(low, high), size, resize, low)[None].clip(low, high)

    advice = "" if source == "dicom" or copy.is_copy(place) else _ADVICE
    slices = Encoded(found.contents, decode, (1, *size), torch.float32, advice=advice)
    stored: Encoded | Volumes = slices
    labels, what = found.labels, "slices"
    if config.depth is not None:
        stored, labels = as_volumes(slices, labels, config.depth)
        what = f"volumes, resampled to {config.depth} slices,"
    groups, level = len(set(labels.groups or ())), labels.grouped_by
    note(
        f"{len(stored)} {what} of {groups} {_LEVELS.get(level or '', 'groups')}, cut to {low:g} to {high:g}; "
        "noise levels are in these units."
    )
    if source == "dicom" and level in ("study", "series", "file") and config.groups in (None, HEADER, level):
        tell(
            f"Patients are not known, as there are files without PatientID: the data are divided by {level}, and one "
            "patient may be in several parts. Name the patients with --data.groups."
        )
    return data_set(Samples(stored, labels, (low, high)))


def find(source: str, place: Path, column: str | None = None) -> Catalogue:
    """The slices with their labels; only headers are read. ``column``: of a list, with groups. Raises ConfigError."""
    _library(source)
    wanted, headers, read = _FORMS[source]
    if place.is_file() or any(p.suffix.lower() in ENDINGS["list"] for p in place.iterdir()):
        paths, labels = listed.files(listed.the_file(place, "list"), column)
    else:
        paths, labels = folder.files(place, ", ".join(ENDINGS[source]), wanted)
    slices: list[tuple[Slice, int]] = []
    for number, path in enumerate(paths):
        try:
            slices += [(one, number) for one in headers(path)]
        except ConfigError:
            raise
        except Exception as e:
            raise ConfigError(
                f"{printable(str(path))} cannot be read as a {source} file ({first_line(e)}): mend it, or move it away."
            ) from e
    # Slices of a series lie side by side, in the folder of their file.
    slices.sort(key=lambda s: (s[0].path.parent, *s[0].order, s[0].path.name, s[0].number))
    of_file = [number for _, number in slices]
    several = len(slices) > len(paths)
    listed_by = labels.grouped_by if labels.groups and column != HEADER else None
    known = labels.groups if labels.groups and listed_by else (None,) * len(paths)
    # A list may name a patient for some of the files that are the same patient's by their headers.
    listed_as: dict[tuple[str, str], set[str | None]] = {}
    for one, number in slices:
        listed_as.setdefault(one.group, set()).add(known[number])
    only = {group: names.pop() for group, given in listed_as.items() if len(names := given - {None}) == 1}
    # A number says nothing about a person. What a list calls them is the user's choice.
    prefix = "header " if listed_by else ""
    numbers = {group: f"{prefix}{i}" for i, group in enumerate(dict.fromkeys(one.group for one, _ in slices), 1)}
    worst = max((one.group[0] for one, _ in slices), key=list(_LEVELS).index, default=None)
    groups = tuple(known[number] or only.get(one.group) or numbers[one.group] for one, number in slices)
    looks = np.zeros(len(slices), LOOK)
    for row, (one, _) in enumerate(slices):
        looks[row]["height"], looks[row]["width"] = one.height, one.width
    looks["grey"] = looks["deep"] = True
    return Catalogue(
        Slices([one for one, _ in slices], read),
        Labels(
            labels.y[of_file],
            labels.class_names,
            tuple(labels.names[n] + (f" slice {one.number + 1}" if several else "") for one, n in slices),
            labels.parts[of_file],
            groups,
            listed_by or worst,
            np.unique([" ".join(one.volume) for one, _ in slices], return_inverse=True)[1].astype(np.int64),
        ),
        looks,
    )


def _library(source: str) -> Any:
    name = {"dicom": "pydicom", "nifti": "nibabel"}[source]
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise ConfigError(
            f"--data.source {source} needs {name}, which is not installed: pip install 'ima_dist[medical]'."
        ) from e


# ---- DICOM


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in ENDINGS["dicom"]:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"
    except OSError:
        return False


def _dicom_slices(path: Path) -> list[Slice]:
    head = _library("dicom").dcmread(path, stop_before_pixels=True, specific_tags=_HEADER)
    kind = head.get("PhotometricInterpretation", "")
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ConfigError(f"{printable(str(path))} is no grey image ({kind or 'it holds no image'}): leave it out.")
    place = _position(head)
    order = (str(head.get("SeriesInstanceUID", "")), place, int(head.get("InstanceNumber") or 0))
    named = ((level, str(head.get(field) or "").strip()) for level, field in _FIELDS.items())
    group = next((one for one in named if one[1]), ("file", str(path)))
    frames = int(head.get("NumberOfFrames") or 1)
    series = str(head.get("SeriesInstanceUID") or "")
    volume = (str(path),) if frames > 1 or not series else (str(path.parent), series)
    return [Slice(path, i, int(head.Rows), int(head.Columns), group, order, volume) for i in range(frames)]


def _position(head: Any) -> float:
    """Where a slice lies along the normal of its series, in mm."""
    place, along = head.get("ImagePositionPatient"), head.get("ImageOrientationPatient")
    if not place or not along:
        return 0.0
    normal = np.cross(np.array(along[:3], float), np.array(along[3:], float))
    return float(np.round(np.array(place, float) @ normal, 4))


def _read_dicom(path: Path, number: int) -> np.ndarray:
    pydicom = _library("dicom")
    pixels = importlib.import_module("pydicom.pixels")
    data = pydicom.dcmread(path)
    several = int(data.get("NumberOfFrames") or 1) > 1
    stored = pixels.pixel_array(data, index=number if several else None)
    if data.PhotometricInterpretation == "MONOCHROME1":
        # The smallest and largest value that can be stored change places: their sum is -1 with a sign.
        most = -1 if data.PixelRepresentation else 2 ** int(data.BitsStored) - 1
        stored = most - stored.astype(np.int64)
    slope, intercept = _rescale(data, number)
    values = stored.astype(np.float64) * slope + intercept
    whole = values.astype(np.int16)
    # Half the space, and exact.
    return whole if np.array_equal(whole, values) else values.astype(np.float32)


def _rescale(data: Any, number: int) -> tuple[float, float]:
    """Slope and intercept: of the file, or of a frame of an enhanced one."""
    places = [data]
    for name, place in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", number)):
        for group in list(data.get(name) or [])[place : place + 1]:
            places += list(group.get("PixelValueTransformationSequence") or [])
    for place in places:
        if "RescaleSlope" in place:
            return float(place.RescaleSlope), float(place.get("RescaleIntercept") or 0)
    return 1.0, 0.0


# ---- NIfTI


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS["nifti"])


def _nifti_slices(path: Path) -> list[Slice]:
    image = _volume(path)
    axis = _axis(image)
    height, width = _turned(np.zeros([n for i, n in enumerate(image.shape) if i != axis], np.bool_)).shape
    return [Slice(path, i, height, width, ("volume", str(path)), (), (str(path),)) for i in range(image.shape[axis])]


def _volume(path: Path) -> Any:
    nibabel = _library("nifti")
    image = nibabel.as_closest_canonical(nibabel.load(path))
    if len(image.shape) != 3:
        raise ConfigError(f"{printable(str(path))} has {len(image.shape)} axes, where a volume has three: split it.")
    return image


def _axis(image: Any) -> int:
    """The axis across the thickest voxels; the last one of several."""
    sizes = [float(size) for size in image.header.get_zooms()]
    return max(range(3), key=lambda i: (round(sizes[i], 3), i))


def _turned(values: np.ndarray) -> np.ndarray:
    return np.rot90(values)


@lru_cache(maxsize=4)
def _values(path: Path) -> tuple[np.ndarray, int]:
    # All slices of a compressed file are read at once, and asked for one after another.
    image = _volume(path)
    return np.asanyarray(image.dataobj), _axis(image)


def _read_nifti(path: Path, number: int) -> np.ndarray:
    values, axis = _values(path)
    found = _turned(values.take(number, axis))
    return np.ascontiguousarray(found if found.dtype in (np.int16, np.uint8) else found.astype(np.float32))


class _Form(NamedTuple):
    wanted: Callable[[Path], bool]
    headers: Callable[[Path], list[Slice]]
    read: Callable[[Path, int], np.ndarray]


_FORMS = {
    "dicom": _Form(_is_dicom, _dicom_slices, _read_dicom),
    "nifti": _Form(_is_nifti, _nifti_slices, _read_nifti),
}
