"""Prepared copies of one's own data: the same samples as from the files, with the files' bytes unchanged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.schema import DataConfig
from ima_dist.data import __main__ as command
from ima_dist.data.load import load
from ima_dist.data.sources import copy, folder
from ima_dist.data.sources.images import images
from ima_dist.data.types import PARTS, DataSet
from tests.support.own_images import write_folder, write_image

pytestmark = pytest.mark.filterwarnings("ignore::ima_dist.config.errors.DataWarning")


def run(*words: object) -> int:
    return command.main([str(word) for word in words])


def read(source: str, place: Path, seed: int = 0, **options: Any) -> DataSet:
    return load(DataConfig(source=source, dir=str(place), **options), seed)


def write_list(place: Path) -> Path:
    write_folder(place)
    rows = [
        f"{path.relative_to(place)},{path.parent.name},{path.parent.name}{i % 3}"
        for i, path in enumerate(sorted(place.rglob("*.png")))
    ]
    (place / "all.csv").write_text("\n".join(["file,label,patient", *rows]) + "\n")
    return place


def write_npz(place: Path) -> Path:
    place.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (30, 5, 6, 3)).astype(np.uint8)
    np.savez(
        place / "a.npz",
        train_images=x[:20],
        train_labels=np.arange(20) % 2,
        test_images=x[20:],
        test_labels=np.arange(10) % 2,
    )
    return place


def write_hdf5(place: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    place.mkdir()
    with h5py.File(place / "a.h5", "w") as file:
        file["x"] = np.random.default_rng(0).integers(0, 4096, (30, 4)).astype(np.uint16)
        file["y"] = np.arange(30) % 2
    return place


def write_mixed(place: Path) -> Path:
    write_folder(place)
    write_image(place / "cat" / "large.jpg", 99, size=(40, 30))
    write_image(place / "dog" / "deep.png", 90)
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(place / "dog" / "deep.tif")
    return place


FORMS: dict[str, tuple[str, Callable[[Path], Path], list[dict[str, Any]]]] = {
    "folder": ("folder", write_folder, [{}, {"size": 8, "channels": 3, "resize": "pad"}]),
    "mixed": ("folder", write_mixed, [{"size": 8}, {"size": 6, "channels": 1}]),
    "list": ("list", write_list, [{}]),
    "npz": ("npz", write_npz, [{}]),
    "hdf5": ("hdf5", write_hdf5, [{}, {"window": (0.0, 2000.0)}]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_gives_the_same_data_with_all_options(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, write, options = FORMS[form]
    files, to = write(tmp_path / "files"), tmp_path / "copy"
    assert run("prepare", "own", "--source", files, "--to", to) == 0
    out = capsys.readouterr().out
    assert out.startswith("Own data: ")
    assert out.endswith(f" MB) prepared in {to}.\n")
    for chosen in options:
        expected = [read(source, files, seed, **chosen) for seed in (0, 1)]
        for seed in (0, 1):
            found = read(source, to, seed, **chosen)
            assert found.digest() == expected[seed].digest()
            assert found.train.names == expected[seed].train.names
            assert torch.equal(found.test.x, expected[seed].test.x)
            rest = [(d.box, d.class_names, d.train.x.dtype) for d in (found, expected[seed])]
            assert rest[0] == rest[1]
    assert make_config("own", {"data.dir": str(to)}).data.source == source
    assert run("verify", to) == 0
    assert "is whole: own, " in capsys.readouterr().out
    assert sorted(path.name for path in to.iterdir()) == ["lock", "prepared.json", "samples.arrow"]


def test_files_keep_their_bytes_names_and_groups(tmp_path: Path) -> None:
    files = write_list(tmp_path / "files")
    assert run("prepare", "own", "--source", files, "--to", tmp_path / "copy") == 0
    with pa.ipc.open_file(tmp_path / "copy" / "samples.arrow") as reader:
        table = reader.read_all()
    assert table["name"].to_pylist()[0] == "cat/0.png"
    assert table["image"][7].as_py() == (files / "dog" / "1.png").read_bytes()
    assert table["group"].to_pylist()[:5] == ["cat0", "cat1", "cat2", "cat0", "cat1"]
    assert set(table["part"].to_pylist()) == {None}
    found = copy.read(tmp_path / "copy", "list")
    assert found.labels.groups == tuple(f"{name}{i % 3}" for name in ("cat", "dog") for i in range(6))
    assert found.labels.grouped_by == "patient"
    assert read("list", tmp_path / "copy", groups="patient").split_level == "by patient: 6 in all"
    with pytest.raises(ConfigError, match=r"--data.groups visit has no group for 12"):
        read("list", tmp_path / "copy", groups="visit")


def test_names_are_hidden_in_a_copy_and_in_a_run_on_request(tmp_path: Path) -> None:
    files, to = write_list(tmp_path / "files"), tmp_path / "copy"
    words = ("prepare", "own", "--source", files, "--to", to, "--hide-names")
    assert run(*words) == 0
    content = b"".join(path.read_bytes() for path in to.iterdir())
    assert not any(text in content for text in (b"cat/0.png", b"0.png", b"cat0", bytes(tmp_path)))
    found = copy.read(to, "list").labels
    assert found.names == tuple(f"sample {i}" for i in range(12))
    assert found.groups == tuple(str(3 * c + i % 3 + 1) for c in range(2) for i in range(6))
    assert run(*words) == 0  # finds it
    assert run("prepare", "svhn", "--source", files, "--hide-names") == 2
    shown, hidden = (read("list", files, groups="patient", hide_names=hide) for hide in (False, True))
    assert hidden.digest() == shown.digest()
    assert hidden.split_level == shown.split_level
    numbers: dict[str, str] = {}
    for name in PARTS:
        one, other = getattr(shown, name), getattr(hidden, name)
        assert other.names == tuple(f"{name} {i}" for i in range(len(one)))
        for group, number in zip(one.groups, other.groups, strict=True):
            assert numbers.setdefault(group, number) == number
    assert sorted(numbers.values()) == [str(i) for i in range(1, 7)]


def test_samples_of_more_than_one_batch_are_fetched_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "_ROWS", 5)
    files = write_folder(tmp_path / "files")
    assert run("prepare", "own", "--source", files, "--to", tmp_path / "copy") == 0
    config = DataConfig(source="folder", dir=str(files))
    both = [images(found, config).stored for found in (folder.find(files), copy.read(tmp_path / "copy", "folder"))]
    every = [stored.fetch(np.arange(len(stored))) for stored in both]  # type: ignore[union-attr]
    assert torch.equal(*every)
    rows = np.array([11, 0, 7, 7, 4])
    assert not isinstance(both[1], torch.Tensor)
    assert torch.equal(both[1].fetch(rows), every[0][torch.from_numpy(rows)])


def test_a_second_call_finds_the_copy_and_other_data_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, to = write_folder(tmp_path / "files"), tmp_path / "copy"
    words = ("prepare", "own", "--source", files, "--to", to)
    assert run(*words) == 0
    before = (to / "samples.arrow").stat()
    assert run(*words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"The same data have already been prepared in {to}."
    assert (to / "samples.arrow").stat() == before
    write_image(files / "cat" / "0.png", 77)
    assert run(*words) == 2
    assert "holds a prepared copy of other data: delete it" in capsys.readouterr().err
    # A damaged copy is written anew.
    with open(to / "samples.arrow", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ConfigError, match=r"100 bytes instead of .*prepare own --source DIR --to"):
        read("folder", to)
    assert run("verify", to) == 2
    assert run(*words) == 0
    assert read("folder", to).digest() == read("folder", files).digest()


def test_a_damaged_image_is_named_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, to = write_folder(tmp_path / "files"), tmp_path / "copy"
    path = files / "cat" / "cut.png"
    Image.effect_noise((12, 10), 80).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    assert run("prepare", "own", "--source", files, "--to", to) == 2
    assert f"{path} cannot be read as an image, it may be truncated" in capsys.readouterr().err
    assert not to.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("own", "--source", "files"), "Name your data with --source DIR, and a new directory for the copy"),
        (("own", "--source", "none", "--to", "copy"), "there is no such directory"),
        (("own", "--source", "files", "--to", "copy", "--form", "foldr"), "--form must be one of folder, list"),
        (("mnist", "--source", "files", "--form", "folder"), "--form is for your own data"),
        (("own", "--source", "other", "--to", "copy"), "other is a prepared copy already"),
        (("own", "--source", "files", "--to", "files"), "files holds other files (cat): name a new or empty"),
    ],
)
def test_what_cannot_be_prepared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Any, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "files")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "prepared.json").touch()
    assert run("prepare", *words) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


def test_a_copy_of_another_form_is_refused(tmp_path: Path) -> None:
    assert run("prepare", "own", "--source", write_folder(tmp_path / "files"), "--to", tmp_path / "copy") == 0
    with pytest.raises(
        ConfigError, match=r"is a prepared copy of data of the form folder: leave --data.source list out"
    ):
        read("list", tmp_path / "copy")
    with pytest.raises(ConfigError, match="is a prepared copy of own, not of mnist"):
        load(make_config("mnist", {"data.dir": str(tmp_path / "copy")}).data, 0)
    manifest = json.loads((tmp_path / "copy" / "prepared.json").read_text())
    assert (manifest["format"], manifest["source"], manifest["classes"]) == (2, "folder", ["cat", "dog"])
    os.rename(tmp_path / "copy", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "files")
    assert len(read("folder", tmp_path / "elsewhere").train) == 8
