"""Slices of DICOM and NIfTI files, made here: their values against a plain reading."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ima_dist.config.errors import ConfigError, DataNote, DataWarning
from ima_dist.config.presets import make_config
from ima_dist.config.schema import DataConfig
from ima_dist.data import __main__ as command
from ima_dist.data.load import load
from ima_dist.data.place import choose
from ima_dist.data.sources import medical
from ima_dist.data.types import DataSet

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
pytestmark = pytest.mark.filterwarnings("ignore::ima_dist.config.errors.DataWarning")
WIDE = (-30000.0, 30000.0)


def read(source: str, place: Path, window: tuple[float, ...] = WIDE, **options: Any) -> DataSet:
    data = load(DataConfig(source=source, dir=str(place), window=window, **options), 0)
    for part in (data.train, data.val, data.test):
        assert len(part.x) == len(part)  # reads all of them
    return data


def by_name(data: DataSet) -> dict[str, np.ndarray]:
    parts = (data.train, data.val, data.test)
    return {name: x[0].numpy() for p in parts for name, x in zip(p.names or (), p.x, strict=True)}


def slice_of(seed: int, frames: int | None = None, low: int = -900, high: int = 900) -> np.ndarray:
    shape = (6, 8) if frames is None else (frames, 6, 8)
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int16)


def write_dicom(path: Path, stored: np.ndarray, patient: str = "", encode: str = "", **tags: Any) -> Path:
    """stored: (H, W) or (frames, H, W), int16 or uint16."""
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
    data.PatientName, data.PatientID = f"Name of {patient}", patient
    data.Rows, data.Columns = stored.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = int(stored.dtype == np.int16)
    if stored.ndim == 3:
        data.NumberOfFrames = len(stored)
    for name, value in tags.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    data.PixelData = stored.tobytes()
    if encode:
        data.compress(encode, encoding_plugin="pylibjpeg" if "4.90" in encode else "pydicom")
    data.save_as(path, enforce_file_format=True)
    return path


def fill(place: Path, **tags: Any) -> Path:
    """Two classes of four patients with one slice each."""
    for c, name in enumerate(("ill", "well")):
        for i in range(4):
            write_dicom(place / name / f"{i}.dcm", slice_of(10 * c + i), f"{name}{i}", **tags)
    return place


# ---- DICOM ---------------------------------------------------------------------------------------------


def test_values_are_rescaled_and_cut_to_the_window(tmp_path: Path) -> None:
    fill(tmp_path, RescaleSlope="2", RescaleIntercept="-100")
    with pytest.warns(DataNote, match="8 slices of 8 patients, cut to -500 to 300; noise levels are in these units"):
        data = read("dicom", tmp_path, (-500, 300))
    assert (data.box, data.class_names, data.train.x.dtype) == ((-500, 300), ("ill", "well"), torch.float32)
    assert np.array_equal(by_name(data)["well/2.dcm"], (slice_of(12) * 2.0 - 100).clip(-500, 300))
    config = make_config("own", {"data.dir": str(tmp_path), "data.window": (-500.0, 300.0)})
    assert (config.data.source, config.eps_max, config.model.mean) == ("dicom", 800 * 8 / 255, (-100,))


@pytest.mark.parametrize(
    ("stored", "tags", "expected"),
    [
        (slice_of(1), {}, slice_of(1)),
        (slice_of(1), {"PhotometricInterpretation": "MONOCHROME1"}, -1 - slice_of(1)),
        (
            slice_of(2, low=0, high=4096).astype(np.uint16),
            {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12},
            4095 - slice_of(2, low=0, high=4096),
        ),
        (slice_of(4), {"RescaleSlope": "0.5", "RescaleIntercept": "0.25"}, slice_of(4) * 0.5 + 0.25),
    ],
    ids=["signed", "MONOCHROME1 signed", "MONOCHROME1 12 bits", "fractions"],
)
def test_kinds_of_dicom(tmp_path: Path, stored: np.ndarray, tags: dict[str, Any], expected: np.ndarray) -> None:
    write_dicom(fill(tmp_path) / "ill" / "this.dcm", stored, "p", **tags)
    assert np.array_equal(by_name(read("dicom", tmp_path))["ill/this.dcm"], expected)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"], ids=["JPEG 2000", "RLE"])
def test_compressed_dicom(tmp_path: Path, syntax: str) -> None:
    stored = np.random.default_rng(0).integers(-900, 900, (8, 64, 64)).astype(np.int16)
    for i in range(8):
        write_dicom(tmp_path / ("ill", "well")[i % 2] / f"{i}.dcm", stored[i], f"{i}", syntax)
    assert pydicom.dcmread(tmp_path / "ill" / "4.dcm").file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(by_name(read("dicom", tmp_path))["ill/4.dcm"], stored[4])


def test_frames_of_one_file_are_samples_of_one_group(tmp_path: Path) -> None:
    frames = slice_of(5, frames=12)
    write_dicom(fill(tmp_path) / "ill" / "many.dcm", frames, "p")
    data = read("dicom", tmp_path)
    found = by_name(data)
    assert len(found) == 20
    for i in (0, 7, 11):
        assert np.array_equal(found[f"ill/many.dcm slice {i + 1}"], frames[i])
    for part in (data.train, data.val, data.test):
        assert sum("many" in name for name in part.names or ()) in (0, 12)


def test_a_series_is_in_order_and_a_patient_in_one_part(tmp_path: Path) -> None:
    place = fill(tmp_path)
    for name, z in (("a.dcm", 5.0), ("b.dcm", -2.5), ("c", 0.0)):
        tags = {"ImagePositionPatient": [0, 0, z], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        write_dicom(place / "ill" / "series" / name, slice_of(int(z) + 20), "one", SeriesInstanceUID="1.2.3", **tags)
    data = read("dicom", place)
    held = [[n for n in part.names or () if "series" in n] for part in (data.train, data.val, data.test)]
    assert sorted(map(len, held)) == [0, 0, 3]
    assert next(names for names in held if names) == [f"ill/series/{n}" for n in ("b.dcm", "c", "a.dcm")]


@pytest.mark.parametrize(
    ("tags", "level"),
    [
        ([{"StudyInstanceUID": "1.2.1"}, {"StudyInstanceUID": "1.2.2"}], "study: 10 in all"),
        ([{"SeriesInstanceUID": "1.3.1"}, {"SeriesInstanceUID": "1.3.2"}], "series: 10 in all"),
        ([{}, {}], "file: 12 in all"),
    ],
)
def test_without_patients_the_next_best_is_used_and_said(
    tmp_path: Path, tags: list[dict[str, str]], level: str
) -> None:
    place = fill(tmp_path)
    for i in range(4):
        write_dicom(place / "ill" / f"none{i}.dcm", slice_of(30 + i), "", **tags[i % 2])
    with pytest.warns(DataWarning, match=f"Patients are not known.*divided by {level.split(':')[0]}"):
        data = read("dicom", place)
    assert data.split_level == f"by {level}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read("dicom", place, groups=r"/(\w+)\.dcm").split_level == "by group: 8 in all"
    assert not any("Patients are not known" in str(one.message) for one in caught)
    with pytest.raises(ConfigError, match=r"--data.groups patient has no group for 12"):
        read("dicom", place, groups="patient")


def test_header_goes_before_the_column_of_a_list(tmp_path: Path) -> None:
    fill(tmp_path)
    rows = [f"{n}/{i}.dcm,{n},p{i % 3}" for n in ("ill", "well") for i in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,patient_id", *rows]) + "\n")
    assert read("dicom", tmp_path).split_level == "by patient_id: 3 in all"
    assert read("dicom", tmp_path, groups="header").split_level == "by patient: 8 in all"


def test_a_patient_whom_a_list_names_for_some_files_stays_whole(tmp_path: Path) -> None:
    for i in range(8):
        write_dicom(tmp_path / f"{i}.dcm", slice_of(i), patient=f"p{i // 2}")
    listed = {0: "A", 2: "B", 4: "C", 5: "D"}  # the header's p2 is two patients to the list, and p3 is not in it
    rows = [f"{i}.dcm,{i % 2},{listed.get(i, '')}" for i in range(8)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,patient", *rows]) + "\n")
    found = medical.find("dicom", tmp_path).labels
    groups = dict(zip(found.names, found.groups or (), strict=True))
    assert [groups[f"{i}.dcm"] for i in range(6)] == ["A", "A", "B", "B", "C", "D"]
    assert groups["6.dcm"] == groups["7.dcm"] == "header 4"


def test_nothing_of_the_header_is_kept(tmp_path: Path) -> None:
    fill(tmp_path / "files")
    to = tmp_path / "copy"
    assert command.main(["prepare", "own", "--source", str(tmp_path / "files"), "--to", str(to)]) == 0
    content = b"".join(path.read_bytes() for path in to.iterdir())
    assert b"ill3" not in content
    assert b"Name of" not in content
    found, expected = read("dicom", to, size=5, resize="pad"), read("dicom", tmp_path / "files", size=5, resize="pad")
    assert found.digest() == expected.digest()
    assert found.train.names == expected.train.names
    assert found.train.x.shape[1:] == (1, 5, 5)


def test_a_list_names_dicom_files(tmp_path: Path) -> None:
    fill(tmp_path)
    rows = [f"{n}/{i}.dcm,{i % 2},train,p{i}" for n in ("ill", "well") for i in range(3)] + ["ill/3.dcm,0,test,q"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split,patient", *rows]) + "\n")
    data = read("dicom", tmp_path)
    assert make_config("own", {"data.dir": str(tmp_path), "data.window": WIDE}).data.source == "dicom"
    assert (len(data.test), data.class_names) == (1, ("0", "1"))
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split,patient", *rows, "well/3.dcm,0,train,q"]) + "\n")
    with pytest.raises(ConfigError, match=r"The group q is in both .* keep all samples of a group in one part"):
        read("dicom", tmp_path)


def test_wrong_dicom_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(ConfigError, match=r"--data.source dicom needs --data.window LOW,HIGH"):
        read("dicom", tmp_path, ())
    path = tmp_path / "ill" / "bad.dcm"
    path.write_bytes(b"no such file")
    with pytest.raises(ConfigError, match=r"ill/bad.dcm cannot be read as a dicom file"):
        read("dicom", tmp_path)
    write_dicom(path, slice_of(1), PhotometricInterpretation="RGB")
    with pytest.raises(ConfigError, match=r"bad.dcm is no grey image \(RGB\): leave it out"):
        read("dicom", tmp_path)
    write_dicom(path, slice_of(1))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises((ConfigError, OSError), match=r"bad.dcm cannot be read .*: mend it, or move it away"):
        read("dicom", tmp_path)
    write_dicom(path, slice_of(1)[:3])
    with pytest.raises(ConfigError, match=r"differ in size .*bad.dcm has 3×8"):
        read("dicom", tmp_path)


# ---- NIfTI ---------------------------------------------------------------------------------------------


def write_nifti(path: Path, values: np.ndarray, sizes: tuple[float, ...] = (1, 1, 1), **header: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, np.diag([*sizes, 1.0]))
    if header:
        image.header.set_slope_inter(header["slope"], header["inter"])
    nibabel.save(image, path)
    return path


def volumes(place: Path, sizes: tuple[float, ...] = (1, 1, 1), ending: str = ".nii.gz") -> Path:
    for c, name in enumerate(("ill", "well")):
        for i in range(4):
            values = np.random.default_rng(10 * c + i).integers(-500, 500, (4, 5, 3)).astype(np.int16)
            write_nifti(place / name / f"{i}{ending}", values, sizes)
    return place


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("sizes", "axis"), [((1, 1, 1), 2), ((0.5, 0.5, 5), 2), ((4, 1, 1), 0), ((1, 3, 1), 1)])
def test_a_volume_is_cut_across_its_thickest_voxels(
    tmp_path: Path, sizes: tuple[float, ...], axis: int, ending: str
) -> None:
    data = read("nifti", volumes(tmp_path, sizes, ending))
    found = by_name(data)
    plain = nibabel.load(tmp_path / "well" / f"2{ending}").get_fdata()
    assert len(found) == 8 * plain.shape[axis]
    for i in range(plain.shape[axis]):
        assert np.array_equal(found[f"well/2{ending} slice {i + 1}"], np.rot90(plain.take(i, axis)))
    for part in (data.train, data.val, data.test):
        assert len(part) % plain.shape[axis] == 0  # no volume is in two parts


def test_volumes_are_turned_to_anatomical_axes_and_scaled(tmp_path: Path) -> None:
    volumes(tmp_path)
    values = np.arange(60, dtype=np.float32).reshape(4, 5, 3)
    write_nifti(tmp_path / "ill" / "turned.nii.gz", values, (-1, 1, 1))
    found = by_name(read("nifti", tmp_path))
    assert np.array_equal(found["ill/turned.nii.gz slice 1"], np.rot90(values[::-1, :, 0]))
    path = write_nifti(tmp_path / "ill" / "scaled.nii", values[..., ::-1].astype(np.int16), slope=2.0, inter=-7.0)
    assert np.array_equal(
        by_name(read("nifti", tmp_path))["ill/scaled.nii slice 3"], np.rot90(nibabel.load(path).get_fdata()[:, :, 2])
    )


def test_reading_volumes_from_the_disk_is_said_to_be_slow(tmp_path: Path) -> None:
    volumes(tmp_path / "files")
    to = tmp_path / "copy"
    assert command.main(["prepare", "own", "--source", str(tmp_path / "files"), "--to", str(to)]) == 0
    for place, slow in ((tmp_path / "files", True), (to, False)):
        split = read("nifti", place).train
        for where in ("disk", "host"):
            _, said = choose([split], where, torch.device("cpu"), torch.float32, 10**9, 10**9, 1)
            assert ("make a prepared copy" in str(said)) == (slow and where == "disk")


def test_volumes_are_samples_on_request(tmp_path: Path) -> None:
    files, to = tmp_path / "files", tmp_path / "copy"
    for i, count in enumerate((3, 5, 3, 5, 3, 5, 3, 5)):
        name = ("ill", "well")[i % 2]
        values = np.random.default_rng(i).integers(-500, 500, (4, 5, count)).astype(np.int16)
        write_nifti(files / name / f"{i}.nii.gz", values, (1, 1, 2))
    data = read("nifti", files, depth=5)
    assert len(data.train) + len(data.val) + len(data.test) == 8
    assert data.train.shape == (5, 5, 4)
    found = {name: x.numpy() for p in (data.train, data.val, data.test) for name, x in zip(p.names, p.x, strict=True)}
    plain = np.rot90(nibabel.load(files / "well" / "3.nii.gz").get_fdata()).transpose(2, 0, 1)
    assert np.array_equal(found["well/3.nii.gz"], plain)
    plain = np.rot90(nibabel.load(files / "ill" / "2.nii.gz").get_fdata()).transpose(2, 0, 1)
    assert np.array_equal(found["ill/2.nii.gz"][::2], plain)
    assert np.allclose(found["ill/2.nii.gz"][1::2], (plain[1:] + plain[:-1]) / 2)
    assert command.main(["prepare", "own", "--source", str(files), "--to", str(to)]) == 0
    assert read("nifti", to, depth=5).digest() == data.digest()
    assert make_config("own", {"data.dir": str(to), "data.window": WIDE, "data.depth": 5}).data.depth == 5
    with pytest.raises(ConfigError, match=r"--data.depth is for --data.source dicom.nifti, not for folder"):
        make_config("own", {"data.dir": str(files), "data.source": "folder", "data.depth": 5})


def test_a_series_of_dicom_files_is_a_volume(tmp_path: Path) -> None:
    for i in range(8):
        for j in range(3):
            tags = {"ImagePositionPatient": [0, 0, 3 - j], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
            path = tmp_path / ("ill", "well")[i % 2] / f"{i}-{j}.dcm"
            write_dicom(path, slice_of(10 * i + j), f"p{i}", SeriesInstanceUID=f"1.2.{i}", **tags)
    data = read("dicom", tmp_path, depth=3)
    found = {name: x.numpy() for p in (data.train, data.val, data.test) for name, x in zip(p.names, p.x, strict=True)}
    assert len(found) == 8
    assert np.array_equal(found["well/5-2.dcm"], np.stack([slice_of(50 + j) for j in (2, 1, 0)]))
    rows = [f"{path.relative_to(tmp_path)},{n % 2}" for n, path in enumerate(sorted(tmp_path.rglob("*.dcm")))]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    with pytest.raises(ConfigError, match=r"slices of that of ill/0-2.dcm differ in class, part or group"):
        read("dicom", tmp_path, depth=3)


def test_wrong_nifti_is_refused(tmp_path: Path) -> None:
    place = volumes(tmp_path)
    path = write_nifti(place / "ill" / "bad.nii", np.zeros((4, 5, 3, 2), np.int16), (1, 1, 1))
    with pytest.raises(ConfigError, match=r"bad.nii has 4 axes, where a volume has three: split it"):
        read("nifti", place)
    write_nifti(path, np.full((4, 5, 3), np.nan, np.float32))
    with pytest.raises((ConfigError, OSError), match=r"bad.nii has NaN or infinite values"):
        read("nifti", place)
    path.unlink()
    cut = place / "ill" / "cut.nii.gz"
    cut.write_bytes(gzip.compress(b"no volume"))
    with pytest.raises(ConfigError, match=r"cut.nii.gz cannot be read as a nifti file"):
        read("nifti", place)
