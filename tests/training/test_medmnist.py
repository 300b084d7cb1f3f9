"""PathMNIST: MedMNIST's file, as published."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.schema import DataConfig
from ima_dist.data import medmnist, prepare
from ima_dist.data.load import load
from ima_dist.training.network import make_network
from tests.support import workers
from tests.support.datafiles import counts, write_pathmnist
from tests.support.web import serve

SOURCE = "ima_dist.data.medmnist:load"


def read(directory: Path | None, **options: Any) -> Any:
    return load(DataConfig(source=SOURCE, dir=None if directory is None else str(directory), **options), 0)


def test_the_parts_are_those_of_the_file(tmp_path: Path) -> None:
    data = read(write_pathmnist(tmp_path))
    stored = np.load(tmp_path / "pathmnist.npz")
    for part in ("train", "val", "test"):
        split = getattr(data, part)
        assert split.x.dtype == torch.uint8
        assert np.array_equal(split.x.numpy(), stored[f"{part}_images"].transpose(0, 3, 1, 2))
        assert split.y.tolist() == stored[f"{part}_labels"][:, 0].tolist()
    assert [len(data.train), len(data.val), len(data.test)] == [90, 18, 30]
    assert (data.box, data.num_classes, data.augment) == ((0.0, 1.0), 9, False)
    assert data.class_names[3] == "lymphocytes"
    assert counts(read(tmp_path, subset=27).train, 9) == [3] * 9


@pytest.mark.parametrize(
    "inside", ["given", "given/medmnist", "here/data", "home/.medmnist", "home/.cache/ima_dist/medmnist"]
)
def test_where_the_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_pathmnist(tmp_path / inside)
    assert len(read(tmp_path / "given" if inside.startswith("given") else None).train) == 90


def test_a_prepared_copy_has_the_same_samples(tmp_path: Path) -> None:
    data = read(write_pathmnist(tmp_path / "files"))
    made = prepare.prepare("pathmnist", str(tmp_path / "files"), str(tmp_path / "copy"))
    assert made.unknown == ("pathmnist.npz",)  # it is not the published file
    again = read(tmp_path / "copy")
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(again, part).x, getattr(data, part).x)
        assert torch.equal(getattr(again, part).y, getattr(data, part).y)
    assert again.digest() == data.digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_images": None}, "holds no array val_images"),
        ({"test_labels": None}, "holds no array test_labels"),
        ({"train_images": np.zeros((90, 64, 64, 3), np.uint8)}, r"train_images of uint8 \(90, 64, 64, 3\) instead of"),
        ({"train_images": np.zeros((90, 28, 28), np.uint8)}, r"train_images of uint8 \(90, 28, 28\) instead of"),
        ({"val_images": np.zeros((18, 28, 28, 3))}, "val_images of float64"),
        ({"val_images": np.zeros((0, 28, 28, 3), np.uint8)}, "no images in val_images"),
        ({"train_labels": np.zeros((89, 1), np.uint8)}, r"train_labels of uint8 \(89, 1\) instead of .*\(90, 1\)"),
        ({"train_labels": np.zeros((90, 1))}, "train_labels of float64"),
        ({"test_labels": np.full((30, 1), 9)}, "has the label 9, outside 0 to 8"),
    ],
)
def test_a_file_of_another_set_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_pathmnist(tmp_path, **changes)
    with pytest.raises(ConfigError, match=f"^PathMNIST: {tmp_path}/pathmnist.npz .*{message}.*--data.dir"):
        read(tmp_path)


def test_damaged_and_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pathmnist(tmp_path) / "pathmnist.npz"
    content = path.read_bytes()
    pickled = np.array([{}], dtype=object)
    for damage in (content[: len(content) // 2], b"", b"<html>Not found</html>" * 100):
        path.write_bytes(damage)
        with pytest.raises(ConfigError, match=rf"{path} cannot be read as .*pass --data\.dir"):
            read(tmp_path)
    np.savez(path, train_images=pickled)
    with pytest.raises(ConfigError, match="cannot be read as"):
        read(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    path.unlink()
    with pytest.raises(ConfigError, match=r"pathmnist\.npz is in none of .*--data\.download"):
        read(None)


def test_the_file_is_fetched_and_its_checksum_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = write_pathmnist(tmp_path / "site")
    md5 = hashlib.md5((site / "pathmnist.npz").read_bytes()).hexdigest()
    with serve(site) as address:
        urls = [f"{address}nowhere.npz", f"{address}pathmnist.npz?download=1"]

        def with_checksum(checksum: str) -> None:
            found = replace(medmnist.PATHMNIST, downloads=lambda: [(urls, "pathmnist.npz", checksum)])
            monkeypatch.setattr(medmnist, "PATHMNIST", found)

        with_checksum("0" * 32)
        with pytest.raises(ConfigError, match=r"pathmnist\.npz could not be fetched from .*copy the file to"):
            read(tmp_path / "a", download=True)
        with_checksum(md5)
        assert len(read(tmp_path / "a", download=True).train) == 90
    assert len(read(tmp_path / "a").train) == 90  # offline from now on


def test_the_preset_trains_offline_from_a_directory(tmp_path: Path) -> None:
    config = make_config("pathmnist")
    assert (config.norm, config.eps_max, config.delta_eps, config.epochs) == ("l2", 3.0, 0.03, 150)
    assert make_config("pathmnist", {"method": "adv", "eps_max": 0.01}).delta_eps is None
    small = {"data__subset": 9, "batch_size": 9, "epochs": 1, "attack__steps": 1, "data__dir": str(tmp_path / "files")}
    write_pathmnist(tmp_path / "files")
    config, run = workers.start_run(tmp_path / "run", "pathmnist", **small)
    workers.train(config, run.path)
    assert [row["epoch"] for row in run.read_history()] == [1]
    network = make_network(config, load(config.data, 0))
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules()) == 20
    stem = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    assert (stem.kernel_size, stem.stride) == ((3, 3), (1, 1))
