"""SVHN, CIFAR-10 and COVID-19 CT from small files in their publishers' formats, whole and damaged; augmentation."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import PRESETS, make_config
from ima_dist.config.schema import DataConfig
from ima_dist.data.augment import augment
from ima_dist.data.load import load
from ima_dist.data.types import DataSet, Split
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training
from ima_dist.training.network import make_network
from tests.support import workers
from tests.support.datafiles import (
    BATCHES,
    CIFAR_RUN,
    FOLDER,
    cifar_batch,
    python2,
    write_cifar,
    write_covid,
    write_idx,
    write_pathmnist,
    write_svhn,
)
from tests.support.web import serve


def read(name: str, directory: Path, **options: Any) -> DataSet:
    return load(DataConfig(source=f"ima_dist.data.{name}:load", dir=str(directory), **options), 0)


def counts(split: Split) -> list[int]:
    return torch.bincount(split.y).tolist()


# ---- files in the genuine formats ----------------------------------------------------------------------


WRITERS: dict[str, Callable[[Path], Path]] = {
    "svhn": write_svhn,
    "cifar10": write_cifar,
    "covid_ct": write_covid,
    "pathmnist": write_pathmnist,
}


# ---- whole files ---------------------------------------------------------------------------------------


def test_svhn(tmp_path: Path) -> None:
    data = read("svhn", write_svhn(tmp_path, n=300))
    # 300 × 5000 / 73257 = 20.5, held out as evenly as the classes allow.
    assert [len(s) for s in (data.train, data.val, data.test)] == [280, 20, 150]
    assert counts(data.val) == [2] * 10
    assert data.train.x.shape[1:] == (3, 32, 32)
    assert data.train.x.dtype == torch.uint8
    assert (data.box, data.num_classes, data.augment) == ((0.0, 1.0), 10, False)
    stored = scipy.io.loadmat(tmp_path / "test_32x32.mat")
    assert data.test.x[7, 2, 30, 5] == stored["X"][30, 5, 2, 7]
    assert np.array_equal(data.test.x.numpy(), stored["X"].transpose(3, 2, 0, 1))
    # 10 stands for the digit 0.
    assert data.test.y[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.class_names is not None
    assert data.class_names[0] == "0"


@pytest.mark.parametrize("writer", [python2, lambda content: pickle.dumps(content, protocol=2)])
def test_cifar10(tmp_path: Path, writer: Callable[[Any], bytes]) -> None:
    batches = [cifar_batch(number, 40) for number in range(1, 7)]
    for name, batch in zip(BATCHES, batches, strict=True):
        (tmp_path / name).write_bytes(writer(batch))
    data = read("cifar10", tmp_path)
    assert [len(s) for s in (data.train, data.val, data.test)] == [180, 20, 40]
    assert counts(data.val) == [2] * 10
    assert (data.box, data.num_classes, data.augment) == ((0.0, 1.0), 10, True)
    assert data.test.x.dtype == torch.uint8
    # A row holds red, green and blue, each row by row.
    assert data.test.x[3, 2, 5, 9] == batches[5][b"data"][3, 2 * 1024 + 5 * 32 + 9]
    assert np.array_equal(data.test.x.flatten(1).numpy(), batches[5][b"data"])
    assert data.test.y.tolist() == batches[5][b"labels"]
    # Every training image is in one of the two sets, with its label.
    found = [(x.numpy().tobytes(), y) for s in (data.train, data.val) for x, y in zip(s.x, s.y.tolist(), strict=True)]
    stored = [(x.tobytes(), y) for batch in batches[:5] for x, y in zip(batch[b"data"], batch[b"labels"], strict=True)]
    assert sorted(found) == sorted(stored)


def test_written_as_python_2_wrote() -> None:
    """Strings without a character set, and numpy's module under its old name."""
    content = python2(cifar_batch(1, 3))
    assert content.startswith(b"\x80\x02}q\x00(U\x0bbatch_label")
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"_codecs" not in content


