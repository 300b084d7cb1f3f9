"""Fashion-MNIST and MNIST: found, read, refused by name, and downloaded."""

import gzip
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.schema import DataConfig
from ima_dist.data.load import load
from tests.support.datafiles import counts, idx_bytes, write_idx
from tests.support.fashion_mnist import FASHION_MNIST, needs_fashion_mnist
from tests.support.web import serve

FASHION = "ima_dist.data.idx:load_fashion_mnist"
MNIST = "ima_dist.data.idx:load_mnist"


@needs_fashion_mnist
@pytest.mark.parametrize("val_size", [None, 5000])
def test_real_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_size: int | None) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = {} if val_size is None else {"data.val_size": val_size}  # 5000: runs of earlier versions
    data, held_out = load(make_config("fashion_mnist", options).data, 0), val_size or 6000
    assert [tuple(s.x.shape) for s in (data.train, data.val, data.test)] == [
        (60000 - held_out, 1, 28, 28),
        (held_out, 1, 28, 28),
        (10000, 1, 28, 28),
    ]
    assert data.train.x.dtype == torch.uint8
    assert counts(data.train, 10) == [6000 - held_out // 10] * 10
    assert counts(data.val, 10) == [held_out // 10] * 10
    assert counts(data.test, 10) == [1000] * 10
    assert data.class_names is not None
    assert data.class_names[data.test.y[0]] == "Ankle boot"
    assert data.box == (0.0, 1.0)
    # The mean over the 60000 training images, widely published, is 0.2860.
    assert (data.train.x.double().sum() + data.val.x.double().sum()) / 60000 / 784 / 255 == pytest.approx(
        0.2860, abs=5e-5
    )


@needs_fashion_mnist
def test_held_out_images_of_fashion_mnist_depend_on_the_seed() -> None:
    config = DataConfig(source=FASHION, dir=str(FASHION_MNIST), subset=1000)
    a, b, c = load(config, 0), load(config, 0), load(config, 1)
    assert counts(a.train, 10) == [100] * 10
    assert torch.equal(a.train.x, b.train.x)
    assert not torch.equal(a.val.x, c.val.x)
    # DataConfig's own split, 55000: 10000 × 1000 / 55000 = 182 test images.
    assert len(a.test) == 182


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("inside", ["", "raw", "MNIST/raw"])
def test_files_are_found_in_the_directory_and_in_torchvisions_layout(
    tmp_path: Path, inside: str, compress: bool
) -> None:
    write_idx(tmp_path / inside, compress=compress)
    data = load(DataConfig(source=MNIST, dir=str(tmp_path)), 0)
    assert [len(s) for s in (data.train, data.val, data.test)] == [220, 20, 120]
    assert counts(data.val, 10) == [2] * 10
    assert data.train.x.shape == (220, 1, 28, 28)


def test_one_directory_may_hold_both_sets(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST/raw", n=240)
    write_idx(tmp_path / "FashionMNIST/raw", n=120)
    assert len(load(DataConfig(source=MNIST, dir=str(tmp_path)), 0).test) == 120
    assert len(load(DataConfig(source=FASHION, dir=str(tmp_path)), 0).test) == 60


@pytest.mark.parametrize("place", ["here/data/MNIST/raw", "home/.cache/ima_dist/mnist"])
def test_files_are_found_where_nobody_has_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match=r"MNIST: train-images-idx3-ubyte.gz is in none of .* --data.dir"):
        load(DataConfig(source=MNIST), 0)
    write_idx(tmp_path / place)
    assert len(load(DataConfig(source=MNIST), 0).train) == 220


def test_values_and_order_survive_the_reading(tmp_path: Path) -> None:
    write_idx(tmp_path)
    content = gzip.decompress((tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(content, np.uint8, offset=16).reshape(120, 28, 28)
    data = load(DataConfig(source=MNIST, dir=str(tmp_path)), 0)
    assert np.array_equal(data.test.x[:, 0].numpy(), images)
    assert data.test.y.tolist() == [i % 10 for i in range(120)]
    assert len(np.unique(images)) == 256


def truncated(content: bytes) -> bytes:
    return content[:-100]


def wrong_magic(content: bytes) -> bytes:
    return gzip.compress(b"\x89PNG" + gzip.decompress(content)[4:])


def wrong_size(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:-5])


def too_long(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content) + b"\0")


def only_a_magic_number(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:6])


def flipped_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


def web_page(content: bytes) -> bytes:
    return b"<html>Not found</html>"


def small_images(content: bytes) -> bytes:
    return gzip.compress(idx_bytes(np.zeros((240, 14, 14))))


def no_images(content: bytes) -> bytes:
    return gzip.compress(idx_bytes(np.zeros((0, 28, 28))))


def fewer_labels(content: bytes) -> bytes:
    return gzip.compress(idx_bytes(np.arange(239) % 10))


def eleventh_label(content: bytes) -> bytes:
    return gzip.compress(idx_bytes(np.arange(240) % 11))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-images-idx3-ubyte.gz", truncated, "cannot be read .EOFError"),
        ("train-images-idx3-ubyte.gz", wrong_magic, "does not begin like an idx file"),
        ("train-images-idx3-ubyte.gz", wrong_size, "is truncated or too long"),
        ("train-images-idx3-ubyte.gz", too_long, "is truncated or too long"),
        ("train-images-idx3-ubyte.gz", only_a_magic_number, "is truncated or too long"),
        ("train-images-idx3-ubyte.gz", flipped_bit, "cannot be read"),
        ("t10k-images-idx3-ubyte.gz", web_page, "does not begin like an idx file"),
        ("train-images-idx3-ubyte.gz", small_images, "images of 14×14 pixels instead of 28×28"),
        ("train-images-idx3-ubyte.gz", no_images, "holds no images"),
        ("train-labels-idx1-ubyte.gz", fewer_labels, "has 239 labels for the 240 images"),
        ("train-labels-idx1-ubyte.gz", eleventh_label, "has the label 10, above 9"),
        ("train-labels-idx1-ubyte.gz", wrong_magic, "does not begin like an idx file of bytes with 1 dim"),
    ],
)
def test_damaged_file_is_named_with_what_to_do(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = write_idx(tmp_path) / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=message) as caught:
        load(DataConfig(source=FASHION, dir=str(tmp_path)), 0)
    assert str(path) in str(caught.value)
    assert "dataset-fashion-mnist" in str(caught.value)


