"""Lists of images, and arrays in .npz and HDF5 files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ima_dist.config.errors import ConfigError, DataNote
from ima_dist.config.schema import DataConfig
from ima_dist.data.load import load
from ima_dist.data.types import DataSet
from tests.support.own_images import write_folder

pytestmark = pytest.mark.filterwarnings("ignore::ima_dist.config.errors.DataWarning")


def read(source: str, place: Path, **options: Any) -> DataSet:
    return load(DataConfig(source=source, dir=str(place), **options), 0)


def sizes(data: DataSet) -> list[int]:
    return [len(part) for part in (data.train, data.val, data.test)]


# ---- lists ---------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


ROWS = [
    (f"{name}/{i}.png", name, ("train", "val", "test")[i % 3], f"p{i % 3}") for name in ("cat", "dog") for i in range(6)
]


def write_csv(place: Path, rows: list[tuple[str, ...]], head: str = "file,label,split,group", mark: str = ",") -> Path:
    path = place / "images.csv"
    lines = [head, *(mark.join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_list_gives_files_labels_and_parts(place: Path) -> None:
    for there in (write_csv(place, ROWS), place):
        data = read("list", there)
        assert sizes(data) == [4, 4, 4]
        assert data.class_names == ("cat", "dog")
        assert data.train.names == ("cat/0.png", "cat/3.png", "dog/0.png", "dog/3.png")
        assert data.train.x[2, 0, 5, 5] == 180
        assert data.train.y.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators_names_of_columns_and_numbers_as_labels(place: Path, mark: str) -> None:
    rows = [(file, {"cat": "10", "dog": "9"}[label]) for file, label, *_ in ROWS]
    data = read("list", write_csv(place, rows, f"Path{mark}Class", mark))
    assert data.class_names == ("9", "10")
    assert sum(sizes(data)) == 12
    assert int(data.train.x[data.train.y == 0][0, 0, 5, 5]) >= 180


def test_a_parquet_file_is_a_list_too(place: Path) -> None:
    columns = {"file": [row[0] for row in ROWS], "label": [int(row[1] == "dog") for row in ROWS]}
    pq.write_table(pa.table(columns), place / "images.parquet")
    data = read("list", place / "images.parquet")
    assert data.class_names == ("0", "1")
    assert sum(sizes(data)) == 12


@pytest.mark.parametrize(
    ("rows", "head", "sentence"),
    [
        ([("cat/9.png", "cat")], "file,label", "entry 1: there is no file "),
        ([("cat/0.png", "")], "file,label", "entry 1: cat/0.png has no label"),
        ([("cat/0.png", "cat", "trian")], "file,label,split", "the split must be train, val or test, not 'trian'"),
        ([("cat/0.png", "cat")], "file,lable", r"has no column 'label' \(did you mean lable\?\): it has file, lable"),
        ([("1", "0")], "width,label", r"it has width, label\. A list names image files; a table of numbers"),
        ([("cat/0.png",)], "file,label", r"line 2 has 1 entries, the first one 2"),
        ([], "file,label", "lists no files"),
    ],
)
def test_a_wrong_list_is_refused(place: Path, rows: list[tuple[str, ...]], head: str, sentence: str) -> None:
    path = write_csv(place, rows, head)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read("list", path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- arrays --------------------------------------------------------------------------------------------


def some(n: int, shape: tuple[int, ...] = (5, 6), kind: Any = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.integers(0, 256, (n, *shape)).astype(kind), (np.arange(n) % 2).astype(np.uint8)


def medmnist(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """MedMNIST's layout: labels (N, 1)."""
    found = {}
    for part, n in (("train", 20), ("val", 4), ("test", 8)):
        x, y = some(n, shape)
        found |= {f"{part}_images": x, f"{part}_labels": y[:, None]}
    return found