def test_covid_ct(tmp_path: Path) -> None:
    data = read("covid_ct", write_covid(tmp_path))
    # 122 × 400 / 2482 = 19.7 and 122 × 60 / 2482 = 2.9.
    assert counts(data.test) == [10, 10]
    assert counts(data.val) == [2, 1]
    assert counts(data.train) == [48, 51]
    assert data.train.x.shape == (99, 1, 224, 224)
    assert data.train.x.dtype == torch.uint8
    assert (data.box, data.num_classes, data.augment) == ((0.0, 1.0), 2, False)
    assert data.class_names == ("non-COVID", "COVID")
    names: set[str] = set()
    for part in (data.train, data.val, data.test):
        assert part.names is not None
        names |= set(part.names)
        for x, label, name in zip(part.x, part.y.tolist(), part.names, strict=True):
            assert name.startswith(("non-COVID/", "COVID/")[label])
            # All of a picture is one grey, whatever its mode.
            assert x.unique().tolist() == [(50, 200)[label]]
    assert len(names) == 122
    assert "COVID/COVID (62).png" in names


def test_covid_ct_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    config = DataConfig(source="ima_dist.data.covid_ct:load", dir=str(write_covid(tmp_path)))
    a, b, c = load(config, 1), load(config, 1), load(config, 2)
    assert a.test.names == b.test.names
    assert torch.equal(a.train.x, b.train.x)
    assert set(a.test.names or ()) != set(c.test.names or ())


def test_covid_ct_of_the_published_size(tmp_path: Path) -> None:
    dot = io.BytesIO()
    Image.new("L", (1, 1), 7).save(dot, "PNG")
    for folder, count in (("COVID", 1252), ("non-COVID", 1230)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            (tmp_path / folder / f"{i}.png").write_bytes(dot.getvalue())
    data = read("covid_ct", tmp_path)
    assert counts(data.test) == [200, 200]
    assert counts(data.val) == [30, 30]
    assert counts(data.train) == [1000, 1022]


def test_picture_keeps_its_orientation_and_is_averaged(tmp_path: Path) -> None:
    write_covid(tmp_path, 3, 3)
    picture = np.zeros((448, 896), np.uint8)
    picture[:224] = 255
    picture[:, :448] //= 2
    Image.fromarray(picture).save(tmp_path / "COVID" / "COVID (1).png")
    data = read("covid_ct", tmp_path)
    found = [
        x[0]
        for part in (data.train, data.val, data.test)
        for x, name in zip(part.x, part.names or (), strict=True)
        if name == "COVID/COVID (1).png"
    ]
    corners = [int(found[0][i, j]) for i in (0, -1) for j in (0, -1)]
    assert corners == [127, 255, 0, 0]


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("svhn", "given"),
        ("svhn", "given/svhn"),
        ("cifar10", "given"),
        ("cifar10", f"given/{FOLDER}"),
        ("covid_ct", "given"),
        ("covid_ct", "given/covid_ct"),
        ("svhn", "here/data"),
        ("cifar10", f"here/data/{FOLDER}"),
        ("covid_ct", "here/data/covid_ct"),
        ("svhn", "home/.cache/ima_dist/svhn"),
        ("cifar10", f"home/.cache/ima_dist/cifar10/{FOLDER}"),
        ("covid_ct", "home/.cache/ima_dist/covid_ct"),
    ],
)
def test_where_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, inside: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    WRITERS[name](tmp_path / inside)
    directory = str(tmp_path / "given") if inside.startswith("given") else None
    data = load(DataConfig(source=f"ima_dist.data.{name}:load", dir=directory), 0)
    assert len(data.train) > 0


# ---- missing and damaged files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "first", "last", "remedy"),
    [
        ("svhn", "train_32x32.mat", "test_32x32.mat", "--data.download"),
        ("cifar10", "data_batch_1", "test_batch", "--data.download"),
        ("covid_ct", "non-COVID", "COVID", "plameneduardo/sarscov2-ctscan-dataset"),
    ],
)
def test_missing_files_are_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: str, last: str, remedy: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match=rf": {first} is in none of data.*, {tmp_path}/home/.*: .*{remedy}"):
        load(DataConfig(source=f"ima_dist.data.{name}:load"), 0)
    with pytest.raises(ConfigError, match=r"there is no such directory\.$"):
        read(name, tmp_path / "nowhere")
    whole = WRITERS[name](tmp_path / "given")
    (whole / last).rename(whole / "elsewhere")
    with pytest.raises(ConfigError, match=f"{whole / last} is missing: .*{remedy}") as caught:
        read(name, whole)
    assert "\n" not in str(caught.value)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def web_page(content: bytes) -> bytes:
    return b"<html>Not found</html>" * 100


def other_format(content: bytes) -> bytes:
    return b"\x1f\x8b" + bytes(range(256)) * 4


