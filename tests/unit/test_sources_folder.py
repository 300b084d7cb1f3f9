"""Images in folders: every kind that is read, what is left out or changed and said, and what is refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ima_dist.config.errors import ConfigError, DataWarning
from ima_dist.config.schema import DataConfig
from ima_dist.data import pictures
from ima_dist.data.load import load
from ima_dist.data.pictures import decode
from ima_dist.data.types import DataSet
from tests.support.own_images import write_folder, write_image

pytestmark = pytest.mark.filterwarnings("ignore::ima_dist.config.errors.DataWarning")


def read(place: Path, seed: int = 0, **options: Any) -> DataSet:
    data = load(DataConfig(source="folder", dir=str(place), **options), seed)
    for part in (data.train, data.val, data.test):
        assert len(part.x) == len(part)  # reads all of them
    return data


def said(place: Path, **options: Any) -> tuple[DataSet, list[str]]:
    """The data, and the sentences about them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = read(place, **options)
    assert all(issubclass(w.category, DataWarning) for w in caught)
    return data, [str(w.message) for w in caught]


def by_name(data: DataSet) -> dict[str, torch.Tensor]:
    parts = (data.train, data.val, data.test)
    return {name: x for p in parts for name, x in zip(p.names or (), p.x, strict=True)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos")


# ---- what is read --------------------------------------------------------------------------------------


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values)


GRADIENT = np.linspace(0, 255, 120).astype(np.uint8).reshape(10, 12)
DEEP = (GRADIENT.astype(np.uint16) * 257).astype(np.uint16)
RGB = np.stack([GRADIENT, 255 - GRADIENT, np.full_like(GRADIENT, 7)], -1)


def rgba() -> Image.Image:
    image = Image.fromarray(RGB).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 128))
    return image


