"""Files of a few kilobytes that stand for gigabytes, and cells that a spreadsheet would run."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from ima_dist.config.errors import ConfigError, cut
from ima_dist.config.plain_yaml import dump_plain, load_plain
from ima_dist.dashboard.parts import Grid
from ima_dist.report.csvfiles import curves_csv
from ima_dist.results.text import harmless
from ima_dist.rundir import files
from ima_dist.rundir import run as run_module
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_arrays, read_json, read_parquet, write_parquet
from ima_dist.rundir.run import Run
from tests.support.summaries import make_run
from tests.support.views import client


def bomb() -> str:
    """Nine levels of lists of nine: a thousand million words."""
    lines = ['a: &a ["lol", "lol", "lol", "lol", "lol", "lol", "lol", "lol", "lol"]']
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


def test_a_configuration_with_aliases_is_refused_in_one_short_sentence(tmp_path):
    run = make_run(tmp_path / "run", "moons", {0.1: 0.5})
    whole = run.config_path.read_text()
    run.config_path.write_text(bomb())
    with pytest.raises(ConfigError, match="it has aliases") as caught:
        run.config()
    assert len(str(caught.value)) < 300
    run.config_path.write_text(whole.replace("method: ima", "method: [" + "very long, " * 20_000 + "]"))
    with pytest.raises(ConfigError) as caught:
        run.config()
    assert len(str(caught.value)) < 1500
    run.config_path.write_text("a: " + "[" * 5000 + "]" * 5000)
    with pytest.raises(ConfigError, match="not valid YAML"):
        run.config()
    answer = client(tmp_path).get("/csv/runs/runs.csv")
    assert answer.status_code == 404  # no run can be read, and nobody has waited for it
    assert len(answer.text) < 1000


def test_what_we_write_never_has_aliases():
    shared = [0.1, 0.2]
    text = dump_plain({"first": shared, "second": shared, "ε": "x"})
    assert load_plain(text) == yaml.safe_load(text) == {"first": [0.1, 0.2], "second": [0.1, 0.2], "ε": "x"}
    assert "&" not in text


def test_files_far_larger_than_ours_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_JSON", 1000)
    (tmp_path / "large.json").write_text(json.dumps({"text": "x" * 1000}))
    with pytest.raises(ConfigError, match="far larger"):
        read_json(tmp_path / "large.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    monkeypatch.setattr(files, "LARGEST_JSON", 1 << 20)
    with pytest.raises(ConfigError, match="nested too deeply"):
        read_json(tmp_path / "deep.json")
    monkeypatch.setattr(files, "LARGEST_ARRAYS", 10_000)
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros(100_000))
    assert (tmp_path / "zeros.npz").stat().st_size < 5000
    with pytest.raises(ConfigError, match="far larger"):
        read_arrays(tmp_path / "zeros.npz", ("x",))
    write_parquet(tmp_path / "long.parquet", pa.table({"epoch": pa.repeat(pa.scalar(1), 1_000_000)}))
    assert (tmp_path / "long.parquet").stat().st_size < 10_000
    assert read_parquet(tmp_path / "long.parquet", 1_000_000).num_rows == 1_000_000
    with pytest.raises(ConfigError, match="1,000,000 rows, too many"):
        read_parquet(tmp_path / "long.parquet", 999_999)


def test_an_array_that_claims_more_than_the_memory_is_refused(tmp_path):
    head = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as packed:
        packed.writestr("x.npy", head.ljust(127) + b"\n")
    with pytest.raises(ConfigError, match="damaged"):
        read_arrays(tmp_path / "claims.npz", ("x",))


def test_a_run_with_such_files_is_shown_without_them(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "moons", {0.1: 0.5})
    monkeypatch.setattr(run_module, "MOST_ROWS", 10)
    run.write_history([{"epoch": epoch, "val_accuracy": 0.5} for epoch in range(1, 100)])
    run.figures_dir.mkdir()
    (run.figures_dir / "equilibrium.png").write_bytes(b"no picture")
    found = Run(run)
    assert found.history == []
    assert "99 rows, too many" in found.problems["history"]
    assert found.equilibrium_picture is None
    assert "not a picture of ours" in found.problems["equilibrium_picture"]
    assert client(tmp_path).get("/picture?run=run&name=equilibrium.png").status_code == 404


def test_texts_are_cut_in_their_middle():
    assert cut("short") == "short"
    text = cut("a" * 5000 + "z" * 5000)
    assert len(text) < 700
    assert text.startswith("aaa")
    assert text.endswith("zzz")


@pytest.mark.parametrize("cell", ["=1+1", "+1", "@SUM(A1)", "-1+1", "\t=1", "\r=1"])
def test_cells_that_a_spreadsheet_would_run_get_an_apostrophe(tmp_path, cell):
    safe = f"'{cell}".replace("\r", " ")
    assert harmless(cell) == safe
    grid = Grid("x", "x", ["run", "value"], [{"run": cell, "value": -0.5}])
    (row,) = csv.DictReader(io.StringIO(grid.csv(), newline=""))
    assert row == {"run": safe, "value": "-0.5"}
    run = Run(make_run(tmp_path / "run", "moons", {0.1: 0.5}), cell)
    assert safe in curves_csv([run])


def test_numbers_and_usual_texts_stay_as_they_are():
    for value in (-1, -0.5, None, True, "moons/ima", "", "a=b"):
        assert harmless(value) is value


def test_the_directory_keeps_what_it_had(tmp_path: Path):
    run = RunDir.create(make_run(tmp_path / "first", "moons", {}).config(), tmp_path / "second")
    assert run.config() == RunDir(tmp_path / "first").config()
