"""Run directories: how they are made, and what is read from them."""

from __future__ import annotations

import errno
import os
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import PRESETS, make_config
from ima_dist.config.schema import Config
from ima_dist.margins import snapshots
from ima_dist.rundir import directory as rundir
from ima_dist.rundir.directory import RunDir, default_name, versions
from ima_dist.rundir.files import read_parquet, write_json
from tests.support.run_files import HISTORY, write_snapshot


@pytest.mark.parametrize("preset", PRESETS)
def test_config_round_trip(preset: str, tmp_path: Path) -> None:
    config = make_config(preset, {"method": "ce", "optimizer.lr": 1e-5, "data.subset": 400})
    run = RunDir.create(config, tmp_path / "a" / "b")
    assert RunDir.open(tmp_path / "a" / "b").config() == config
    tree = yaml.safe_load(run.config_path.read_text(encoding="utf-8"))
    assert tree["fingerprint"] == config.fingerprint()
    wanted = {"ima_dist", "python", "torch", "torchvision", "ray", "numpy", "advertorch"}
    assert set(tree["versions"]) == wanted
    assert tree["versions"]["numpy"] == np.__version__
    assert tree["versions"]["python"] == sys.version.split()[0]


def test_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "_PACKAGES", ("numpy", "no-such-package-here"))
    assert versions()["no-such-package-here"] is None


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDir("runs/x")
    assert run.path == tmp_path / "runs" / "x"
    assert run.margins_dir == tmp_path / "runs" / "x" / "margins"
    assert run.outcomes_path.name == "outcomes.parquet"


def test_create_in_an_existing_run_is_refused(run: RunDir, config: Config) -> None:
    before = run.config_path.read_bytes()
    with pytest.raises(ConfigError, match=r"already holds a run: continue it with --resume .*another --out"):
        RunDir.create(config, run.path)
    assert run.config_path.read_bytes() == before


def test_create_takes_an_empty_directory_but_no_other(tmp_path: Path, config: Config) -> None:
    (tmp_path / "empty").mkdir()
    assert RunDir.create(config, tmp_path / "empty").config() == config
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds files but is not a run: give another --out"):
        RunDir.create(config, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="is a file: give another --out"):
        RunDir.create(config, tmp_path / "full" / "thesis.tex")
    with pytest.raises(ConfigError, match=r"cannot be written \(Not a directory\)"):
        RunDir.create(config, tmp_path / "full" / "thesis.tex" / "run")


def test_create_on_a_full_disk_leaves_nothing(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\): give another --out"):
        RunDir.create(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_create_in_a_read_only_directory(tmp_path: Path, config: Config) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)"):
        RunDir.create(config, tmp_path / "run")


def test_open_needs_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a run directory: it has no config\.yaml"):
        RunDir.open(tmp_path)
    with pytest.raises(ConfigError, match="is not a run directory"):
        RunDir.open(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("", "not a mapping"),
        ("just text", "not a mapping"),
        ("preset: moons\nmehtod: ima\n", "config.yaml: The configuration has an unknown entry"),
    ],
)
def test_damaged_config_is_named(run: RunDir, text: str, message: str) -> None:
    run.config_path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        run.config()
    assert str(run.config_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_of_main_in_an_old_config_is_said_with_the_remedy(run: RunDir) -> None:
    text = run.config_path.read_text().replace("ima_dist.models:moons_mlp", "__main__:build")
    assert "__main__" in text
    run.config_path.write_text(text)
    with pytest.raises(
        ConfigError, match=r"In .*config.yaml: .* put it into a file, such as mine.py, and name it mine:build"
    ):
        run.config()


def test_default_name(config: Config) -> None:
    assert default_name(config, datetime(2026, 11, 22, 22, 7)) == "moons-ima-linf-seed0-20261122-220700"


def test_status_and_summary(run: RunDir) -> None:
    assert run.summary() == {}
    assert run.status == "unfinished"
    write_json(run.summary_path, {"status": "done", "clean_accuracy": 1.0})
    assert run.status == "done"
    assert run.summary()["clean_accuracy"] == 1.0


def test_history_round_trip(run: RunDir) -> None:
    assert run.read_history() == []
    run.write_history(HISTORY[:1])
    run.write_history(HISTORY)
    rows = run.read_history()
    assert rows == HISTORY
    assert isinstance(rows[0]["train_seconds"], float)
    schema = read_parquet(run.history_path).schema
    assert schema.field("margin_quantiles").type == pa.list_(pa.float64())
    assert schema.field("margin_histogram").type == pa.list_(pa.int64())


def test_history_of_a_method_without_margins(run: RunDir) -> None:
    rows = [
        {k: None if "margin" in k or k == "share_at_max" else v for k, v in HISTORY[0].items()},
        {**HISTORY[1], "margin_mean": None, "extra_loss": 0.5},
    ]
    run.write_history(rows)
    back = run.read_history()
    assert back[0] == {**rows[0], "extra_loss": None}
    assert back[1] == rows[1]
    run.write_history([])
    assert run.read_history() == []


def test_newest_margins_skips_incomplete_and_damaged_epochs(run: RunDir) -> None:
    assert run.newest_margins() is None
    for epoch in (2, 9, 10):
        _, last = write_snapshot(run, epoch, [0.01 * epoch] * 6)
    write_snapshot(run, 11, [0.3, 0.3], whole=False)
    newest = run.newest_margins()
    assert newest is not None
    assert newest[0] == 10
    assert sorted(newest[1].column("index").to_pylist()) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(newest[1].column("margin").to_numpy(), 0.1, rtol=1e-6)

    last.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"epoch=0010/shard-0001-of-0002\.parquet cannot be read"):
        newest = run.newest_margins()
    assert newest is not None
    assert newest[0] == 9
    (last.parent / snapshots.MANIFEST).write_text("{}")
    with pytest.warns(UserWarning, match=r"epoch=0010/manifest\.json is damaged"):
        newest = run.newest_margins()
    assert newest is not None
    assert newest[0] == 9