# file name -> the image, its grey or RGB values, and the largest difference: that of rounding or of a lossy format
KINDS: dict[str, tuple[Callable[[], Image.Image], np.ndarray, float]] = {
    "a.png": (lambda: grey(GRADIENT), GRADIENT, 0),
    "a.jpg": (lambda: grey(GRADIENT), GRADIENT, 6),
    "a.JPEG": (lambda: Image.fromarray(RGB), RGB, 40),
    "a.tif": (lambda: grey(GRADIENT), GRADIENT, 0),
    "b.tiff": (lambda: Image.fromarray(RGB), RGB, 0),
    "a.bmp": (lambda: Image.fromarray(RGB), RGB, 0),
    "a.webp": (lambda: Image.fromarray(RGB), RGB, 60),
    "palette.png": (lambda: grey(GRADIENT // 64 * 64).convert("P"), GRADIENT // 64 * 64, 0),
    "bits.png": (lambda: grey(GRADIENT > 127), (GRADIENT > 127) * np.uint8(255), 0),
    "rgba.png": (rgba, RGB * (128 / 255), 1),
    "cmyk.tif": (lambda: Image.fromarray(RGB).convert("CMYK"), RGB, 1),
    "deep.png": (lambda: Image.fromarray(DEEP), GRADIENT, 0.01),
    "deep.tif": (lambda: Image.fromarray(DEEP), GRADIENT, 0.01),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_is_read_with_its_values(tmp_path: Path, name: str) -> None:
    make, expected, tolerance = KINDS[name]
    write_folder(tmp_path)
    make().save(tmp_path / "cat" / name)
    data, _ = said(tmp_path, channels=3)
    found = by_name(data)[f"cat/{name}"].double().numpy()
    scale = 255 if name.startswith("deep") else 1
    shown = np.stack([expected] * 3, -1) if expected.ndim == 2 else expected
    assert found.shape == (3, 10, 12)
    assert np.abs(found.transpose(1, 2, 0) * scale - shown).max() <= tolerance
    assert data.box == (0.0, 1.0)


def test_images_of_all_kinds_lie_side_by_side(tmp_path: Path) -> None:
    """8 and 16 bits, grey and colours, of several sizes: one tensor."""
    write_folder(tmp_path)
    for name, (make, _, _) in KINDS.items():
        make().save(tmp_path / "dog" / name)
    data, sentences = said(tmp_path, size=16)
    assert data.train.x.shape[1:] == (3, 16, 16)
    assert data.train.x.dtype == torch.float32
    found = by_name(data)
    assert len(found) == 12 + len(KINDS)
    assert float(torch.stack(list(found.values())).max()) <= 1
    assert sentences[0] == "25 images in 2 classes (cat 6, dog 19), read as RGB, 16×16."
    assert (
        "1 of the 25 images have a transparent colour or an alpha channel, such as dog/rgba.png: they are laid on"
        in (sentences[1])
    )
    assert "2 of the 25 images have 16 bits, such as dog/deep.png: they are divided by 65535." in sentences[2]
    eight = by_name(read(tmp_path, size=16, channels=1))["cat/0.png"]
    assert round(float(eight[0, 8, 8]) * 255) == 60


def test_grey_images_have_one_channel_and_their_own_size(photos: Path) -> None:
    data, sentences = said(photos)
    assert data.train.x.shape[1:] == (1, 10, 12)
    assert data.train.x.dtype == torch.uint8
    assert data.class_names == ("cat", "dog")
    assert sentences == ["12 images in 2 classes (cat 6, dog 6), read as grey, 10×12."]
    assert by_name(data)["dog/3.png"][0, 5, 5] == 183


def test_an_image_is_shown_as_its_exif_entry_says(photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    write_image(photos / "cat" / "turned.jpg", 90, size=(10, 12), exif=exif, quality=100)
    x = by_name(read(photos))["cat/turned.jpg"][0]
    assert x.shape == (10, 12)  # as the others, though it is stored as 12×10
    assert x.argmax() == 11  # its first pixel is at the top right


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("turned", [1, 3, 6])
def test_jpegs_are_read_as_by_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, turned: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    path = tmp_path / "a.jpg"
    Image.effect_noise((40, 30), 60).convert("RGB").convert(mode).save(path, exif=exif, quality=60)
    shapes = [(1, 30, 40), (3, 30, 40), (3, 40, 30), (3, 20, 20), (1, 20, 20)]
    found = [decode(path, "a", shape, resize)[0] for shape in shapes for resize in ("fit", "crop", "pad")]
    monkeypatch.setattr(pictures, "_jpeg", lambda content: None)
    by_pillow = [decode(path, "a", shape, resize)[0] for shape in shapes for resize in ("fit", "crop", "pad")]
    assert all(np.array_equal(a, b) for a, b in zip(found, by_pillow, strict=True))


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        # The image is white with a black right half, twice as wide as high.
        ("fit", [[255, 255, 0, 0]] * 4),
        ("crop", [[255, 255, 0, 0]] * 4),
        ("pad", [[0, 0, 0, 0], [255, 255, 0, 0], [255, 255, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_what_is_not_square_is_squeezed_cropped_or_padded(tmp_path: Path, resize: str, expected: list[Any]) -> None:
    write_folder(tmp_path, size=(8, 4))
    wide = np.full((4, 8), 255, np.uint8)
    wide[:, 4:] = 0
    Image.fromarray(wide).save(tmp_path / "cat" / "wide.png")
    Image.fromarray(wide * np.uint16(257)).save(tmp_path / "dog" / "wide.png")
    data = read(tmp_path, size=4, resize=resize)
    for name in ("cat/wide.png", "dog/wide.png"):
        found = by_name(data)[name][0] * 255
        # Bilinear filters mix the two columns in the middle when they shrink.
        assert (found[:, [0, 3]] - torch.tensor(expected)[:, [0, 3]]).abs().max() < 1
    square = by_name(read(tmp_path, size=4, resize="crop"))["cat/wide.png"][0]
    assert (square[:, 1] * 255).min() > (200 if resize == "crop" else -1)


def test_16_bits_keep_their_units_in_a_window(tmp_path: Path) -> None:
    for name, level in (("a", 1000), ("b", 3000)):
        (tmp_path / name).mkdir()
        for i in range(4):
            values = np.full((10, 12), level + i, np.uint16)
            values[0, :2] = 0, 60000
            Image.fromarray(values).save(tmp_path / name / f"{i}.png")
    data, sentences = said(tmp_path, window=(500.0, 4095.0))
    assert data.box == (500, 4095)
    assert by_name(data)["b/2.png"].unique().tolist() == [500, 3002, 4095]
    assert len(sentences) == 1
    write_image(tmp_path / "a" / "8-bit.png")
    with pytest.raises(ConfigError, match=r"a/8-bit.png has 8 bits, and --data.window is for more: leave it out"):
        read(tmp_path, window=(500.0, 4095.0))


# ---- parts ---------------------------------------------------------------------------------------------


def test_parts_are_chosen_by_class_and_the_test_set_by_the_data(photos: Path) -> None:
    write_folder(photos, 40)
    data, other = read(photos, seed=0), read(photos, seed=1)
    assert [len(p) for p in (data.train, data.val, data.test)] == [56, 12, 12]
    assert torch.bincount(data.test.y).tolist() == [6, 6]
    assert data.test.names == other.test.names
    assert data.val.names != other.val.names


def test_parts_may_be_folders(photos: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for part, count in (("Train", 9), ("valid", 3), ("test", 4)):
        write_folder(whole / part, count)
    data = read(whole)
    assert [len(p) for p in (data.train, data.val, data.test)] == [18, 6, 8]
    assert data.class_names == ("cat", "dog")
    assert data.val.names is not None
    assert data.val.names[0] == "valid/cat/0.png"
    # Equal images, as here in all three parts, are said.
    assert any("images are equal to another one, byte for byte" in text for text in said(whole)[1])


def test_folders_beside_those_of_parts_are_refused_if_they_hold_images(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_folder(tmp_path / part, 3)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    assert read(tmp_path).class_names == ("cat", "dog")
    write_folder(tmp_path / "extra", 3)
    with pytest.raises(ConfigError, match=r"folders of parts \(test, train\) and others with images \(extra\)"):
        read(tmp_path)
    (tmp_path / "test").rename(tmp_path / "bus")  # so train is a class, as in vehicles
    assert read(tmp_path).class_names == ("bus", "extra", "train")


def test_images_may_lie_deeper_in_the_folder_of_a_class(photos: Path) -> None:
    write_image(photos / "cat" / "patient 7" / "left" / "0.png", 99)
    assert "cat/patient 7/left/0.png" in by_name(read(photos))


# ---- what is left out, and said ------------------------------------------------------------------------


def test_an_empty_folder_of_a_class_is_said(photos: Path) -> None:
    (photos / "emu").mkdir()
    data, sentences = said(photos)
    assert data.class_names == ("cat", "dog")
    assert "emu holds no images, so it is no class." in sentences


def test_hidden_files_are_passed_over_and_others_are_named(photos: Path) -> None:
    (photos / "cat" / "._0.png").write_bytes(b"\0\5\x16\7 Mac OS X")
    (photos / "cat" / ".hidden").mkdir()
    write_image(photos / "cat" / ".hidden" / "a.png")
    (photos / "cat" / "notes.txt").write_text("a")
    (photos / "dog" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    data, sentences = said(photos)
    assert len(by_name(data)) == 12
    assert sentences[0] == "2 files are no images and are left out: cat/notes.txt, dog/Thumbs.db."


def test_a_loop_of_links_is_not_followed(photos: Path) -> None:
    os.symlink(photos, photos / "cat" / "again")
    os.symlink(photos / "cat", photos / "cat" / "self")
    outside = write_image(photos.parent / "more" / "extra.png", 91)
    os.symlink(outside.parent, photos / "dog" / "linked")
    data, sentences = said(photos)
    assert len(by_name(data)) == 13  # other links are followed
    assert sentences[0] == "Links that lead back to a folder above them are not followed: cat/again, cat/self."


def test_equal_files_are_named(photos: Path) -> None:
    content = (photos / "cat" / "3.png").read_bytes()
    (photos / "cat" / "copy.png").write_bytes(content)
    assert said(photos)[1][0] == "One image is equal to another one, byte for byte: cat/3.png and cat/copy.png."
    (photos / "dog" / "wrong.png").write_bytes(content)
    assert said(photos)[1][0] == (
        "2 images are equal to another one, byte for byte: cat/3.png and dog/wrong.png with different labels."
    )


# ---- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.png", b"", "empty.png is empty: mend it, or move it out of the data"),
        ("text.png", b"file not found\n", "text.png is a text file, not the image that its name promises: mend it"),
        ("noise.jpg", b"\xff\xd8\xff" + bytes(range(100)), "noise.jpg cannot be read as an image, it may be truncated"),
    ],
)
def test_what_is_no_image_is_refused(photos: Path, name: str, content: bytes, sentence: str) -> None:
    (photos / "cat" / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(photos)
    assert f"{photos}/cat/{sentence}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "webp"])
def test_a_truncated_image_is_refused(photos: Path, ending: str) -> None:
    path = photos / "cat" / f"cut.{ending}"
    Image.effect_noise((12, 10), 80).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        (ConfigError, OSError), match=f"{path} cannot be read as an image, it may be truncated or damaged .*: mend"
    ):
        read(photos)


def test_images_that_would_lose_their_values_are_refused(photos: Path) -> None:
    Image.fromarray(np.full((10, 12), 0.5, np.float32)).save(photos / "cat" / "float.tif")
    with pytest.raises(ConfigError, match=r"float.tif has values that are no grey levels or colours of 8 or 16 bits"):
        read(photos)
    (photos / "cat" / "float.tif").unlink()
    Image.fromarray(GRADIENT).save(photos / "cat" / "a.gif")
    with pytest.raises(ConfigError, match=r"a\.gif is a GIF file: convert it to PNG, or move it out of the folder"):
        read(photos)


def test_images_of_different_sizes_need_one(photos: Path) -> None:
    write_image(photos / "dog" / "large.png", size=(30, 20))
    with pytest.raises(ConfigError, match=r"cat/0.png has 10×12 pixels, dog/large.png has 20×30.*--data.size 224"):
        read(photos)


def test_folders_without_classes_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "all" / "a.png")
    with pytest.raises(ConfigError, match="holds images but no folders with images: put those of each class into"):
        read(tmp_path / "all")
    with pytest.raises(ConfigError, match="has images of only one class, all: a folder for each class is needed"):
        read(tmp_path)
    (tmp_path / "none" / "cat").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"none holds no folders with images \(PNG, JPEG, TIFF, BMP, WEBP\)"):
        read(tmp_path / "none")
    with pytest.raises(ConfigError, match="there is no such directory"):
        read(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"--data.source folder needs --data.dir"):
        load(DataConfig(source="folder"), 0)