@pytest.mark.parametrize("damage", [cut, empty, web_page, other_format])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("svhn", "train_32x32.mat"),
        ("svhn", "test_32x32.mat"),
        ("cifar10", "data_batch_3"),
        ("cifar10", "test_batch"),
        ("covid_ct", "COVID/COVID (1).png"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, name: str, file: str, damage: Callable[[bytes], bytes]) -> None:
    path = WRITERS[name](tmp_path) / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"pass --data\.dir") as caught:
        read(name, tmp_path)
    assert re.search(f"{re.escape(str(path))} (cannot be read as |is empty|is a text file)", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": None}, "holds no array X"),
        ({"y": None}, "holds no array y"),
        ({"X": np.zeros((32, 32, 1, 20), np.uint8)}, r"X of uint8 \(32, 32, 1, 20\) instead of uint8 \(32, 32, 3, N\)"),
        ({"X": np.zeros((32, 32, 3, 20))}, "X of float64"),
        ({"y": np.ones((239, 1), np.uint8)}, r"labels y of uint8 \(239, 1\) instead of numbers \(240, 1\)"),
        ({"y": np.zeros((240, 1), np.uint8)}, "has the label 0, outside 1 to 10"),
        ({"y": np.full((240, 1), 11, np.uint8)}, "has the label 11, outside 1 to 10"),
        ({"y": np.full((240, 1), 1.5)}, "has the label 1.5, outside 1 to 10"),
    ],
)
def test_wrong_svhn_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_svhn(tmp_path, **changes)
    with pytest.raises(ConfigError, match=f"^SVHN: {tmp_path}/train_32x32.mat .*{message}.*--data.dir"):
        read("svhn", tmp_path)


GOOD = cifar_batch(1, 40)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list instead of a dictionary"),
        ({b"data": GOOD[b"data"]}, "has no entry 'labels'"),
        ({b"fine_labels": GOOD[b"labels"], b"data": GOOD[b"data"]}, "has no entry 'labels'"),
        (GOOD | {b"data": GOOD[b"data"][:, :3000]}, r"other than an array of bytes \(N, 3072\)"),
        (GOOD | {b"data": GOOD[b"data"].astype(np.float32)}, "other than an array of bytes"),
        (GOOD | {b"data": [1, 2]}, "other than an array of bytes"),
        (GOOD | {b"data": GOOD[b"data"][:0], b"labels": []}, "holds no images"),
        (GOOD | {b"labels": GOOD[b"labels"][:-1]}, "has 39 labels for 40 images"),
        (GOOD | {b"labels": [10] * 40}, "has the label 10, outside 0 to 9"),
        (GOOD | {b"labels": [0.5] * 40}, "other than a list of whole numbers"),
    ],
)
def test_wrong_cifar10_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = write_cifar(tmp_path) / "data_batch_2"
    path.write_bytes(python2(content))
    with pytest.raises(ConfigError, match=f"^CIFAR-10: {path} .*{message}.*--data.dir"):
        read("cifar10", tmp_path)


