"""Files are written whole or not at all, and damaged ones are named."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import (
    read_json,
    read_parquet,
    replacing,
    why_unwritable,
    write_json,
    write_parquet,
    write_text_atomic,
)
from ima_dist.rundir.remedies import remedy


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("outcomes.parquet", "restore it from a copy, or delete it, which loses the answers for single samples until"),
        ("certificates.parquet", "python -m ima_dist.evaluate '/a run' --attack smoothing"),
        ("examples/flips.npz", "delete it, and make it again: python -m ima_dist.evaluate '/a run'"),
        ("dataset/runs/a.parquet", "delete it: it is made again from the runs"),
        ("state.json", "restore it from a copy"),
    ],
)
def test_the_advice_for_a_damaged_file_says_what_is_lost(file: str, advice: str) -> None:
    said = remedy(Path("/a run") / file)
    assert advice in said
    assert said.count("restore it") <= 1


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("kind", ["text", "json", "parquet"])
def test_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "file"
    write = {
        "text": lambda: write_text_atomic(path, "text"),
        "json": lambda: write_json(path, {}),
        "parquet": lambda: write_parquet(path, pa.table({"a": [1]})),
    }[kind]
    with pytest.raises(OSError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_the_name_in_an_error_is_the_users() -> None:
    with pytest.raises(OSError, match="/proc/results") as error, replacing(Path("/proc/results.csv")):
        pass
    assert error.value.filename == "/proc/results.csv"


def test_why_a_place_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / "file" / "x.csv") == "Not a directory"
    assert why_unwritable(tmp_path / "new" / "x.csv") is None


def test_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")
    with replacing(path) as file:
        file.write("new ε".encode())
        file.flush()
        assert path.read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 2
    assert path.read_text(encoding="utf-8") == "new ε"


def test_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text_atomic(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_json_round_trip_and_values_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf, 1.5],
        "nested": {"x": (np.float32(0.5), np.int64(3), np.float32(math.nan), np.bool_(True))},
        "text": "ε",
        "none": None,
    }
    write_json(path, value)
    expected = {
        "nan": None,
        "inf": [None, None, 1.5],
        "nested": {"x": [0.5, 3, None, True]},
        "text": "ε",
        "none": None,
    }
    assert read_json(path) == expected
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == expected


def test_missing_json_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent.json") is None


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1]", b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.json is damaged"):
        read_json(path)


def test_parquet_round_trip_adds_no_partition_column(tmp_path: Path) -> None:
    path = tmp_path / "epoch=0003" / "shard.parquet"
    table = pa.table({"index": [0, 1], "margin": pa.array([0.1, 0.2], pa.float32())})
    write_parquet(path, table)
    assert read_parquet(path).equals(table)


def test_damaged_and_missing_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(FileNotFoundError):
        read_parquet(path)
    write_parquet(path, pa.table({"a": list(range(1000))}))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"t\.parquet cannot be read as Parquet \(.*\): restore it from a copy\.$"):
        read_parquet(path)