def write(source: str, place: Path, arrays: dict[str, np.ndarray]) -> Path:
    place.mkdir(exist_ok=True)
    if source == "npz":
        np.savez_compressed(place / "set.npz", **arrays)
        return place / "set.npz"
    h5py = pytest.importorskip("h5py")
    with h5py.File(place / "set.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return place / "set.h5"


@pytest.mark.parametrize("source", ["npz", "hdf5"])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 6), (1, 5, 6)), ((5, 6, 3), (3, 5, 6)), ((3, 5, 6), (3, 5, 6)), ((5, 6, 1), (1, 5, 6))],
)
def test_medmnists_layout(tmp_path: Path, source: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    arrays = medmnist(shape)
    data = read(source, write(source, tmp_path, arrays))
    assert sizes(data) == [20, 4, 8]
    assert (data.box, data.num_classes, data.train.x.dtype) == ((0.0, 1.0), 2, torch.uint8)
    assert data.test.x.shape == (8, *expected)
    last = shape[-1] in (1, 3)
    wanted = np.moveaxis(arrays["test_images"], -1, 1) if last else arrays["test_images"].reshape(8, *expected)
    assert np.array_equal(data.test.x.numpy(), wanted)
    assert data.test.y.tolist() == [0, 1] * 4


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("x", "y"), ("",)),
        (("images", "labels"), ("",)),
        (("X_train", "y_train", "X_test", "y_test"), ("train", "test")),
        (("train/x", "train/y", "test/x", "test/y"), ("train", "test")),
    ],
)
def test_other_names_of_arrays(tmp_path: Path, names: tuple[str, ...], parts: tuple[str, ...]) -> None:
    x, y = some(20)
    data = read("hdf5", write("hdf5", tmp_path, {name: (x, y)[i % 2] for i, name in enumerate(names)}))
    assert sizes(data) == ([14, 2, 4] if parts == ("",) else [16, 4, 20])


def test_uint16_is_taken_and_its_range_said(tmp_path: Path) -> None:
    x = np.linspace(0, 4095, 600).astype(np.uint16).reshape(20, 5, 6)
    path = write("hdf5", tmp_path, {"x": x, "y": np.arange(20) % 2})
    with pytest.warns(
        DataNote, match="The samples are uint16 from 0 to 4095: they are divided by 65535. With --data.win"
    ):
        data = read("hdf5", path)
    assert data.box == (0.0, 1.0)
    every = torch.cat([data.train.x, data.val.x, data.test.x])
    assert float(every.max()) == pytest.approx(4095 / 65535)
    cut = read("hdf5", path, window=(0.0, 2000.0))
    assert cut.box == (0, 2000)
    assert float(cut.train.x.max()) == 2000
    assert set(cut.train.x.flatten().tolist()) <= set(x.clip(0, 2000).flatten().tolist())


def test_tables_are_taken_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 7)) * 100
    path = write("npz", tmp_path, {"x": x, "y": np.array(["ill", "well"])[np.arange(40) % 2]})
    with pytest.warns(DataNote, match=r"The samples are float64 from -.*: --eps-max is in their units"):
        data = read("npz", path)
    assert (data.box, data.class_names, data.train.x.dtype) == (None, ("ill", "well"), torch.float64)
    assert data.train.x.shape == (28, 7)
    assert (
        read("npz", write("npz", tmp_path, {"x": x.astype(int), "y": np.arange(40) % 2})).train.x.dtype == torch.float32
    )


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"a": np.zeros((4, 2))}, "holds the arrays a: call samples and labels x and y"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3, int)}, "x has 4 samples, but y 3 labels"),
        ({"x": np.zeros((4, 2)), "y": np.zeros((4, 2), int)}, "must have one label per sample"),
        ({"x": np.zeros((4, 2)), "y": np.full(4, 0.5)}, "must hold whole numbers or text"),
        ({"x": np.zeros(4), "y": np.zeros(4, int)}, r"samples must be numbers of shape \(N, …\)"),
        (
            {f"x_{p}": np.zeros((4, n), int) for p, n in (("train", 2), ("test", 3))}
            | {f"y_{p}": np.zeros(4, int) for p in ("train", "test")},
            "a sample of x_train is int64 of shape .2,., but one of x_test is int64 of shape .3,.",
        ),
    ],
)  # fmt: skip
def test_wrong_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    path = write("npz", tmp_path, arrays)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read("npz", path)
    assert str(path) in str(caught.value)


