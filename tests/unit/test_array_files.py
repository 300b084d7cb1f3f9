"""Arrays in .npz and HDF5 files that are too large for the memory: their rows are read one by one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import DataConfig
from ima_dist.data.encoded import Encoded
from ima_dist.data.load import load
from ima_dist.data.sources import array_files
from ima_dist.data.sources.prepare import prepare
from ima_dist.data.types import DataSet, Unreadable

pytestmark = pytest.mark.filterwarnings("ignore::ima_dist.config.errors.DataWarning")


def read(source: str, place: Path, **options: Any) -> DataSet:
    return load(DataConfig(source=source, dir=str(place), **options), 0)


def some(n: int, shape: tuple[int, ...], kind: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(n).integers(0, 256, (n, *shape)).astype(kind), np.arange(n) % 2


def write_kind(kind: str, place: Path, arrays: dict[str, np.ndarray]) -> Path:
    """kind: how the arrays lie in the file."""
    place.mkdir(exist_ok=True)
    if kind == "npz":
        np.savez(place / "set.npz", **arrays)  # type: ignore[arg-type]
        return place / "set.npz"
    if kind == "compressed npz":
        np.savez_compressed(place / "set.npz", **arrays)  # type: ignore[arg-type]
        return place / "set.npz"
    h5py = pytest.importorskip("h5py")
    options = {"hdf5": {}, "chunked hdf5": {"chunks": True, "compression": "gzip"}}[kind]
    with h5py.File(place / "set.h5", "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, **options)
    return place / "set.h5"


@pytest.mark.parametrize("kind", ["npz", "compressed npz", "hdf5", "chunked hdf5"])
@pytest.mark.parametrize(
    ("dtype", "window"), [("u1", ()), (">u2", ()), ("<i2", (10.0, 200.0)), ("f8", ())], ids=["u1", "u2", "i2", "f8"]
)
def test_rows_of_large_arrays_are_read_one_by_one(
    tmp_path: Path, kind: str, dtype: str, window: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {}
    for part, n in (("train", 20), ("val", 4), ("test", 8)):
        arrays |= dict(zip((f"{part}_images", f"{part}_labels"), some(n, (5, 6, 3), dtype), strict=True))
    path, source = write_kind(kind, tmp_path, arrays), kind.split()[-1]
    expected = read(source, path, window=window)
    monkeypatch.setattr(array_files, "LARGE", 500)  # the validation samples of u1 are below it
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read(source, path, window=window)
    assert found.digest() == expected.digest()
    assert (found.box, found.train.names, found.class_names) == (expected.box, expected.train.names, ("0", "1"))
    assert torch.equal(found.train.x, expected.train.x)
    on_disk, said = kind != "compressed npz", [str(one.message) for one in caught]
    assert found.train.on_disk == on_disk
    assert any("is compressed, so that its" in text for text in said) == (not on_disk)
    if on_disk:
        assert isinstance(found.train.stored, Encoded)
        assert ("chunk" in found.train.stored.advice) == (kind == "chunked hdf5")
        copied, _, _ = prepare(str(path), source, str(tmp_path / "copy"))
        assert read(source, copied, window=window).digest() == expected.digest()


def test_large_arrays_that_are_not_finite_or_cut_off_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_files, "LARGE", 1)
    monkeypatch.setattr(array_files, "_AT_ONCE", 64)
    x, y = some(20, (4,), "f8")
    x[13, 2] = np.nan
    with pytest.raises(ConfigError, match="the samples have NaN or infinite values"):
        read("npz", write_kind("npz", tmp_path, {"x": x, "y": y}))
    path = write_kind("npz", tmp_path, {"x": np.nan_to_num(x), "y": y})
    data = read("npz", path)
    with open(path, "r+b") as file:
        file.truncate(200)
    with pytest.raises(Unreadable, match=r"sample \d+ cannot be read \(ValueError: .*set.npz is shorter than it was"):
        data.train.fetch(torch.arange(len(data.train)))
