"""Data files as people have them: other names, layouts and compression, other sets' files, and odd file names."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ima_dist.config.errors import ConfigError, DataWarning
from ima_dist.config.presets import make_config
from ima_dist.config.schema import DataConfig
from ima_dist.data import idx, prepare
from ima_dist.data.load import load
from ima_dist.data.types import DataSet
from ima_dist.evaluation.artefacts import write_names
from ima_dist.launch.cluster import ray_cluster
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet
from tests.support.datafiles import write_covid, write_idx

MNIST, COVID = "ima_dist.data.idx:load_mnist", "ima_dist.data.covid_ct:load"


def read(source: str, directory: Path) -> DataSet:
    return load(DataConfig(source=source, dir=str(directory)), 0)


def refusal(source: str, directory: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read(source, directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- idx files


def dotted(name: str) -> str:
    return name.replace("-idx", ".idx")


@pytest.mark.parametrize(
    ("rename", "compress"),
    [
        (dotted, False),
        (lambda name: f"{dotted(name)}.gz", True),
        (lambda name: f"{name}/{name}", False),
        (lambda name: f"{dotted(name)}/{name}", False),
        (lambda name: f"{name}.gz/{name}", False),
        (lambda name: name, True),
        (lambda name: f"{name}.gz", False),
    ],
    ids=["dotted", "dotted-gz", "kaggle", "kaggle-dotted", "kaggle-gz", "gzip-as-plain", "plain-as-gzip"],
)
def test_idx_files_are_known_by_their_content(rename, compress, tmp_path):
    expected = read(MNIST, write_idx(tmp_path / "usual"))
    usual, found = write_idx(tmp_path / "written", compress=compress), tmp_path / "found"
    for path in sorted(usual.iterdir()):
        target = found / rename(path.name.removesuffix(".gz"))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    data = read(MNIST, found)
    assert data.digest() == expected.digest()
    assert prepare.prepare("mnist", str(found), str(tmp_path / "copy")).manifest["sources"]["files"]


def test_an_empty_folder_beside_the_file_does_not_hide_it(tmp_path):
    directory = write_idx(tmp_path)
    (directory / "train-images-idx3-ubyte").mkdir()
    assert len(read(MNIST, directory).train) == 220


def test_files_of_another_set_are_refused_by_name(tmp_path, monkeypatch):
    directory = write_idx(tmp_path)
    labels = directory / "train-labels-idx1-ubyte.gz"
    for content in (labels.read_bytes(), gzip.decompress(labels.read_bytes())):
        known = {hashlib.md5(content).hexdigest(): ("Fashion-MNIST", "train-labels-idx1-ubyte")}
        monkeypatch.setattr(idx, "_KNOWN", known)
        sentence = refusal(MNIST, directory)
        assert f"{labels} is the published train-labels-idx1-ubyte of Fashion-MNIST" in sentence
        assert "download" not in sentence
        with pytest.raises(ConfigError, match="of Fashion-MNIST"):
            prepare.prepare("mnist", str(directory), str(tmp_path / "copy"))
    # The right set, but the other part of it.
    monkeypatch.setattr(idx, "_KNOWN", dict.fromkeys(known, ("MNIST", "t10k-labels-idx1-ubyte")))
    assert "is the published t10k-labels-idx1-ubyte of MNIST" in refusal(MNIST, directory)


def test_every_published_file_has_one_owner():
    known = idx._KNOWN
    assert len(known) == 2 * 8 + 4
    assert known[idx.MNIST.checksums["t10k-images-idx3-ubyte"][1]] == ("MNIST", "t10k-images-idx3-ubyte")
    assert known[idx.FASHION_MNIST.checksums["t10k-images-idx3-ubyte.gz"][1]][0] == "Fashion-MNIST"


def test_a_zip_archive_is_named(tmp_path):
    path = write_idx(tmp_path) / "train-images-idx3-ubyte.gz"
    path.write_bytes(b"PK\x03\x04 and so on")
    assert refusal(MNIST, tmp_path).endswith(f"{path} is a ZIP archive: unpack it.")


# ---- folders of pictures


def picture(level: int, **options: Any) -> Image.Image:
    return Image.fromarray(np.full((9, 9), level, np.uint8)).convert(options.pop("mode", "L"))


def values(data: DataSet) -> dict[str, float]:
    """The mean value of each picture by its name."""
    parts = (data.train, data.val, data.test)
    return {n: float(x.float().mean()) for p in parts for n, x in zip(p.names or (), p.x, strict=True)}


def test_hidden_files_and_texts_are_left_alone_and_jpegs_are_read(tmp_path):
    folder = write_covid(tmp_path, 3, 3) / "COVID"
    (folder / "._COVID (1).png").write_bytes(b"\0\5\x16\7 Mac OS X")
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "readme.txt").write_text("read me")
    (folder / "more").mkdir()
    picture(90).save(folder / "a.jpg")
    picture(91).save(folder / "b.JPEG", "JPEG")
    picture(92).save(folder / "no ending", "PNG")
    turned = Image.fromarray(np.repeat(np.uint8([[0, 200]]), 8, 0).repeat(4, 1))
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by a quarter
    turned.save(folder / "turned.jpg", exif=exif)
    # A wrong ending is no harm.
    picture(93).save(folder / "c.png", "JPEG")
    data = read(COVID, tmp_path)
    found = values(data)
    assert len(found) == 11
    (shown,) = (
        x for p in (data.train, data.val, data.test) for n, x in zip(p.names, p.x, strict=True) if "turned" in n
    )
    assert shown[0, 0].float().mean() < 20
    assert shown[0, -1].float().mean() > 180
    picture(94).save(folder / "d.tif")
    data = read(COVID, tmp_path)
    found |= values(data)
    expected = {"d.tif": 94, "a.jpg": 90, "b.JPEG": 91, "no ending": 92, "c.png": 93}
    assert {n: round(found[f"COVID/{n}"]) for n in expected} == expected


def test_an_image_of_another_kind_is_refused_and_not_dropped(tmp_path):
    path = write_covid(tmp_path, 3, 3) / "COVID" / "scan.gif"
    picture(90).save(path)
    sentence = refusal(COVID, tmp_path)
    assert f"{path} is a GIF file: convert it to PNG" in sentence
    assert "kaggle" not in sentence


def test_what_is_under_the_transparency_is_not_seen(tmp_path):
    folder = write_covid(tmp_path, 3, 3) / "COVID"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(COVID, tmp_path)  # an opaque alpha channel is nothing to speak of
    for mode, name in (("RGBA", "a.png"), ("LA", "b.png")):
        image = picture(200, mode=mode)
        image.putalpha(Image.new("L", image.size, 0))
        image.save(folder / name)
    palette = picture(200, mode="P")
    palette.save(folder / "c.png", transparency=palette.getpixel((0, 0)))
    half = picture(200, mode="RGBA")
    half.putalpha(Image.new("L", half.size, 128))
    half.save(folder / "d.png")
    with pytest.warns(
        DataWarning, match=r"4 of the 10 images are transparent, such as COVID/a.png: they were laid on b"
    ):
        found = values(read(COVID, tmp_path))
    assert [found[f"COVID/{n}.png"] for n in "abc"] == [0, 0, 0]
    assert abs(found["COVID/d.png"] - 100) <= 1


ODD = [
    b"with space.png",
    b"two\nlines.png",
    b"latin-\xe9.png",
    b"-dash.png",
    b"tab\t.png",
    "ε.png".encode(),
    b"'\".png",
]


@pytest.mark.parametrize("name", ODD)
def test_a_picture_of_any_name_is_read_and_listed(name, tmp_path):
    folder = write_covid(tmp_path / "files", 3, 3) / "COVID"
    picture(90).save(folder / "new.png")
    os.rename(os.fsencode(folder / "new.png"), os.fsencode(folder) + b"/" + name)
    data = read(COVID, tmp_path / "files")
    assert len(values(data)) == 7
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    write_names(run, data)
    assert any(text.isprintable() for text in read_parquet(run.samples_path)["name"].to_pylist())
    copy = prepare.prepare("covid_ct", str(tmp_path / "files"), str(tmp_path / "copy")).directory
    assert read(COVID, copy).digest() == data.digest()


@pytest.mark.parametrize("name", ODD)
def test_a_damaged_picture_of_any_name_is_refused_in_one_line(name, tmp_path):
    folder = write_covid(tmp_path, 3, 3) / "COVID"
    with open(os.fsencode(folder) + b"/" + name, "wb") as file:
        file.write(b"no picture")
    sentence = refusal(COVID, tmp_path)
    assert "is a text file, not the image that its name promises" in sentence
    assert sentence.isprintable()


@pytest.mark.parametrize("name", ODD)
def test_a_directory_of_any_name_is_read(name, tmp_path):
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    write_idx(directory)
    assert len(read(MNIST, directory).train) == 220
    (directory / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "t10k-labels-idx1-ubyte.gz is missing" in refusal(MNIST, directory)
    assert "there is no such directory" in refusal(MNIST, directory / "nowhere")


def test_ray_is_not_given_a_name_that_it_cannot_write_down(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ima_dist.train", "--data.dir", os.fsdecode(b"/latin-\xe9")])
    with pytest.raises(ConfigError, match=r"not UTF-8: rename /latin-.xe9, or"), ray_cluster(make_config("moons", {})):
        pass