class Calls:
    """Pickled as a call of ``function``, which unpickling would make."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda marker: Calls(os.system, f"touch {marker}"), "posix.system"),
        (lambda marker: Calls(exec, f"open({str(marker)!r}, 'w')"), "exec"),
        (lambda marker: Calls(os.mkdir, str(marker)), "posix.mkdir"),
        (lambda marker: Calls(np.ndarray.tofile, np.zeros(3), str(marker)), ""),
        (lambda marker: Calls(np.save, str(marker), np.zeros(3)), "numpy.save"),
        (lambda marker: Calls(getattr, {}, "clear"), "getattr"),
    ],
)
def test_foreign_pickle_is_refused_and_nothing_in_it_runs(
    tmp_path: Path, call: Callable[[Path], Calls], what: str, protocol: int
) -> None:
    path, marker = write_cifar(tmp_path / "data") / "data_batch_1", tmp_path / "marker"
    bad = pickle.dumps(GOOD | {b"batch_label": call(marker)}, protocol=protocol)
    path.write_bytes(bad)
    with pytest.raises(ConfigError, match=f"{path} .* it asks for .*{what}.*, which is refused") as caught:
        read("cifar10", tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


def test_pickle_of_codecs_other_than_latin1_is_refused(tmp_path: Path) -> None:
    import _codecs

    path = write_cifar(tmp_path) / "data_batch_1"
    path.write_bytes(pickle.dumps(GOOD | {b"batch_label": Calls(_codecs.encode, "text", "rot13")}, protocol=2))
    with pytest.raises(ConfigError, match="it holds bytes in a form that CIFAR-10 does not use"):
        read("cifar10", tmp_path)


def test_wrong_covid_ct_folders_are_refused(tmp_path: Path) -> None:
    write_covid(tmp_path, 3, 3)
    deep = tmp_path / "COVID" / "COVID (2).png"
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(deep)
    with pytest.raises(ConfigError, match=r"COVID \(2\).png has more than 8 bits per channel: convert it to"):
        read("covid_ct", tmp_path)
    deep.unlink()
    with pytest.raises(ConfigError, match=f"{tmp_path}/COVID holds 2 images, where at least 3 are needed"):
        read("covid_ct", tmp_path)


# ---- downloads, from a server on this machine ----------------------------------------------------------


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_svhn_is_fetched_and_checked(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import SVHN

    files = write_svhn(at_home / "server")
    config = DataConfig(source="ima_dist.data.svhn:load", download=True)
    with serve(files) as address:
        lists = {
            split: [f"{address}{split}_32x32.mat", f"{split}_32x32.mat", md5(files / f"{split}_32x32.mat")]
            for split in ("train", "test")
        }
        monkeypatch.setattr(SVHN, "split_list", lists)
        assert len(load(config, 0).test) == 120
        assert len(list((at_home / "home/.cache/ima_dist/svhn").iterdir())) == 2
        lists["test"][2] = md5(files / "train_32x32.mat")
        with pytest.raises(ConfigError, match=r"SVHN: test_32x32.mat could not be fetched") as caught:
            read("svhn", at_home / "given", download=True)
        assert "copy the file to" in str(caught.value)
        assert [p.name for p in (at_home / "given").iterdir()] == ["train_32x32.mat"]


def test_cifar10_is_fetched_checked_and_unpacked(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    write_cifar(at_home / FOLDER)
    archive = at_home / "server" / CIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(at_home / FOLDER, FOLDER)
        tar.add(at_home / FOLDER / "test_batch", "../outside")
    with serve(archive.parent) as address:
        monkeypatch.setattr(CIFAR10, "url", address + CIFAR10.filename)
        monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
        config = DataConfig(source="ima_dist.data.cifar10:load", download=True)
        assert len(load(config, 0).test) == 40
        assert sorted(p.name for p in (at_home / "home/.cache/ima_dist/cifar10" / FOLDER).iterdir()) == BATCHES
        assert len(read("cifar10", at_home / "given", download=True).test) == 40
        assert sorted(p.name for p in (at_home / "given" / FOLDER).iterdir()) == BATCHES
        assert not list(at_home.rglob("outside"))

        with tarfile.open(archive, "w:gz") as tar:
            tar.add(at_home / FOLDER / "test_batch", f"{FOLDER}/test_batch")
        monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
        with pytest.raises(ConfigError, match=f"{CIFAR10.filename} cannot be unpacked .*data_batch_1"):
            read("cifar10", at_home / "other", download=True)
        assert list((at_home / "other" / FOLDER).iterdir()) == []


def test_covid_ct_cannot_be_fetched(at_home: Path) -> None:
    with pytest.raises(ConfigError, match=r"kaggle\.com/datasets/plameneduardo/sarscov2-ctscan-dataset"):
        load(DataConfig(source="ima_dist.data.covid_ct:load", download=True), 0)


# ---- augmentation --------------------------------------------------------------------------------------


def test_augmented_image_is_a_crop_of_the_mirrored_image_perhaps_flipped() -> None:
    x = torch.rand(200, 3, 9, 12, dtype=torch.float64)
    out = augment(x, torch.arange(1000, 1200), seed=5, epoch=2)
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4), mode="reflect")
    seen = set()
    for sample, result in zip(padded, out, strict=True):
        matches = [
            (i, j, flip)
            for i in range(9)
            for j in range(9)
            for flip in (False, True)
            if torch.equal(
                sample[:, i : i + 9, j : j + 12].flip(2) if flip else sample[:, i : i + 9, j : j + 12], result
            )
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {i for i, _, _ in seen} == {j for _, j, _ in seen} == set(range(9))
    assert {flip for _, _, flip in seen} == {False, True}


def test_shifts_and_flips_are_equally_frequent_and_independent() -> None:
    # Row and column number as an image: the first pixel of the result tells the shift, its neighbour the flip.
    n = 20000
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    out = augment(torch.stack([rows, columns]).expand(n, 2, 32, 32), torch.arange(n), 0, 0)
    middle = out[:, :, 16, 16]
    flipped = out[:, 1, 16, 17] < middle[:, 1]
    down = (middle[:, 0] - 16).long()
    # A flip shows column 15 where column 16 was.
    right = torch.where(flipped, middle[:, 1] - 15, middle[:, 1] - 16).long()
    cells = torch.bincount((down + 4) * 18 + (right + 4) * 2 + flipped, minlength=162).double()
    assert len(cells) == 162
    expected = n / 162
    # Chi-square with 161 degrees of freedom: mean 161, standard deviation 18.
    assert float(((cells - expected) ** 2 / expected).sum()) < 161 + 5 * 18


def test_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    x = torch.rand(64, 3, 32, 32)
    indices = torch.randperm(5000)[:64]
    out = augment(x, indices, seed=1, epoch=3)
    order = torch.randperm(64)
    assert torch.equal(augment(x[order], indices[order], 1, 3), out[order])
    assert torch.equal(torch.cat([augment(x[i : i + 1], indices[i : i + 1], 1, 3) for i in range(64)]), out)
    for seed, epoch, shift in ((2, 3, 0), (1, 4, 0), (1, 3, 1)):
        other = augment(x, indices + shift, seed, epoch)
        # Of 162 outcomes two draws share one by chance.
        assert sum(torch.equal(a, b) for a, b in zip(out, other, strict=True)) < 6


def test_augment_survives_subset_and_is_refused_for_other_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read("cifar10", write_cifar(tmp_path), subset=50).augment
    import ima_dist.data.moons as moons

    points = Split(torch.rand(20, 2), torch.arange(20) % 2)
    flat = DataSet(train=points, val=points, test=points, box=None, num_classes=2, augment=True)
    monkeypatch.setattr(moons, "load", lambda config, seed: flat)
    with pytest.raises(ConfigError, match=r"augment needs images .channels, height, width. of more than 4 pixels"):
        load(DataConfig(source="ima_dist.data.moons:load"), 0)


def test_training_step_and_margin_pass_see_the_same_augmented_image(tmp_path: Path) -> None:
    directory = write_cifar(tmp_path / "data", 10)
    config, _ = workers.start_run(tmp_path / "run", "cifar10", data__dir=str(directory), **CIFAR_RUN)
    data = load(config.data, config.seed)
    training = Training(config, RunDir(tmp_path / "run"), data, torch.device("cpu"))
    seen: list[dict[int, torch.Tensor]] = [{}, {}]

    def watched(function: Callable[..., Any], where: dict[int, torch.Tensor]) -> Callable[..., Any]:
        def call(network: Any, batch: Any) -> Any:
            where.update({(batch.epoch, i): x for i, x in zip(batch.indices.tolist(), batch.x, strict=True)})
            return function(network, batch)

        return call

    training.method.attack = watched(training.method.attack, seen[0])  # type: ignore[method-assign]
    training.method.estimate = watched(training.method.estimate, seen[1])  # type: ignore[attr-defined]
    training.fit()
    assert seen[0].keys() == seen[1].keys() == {(e, i) for e in range(2) for i in range(len(data.train))}
    indices = torch.arange(len(data.train))
    for epoch in range(2):
        expected = augment(data.train.x.double() / 255, indices, config.seed, epoch)
        for where in seen:
            assert torch.equal(torch.stack([where[epoch, i] for i in indices.tolist()]), expected)


def test_augmented_training_is_equal_on_one_and_two_workers(tmp_path: Path) -> None:
    options = {**CIFAR_RUN, "data__dir": str(write_cifar(tmp_path / "data", 10))}
    states = []
    for count in (1, 2):
        path = tmp_path / str(count)
        config, _ = workers.start_run(path, "cifar10", **options)
        workers.run_on(count, workers.train, config, path)
        states.append(workers.final_state(config, path))
    assert workers.largest_difference(states[0][0], states[1][0]) < 1e-9
    assert float((states[0][1] - states[1][1]).abs().max()) < 1e-9


# ---- every preset --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_data_and_a_network_that_fit(tmp_path: Path, preset: str) -> None:
    options: dict[str, Any] = {}
    if preset != "moons":
        WRITERS.get(preset, write_idx)(tmp_path)
        options["data.dir"] = str(tmp_path)
    config = make_config(preset, options)
    data = load(config.data, config.seed)
    network = make_network(config, data).eval()
    x = data.test.x[:2]
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    with torch.no_grad():
        logits = network(x)
    assert logits.shape == (2, data.num_classes)
    assert torch.isfinite(logits).all()