def test_pickles_and_damaged_files_are_refused(tmp_path: Path) -> None:
    class Calls:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "called"),)

    path = tmp_path / "set.npz"
    np.savez(path, x=np.array([Calls()] * 4, object), y=np.zeros(4, int))
    with pytest.raises(ConfigError, match=r"cannot be read as a \.npz file of arrays"):
        read("npz", path)
    assert not (tmp_path / "called").exists()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=f"{path} cannot be read as a .npz file"):
        read("npz", tmp_path)
    (tmp_path / "set.h5").write_bytes(b"no such file")
    pytest.importorskip("h5py")
    with pytest.raises(ConfigError, match=r"set.h5 cannot be read as an HDF5 file"):
        read("hdf5", tmp_path)


def test_options_for_files_are_refused(tmp_path: Path) -> None:
    x, y = some(20)
    with pytest.raises(ConfigError, match=r"--data.size, .* are for images in files"):
        read("npz", write("npz", tmp_path, {"x": x, "y": y}), size=8)
    with pytest.raises(ConfigError, match=r"8 bits, and --data.window is for more"):
        read("npz", tmp_path, window=(0.0, 2.0))


def test_bounds_of_a_window_are_rounded_as_the_values(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 48).reshape(12, 4)
    data = read("npz", write("npz", tmp_path, {"x": x, "y": np.arange(12) % 2}), window=(0.2, 0.3))
    assert data.box == (float(np.float32(0.2)), float(np.float32(0.3)))
    every = torch.cat([data.train.x, data.val.x, data.test.x])
    assert (float(every.min()), float(every.max())) == data.box


def test_the_test_part_does_not_depend_on_the_window(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 160).reshape(40, 4)
    path = write("npz", tmp_path, {"x": x, "y": np.arange(40) % 2})
    assert read("npz", path, window=(0.2, 0.3)).test.names == read("npz", path).test.names


def test_labels_of_one_number_are_refused(tmp_path: Path) -> None:
    for ys in (["1", "01", "2"], ["2", "01", "1"]):
        path = write("npz", tmp_path, {"x": np.zeros((3, 2)), "y": np.array(ys)})
        with pytest.raises(ConfigError, match="the labels 01 and 1 are the same number"):
            read("npz", path)


def test_the_option_names_a_column_or_else_a_pattern(place: Path) -> None:
    rows = [(f, n, f"p{i % 6}", f"{n}{i % 4}") for i, (f, n, *_) in enumerate(ROWS)]
    path = write_csv(place, rows, "file,label,Patient_ID,site")
    levels = {
        groups: read("list", path, groups=groups).split_level
        for groups in (None, "patient_id", "Site", r"/(\d)\.png", "^cat/[0-2]|^dog/[0-2]|.")
    }
    assert list(levels.values()) == [
        "by Patient_ID: 6 in all",
        "by Patient_ID: 6 in all",
        "by site: 8 in all",
        "by group: 6 in all",
        "by group: 8 in all",
    ]
    with pytest.raises(
        ConfigError, match=r"--data.groups patientid has no group for 12 .* neither a file nor a column"
    ):
        read("list", path, groups="patientid")


def test_groups_of_a_list_stay_together(tmp_path: Path) -> None:
    place = write_folder(tmp_path, 40)
    rows = [(f"{n}/{i}.png", n, f"{n}{i // 4}") for n in ("cat", "dog") for i in range(40)]
    data = read("list", write_csv(place, rows, "file,label,patient"))
    found = [
        {rows[int(n[4:-4]) + 40 * n.startswith("dog")][2] for n in part.names or ()}
        for part in vars(data).values()
        if hasattr(part, "names")
    ]
    assert [len(groups) for groups in found] == [14, 2, 4]
    assert len(set.union(*found)) == 20
    with pytest.raises(ConfigError, match="test holds no samples"):
        read("list", write_csv(place, [(f, n, n) for f, n, _ in rows], "file,label,patient"))