def test_missing_file_and_missing_directory_are_named(tmp_path: Path) -> None:
    missing = write_idx(tmp_path) / "t10k-labels-idx1-ubyte.gz"
    missing.unlink()
    with pytest.raises(ConfigError, match=f"{missing} is missing: .*--data.download"):
        load(DataConfig(source=MNIST, dir=str(tmp_path)), 0)
    with pytest.raises(ConfigError, match="there is no such directory"):
        load(DataConfig(source=MNIST, dir=str(tmp_path / "nowhere")), 0)


# ---- downloads, from a server on this machine ----------------------------------------------------------


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server with a small MNIST that torchvision's lists point to; returns its directory."""
    torchvision = pytest.importorskip("torchvision")
    files = write_idx(tmp_path / "mirror")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(
        torchvision.datasets.MNIST,
        "resources",
        [(p.name, hashlib.md5(p.read_bytes()).hexdigest()) for p in sorted(files.iterdir())],
    )
    with serve(files) as address:
        # The first mirror is dead, as they sometimes are.
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/", address])
        yield files


def test_download_into_the_cache_or_the_given_directory(tmp_path: Path, mirror: Path) -> None:
    names = sorted(p.name for p in mirror.iterdir())
    for directory, target in ((None, "home/.cache/ima_dist/mnist"), ("given", "given/MNIST/raw")):
        where = None if directory is None else str(tmp_path / directory)
        data = load(DataConfig(source=MNIST, dir=where, download=True), 0)
        assert len(data.train) == 220
        assert sorted(p.name for p in (tmp_path / target).iterdir()) == names
    # What is there is not fetched again.
    for path in mirror.iterdir():
        path.unlink()
    assert len(load(DataConfig(source=MNIST, download=True), 0).train) == 220


def test_download_with_a_wrong_checksum_leaves_nothing(tmp_path: Path, mirror: Path) -> None:
    for path in mirror.iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match=r"MNIST: t10k-images-idx3-ubyte.gz could not be fetched") as caught:
        load(DataConfig(source=MNIST, dir=str(tmp_path / "given"), download=True), 0)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "given/MNIST/raw").iterdir()) == []


def test_download_without_a_network_is_one_sentence(
    tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(ConfigError, match=r"could not be fetched from http://127.0.0.1:9/") as caught:
        load(DataConfig(source=MNIST, download=True), 0)
    assert "copy the file to" in str(caught.value)
