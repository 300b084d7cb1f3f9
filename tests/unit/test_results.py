"""Run directories, the paper's tables, the comparison table and the figures."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest
import yaml

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import PRESETS, make_config
from ima_dist.config.schema import Config
from ima_dist.figures import png
from ima_dist.margins import snapshots
from ima_dist.results import paper
from ima_dist.results.statistics import wilson_interval
from ima_dist.results.table import robustness_table
from ima_dist.rundir import directory as rundir
from ima_dist.rundir.curves import Point, format_noise
from ima_dist.rundir.directory import RunDir, default_name, versions
from ima_dist.rundir.files import read_json, read_parquet, replacing, write_json, write_parquet, write_text_atomic
from ima_dist.rundir.run import Run

# Table 1 of the paper (Moons, L∞).
NOISE = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
TABLE_1 = {
    "ima": [1.0, 0.999, 0.9975, 0.9915, 0.9755, 0.927, 0.823],
    "mma": [1.0, 0.9985, 0.993, 0.957, 0.882, 0.772, 0.597],
    "trades": [0.996, 0.9805, 0.9575, 0.936, 0.906, 0.875, 0.8255],
    "adv": [0.9975, 0.985, 0.957, 0.9365, 0.9095, 0.883, 0.822],
    "ce": [1.0, 1.0, 0.9975, 0.9855, 0.935, 0.7995, 0.606],
}
HISTORY = [
    {
        "epoch": epoch,
        "train_loss": 0.5 / epoch,
        "train_accuracy": 1 - 0.1 / epoch,
        "val_accuracy": None if epoch == 1 else 1 - 0.2 / epoch,
        "margin_mean": 0.01 * epoch,
        "margin_quantiles": [0.002 * epoch * i for i in range(11)],
        "margin_histogram": [epoch] * 50,
        "share_at_max": 0.25,
        "evaluations": 1000 * epoch,
        "train_seconds": 3,
        "margin_seconds": 1.5,
        "samples_per_second": 9000.0,
    }
    for epoch in (1, 2, 3)
]


def point(attack: str, noise: float, accuracy: float | None, **changes: Any) -> Point:
    return Point.from_json(entry(attack, noise, accuracy, **changes))


def entry(attack: str, noise: float, accuracy: float | None, **changes: Any) -> dict[str, Any]:
    base = {"attack": attack, "loss": "both", "norm": "linf", "noise": noise, "split": "test"}
    rest = {"accuracy": accuracy, "samples": 2000, "steps": 100, "step_scale": 4.0, "epoch": 30}
    return {**base, **rest, **changes}


@pytest.fixture
def config() -> Config:
    return make_config("moons")


@pytest.fixture
def run(config: Config, tmp_path: Path) -> RunDir:
    return RunDir.create(config, tmp_path / "run")


# ---- files ---------------------------------------------------------------------------------------------


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
    with pytest.raises(ConfigError, match=r"t\.parquet cannot be read as Parquet \(.*\): delete it"):
        read_parquet(path)


# ---- run directories -----------------------------------------------------------------------------------


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


def write_snapshot(run: RunDir, epoch: int, margins: list[float], world: int = 2, whole: bool = True) -> list[Path]:
    """The shards of a snapshot by ``world`` workers with equally many samples each."""
    directory = run.margins_dir / f"epoch={epoch:04d}"
    directory.mkdir(parents=True)
    values, each = np.array(margins, np.float32), len(margins) // world

    def columns(start: int, stop: int) -> dict[str, np.ndarray]:
        flags = np.ones(stop - start, bool)
        return {"margin": values[start:stop], "label": np.arange(start, stop) % 2, "correct": flags, "crossed": ~flags}

    shards = [snapshots.write_shard(directory, r, world, r * each, (r + 1) * each, columns) for r in range(world)]
    if whole:
        snapshots.write_manifest(directory, snapshots.Manifest(tuple(shards), None))
    return [directory / shard.file for shard in shards]


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


# ---- the paper -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TABLE_1)
def test_paper_table_1(method: str) -> None:
    assert paper.curve("moons", "linf", method, 0.3) == (
        1,
        dict(zip(NOISE, TABLE_1[method], strict=True)),
    )


@pytest.mark.parametrize(
    ("query", "table", "values"),
    [
        (("fashion_mnist", "linf", "adv", 0.2), 2, {0.0: 0.9101, 0.3: 0.0313}),
        (("fashion_mnist", "l2", "adv", 3.0), 3, {0.5: 0.641, 5.0: 0.0229}),
        (("fashion_mnist", "l2", "ddn", None), 3, {0.0: 0.8666, 5.0: 0.0781}),
        (("svhn", "linf", "adv", 0.1), 4, {0.0: 0.9209, 0.005: 0.2112}),
        (("svhn", "l2", "adv", 1.0), 5, {0.0: 0.873, 2.0: 0.0326}),
        (("covid_ct", "linf", "rand", 0.2), 6, {0.0: 0.965, 0.01: 0.3575}),
        (("mnist", "l2", "ima", None), 7, {0.0: 0.9841, 4.0: 0.0843}),
        (("mnist", "linf", "ima", None), 8, {0.0: 0.9901, 0.4: 0.7856}),
        (("mnist", "linf", "mma", None), 8, {0.0: 0.9895, 0.4: 0.8816}),
        (("cifar10", "l2", "mma", None), 10, {0.0: 0.8211, 2.5: 0.1250}),
        (("cifar10", "linf", "ima", None), 11, {4 / 255: 0.6540, 32 / 255: 0.0073}),
        (("cifar10", "linf", "mma", None), 11, {32 / 255: 0.0907}),
    ],
)
def test_paper_curves(query: tuple[str, str, str, float | None], table: int, values: dict[float, float]) -> None:
    found = paper.curve(*query)
    assert found is not None
    assert found[0] == table
    assert {level: found[1][level] for level in values} == values


@pytest.mark.parametrize(
    "query",
    [
        ("moons", "l2", "ima", None),
        ("moons", "linf", "adv", 0.2),
        ("moons", "linf", "adv", None),
        ("moons", "linf", "ddn", None),
        ("mnist", "linf", "ce", None),
        ("nowhere", "linf", "ima", None),
    ],
)
def test_rows_the_paper_does_not_have(query: tuple[str, str, str, float | None]) -> None:
    assert paper.curve(*query) is None


def test_own_data_or_network_are_not_set_beside_the_paper() -> None:
    assert paper.row_of(make_config("moons", {})) == paper.curve("moons", "linf", "ima")
    assert paper.row_of(make_config("moons", {"data.source": "mine:load"})) is None
    assert paper.row_of(make_config("moons", {"model.factory": "mine:network"})) is None


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_preset_noise_levels_are_those_of_the_paper(preset: str, norm: str) -> None:
    found = paper.curve(preset, norm, "ima")
    if found is None:
        assert (preset, norm) in {("moons", "l2"), ("covid_ct", "l2")}
        return
    assert make_config(preset, {"norm": norm}).eval.noise == pytest.approx(sorted(found[1]))


def test_paper_cells() -> None:
    everything = paper.cells()
    assert len(everything) == 857 - 3  # three cells cannot be read
    assert sum(c.legible == "guess" for c in everything) == 27
    assert all(0 <= c.accuracy <= 1 for c in everything)
    guessed = [c.noise for c in paper.cells(table=6, method="ima") if c.legible == "guess"]
    assert guessed == [0.01, 0.03, 0.1]
    assert {c.split for c in paper.cells(table=9)} == {"first 100 of test"}
    assert len(paper.cells(table=16, split="validation")) == 6
    assert paper.cells(dataset="svhn", norm="l2", method="trades", attack="pgd100", split="test")[0] == paper.Cell(
        table=5,
        dataset="svhn",
        norm="l2",
        attack="pgd100",
        split="test",
        method="trades",
        noise=0.0,
        accuracy=0.8652,
        legible="yes",
    )


# ---- the table -----------------------------------------------------------------------------------------


def test_table_numbers() -> None:
    ours = [0.9995, 0.999, 0.994, 0.9845, 0.9665, 0.9325, 0.833]
    curves = [point("pgd100", x, a) for x, a in zip(NOISE, ours, strict=True)]
    curves += [point("worst", x, a - 0.01) for x, a in zip(NOISE, ours, strict=True)]
    curves += [point("pgd100", 0.3, 0.1, loss="ce"), point("pgd100", 0.3, 0.2, split="validation")]
    found = paper.curve("moons", "linf", "ima")
    assert found is not None
    lines = robustness_table(curves, found[1], found[0]).splitlines()
    assert lines[0] == "Accuracy on the test set by noise level (L∞)"
    assert lines[1].split() == ["noise", "0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]
    assert lines[2].split() == ["pgd100", *(f"{a:.4f}" for a in ours)]
    assert lines[3].split() == ["paper", "(Table", "1)", *(f"{a:.4f}" for a in TABLE_1["ima"])]
    assert lines[4].split() == (
        ["difference", "-0.0005", "+0.0000", "-0.0035", "-0.0070", "-0.0090", "+0.0055", "+0.0100"]
    )
    assert lines[5].split() == ["worst", *(f"{a - 0.01:.4f}" for a in ours)]
    assert len({len(line) for line in lines[1:6]}) == 1  # the columns are aligned
    assert lines[6] == "Samples: 2,000"
    half = (lambda b: (b[1] - b[0]) / 2)(wilson_interval(0.823, 2000))
    assert lines[7].startswith(f"Largest uncertainty: ±{half:.4f} (worst at noise 0.3;")
    assert len(lines) == 8


def test_table_with_levels_that_do_not_match() -> None:
    curves = [
        point("pgd100", np.float32(0.3).item(), 0.8),
        point("pgd100", 0.07, 0.9),
        point("worst", 0.07, None),
    ]
    lines = robustness_table(curves, {0.3: 0.75, 0.1: 0.5}, 1).splitlines()
    assert lines[1].split() == ["noise", "0.07", "0.3"]
    assert lines[2].split() == ["pgd100", "0.9000", "0.8000"]
    assert lines[3].split()[-2:] == ["-", "0.7500"]
    assert lines[4].split() == ["difference", "-", "+0.0500"]
    assert not any(line.startswith("worst") for line in lines)


def test_table_compares_only_with_the_attack_of_the_paper() -> None:
    found = paper.curve("mnist", "linf", "ima")
    assert found is not None
    curves = [point("pgd100", 0.4, 0.8), point("pgd-mma", 0.4, 0.78)]
    lines = robustness_table(curves, found[1], found[0]).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["noise", "pgd100", "pgd-mma", "paper", "difference"]
    assert lines[5].split() == ["difference", "-0.0056"]
    other = robustness_table(curves[:1], found[1], found[0])
    assert "paper (Table 8), pgd-mma" in other
    assert "difference" not in other


def test_table_without_paper() -> None:
    text = robustness_table([point("pgd100", 0.1, 0.5)], None, None)
    assert "paper" not in text
    assert "difference" not in text


def test_table_never_mixes_epochs() -> None:
    curves = [
        point("pgd100", 0.0, 0.7, epoch=10),
        point("pgd100", 0.1, 0.6, epoch=10),
        point("pgd100", 0.1, 0.5),
    ]
    lines = robustness_table(curves, None, None).splitlines()
    assert lines[1].split() == ["noise", "0.1"]
    assert lines[2].split() == ["pgd100", "0.5000"]


def test_table_tells_of_few_samples() -> None:
    few = robustness_table([point("pgd100", 0.1, 0.5, samples=199)], None, None)
    assert "Samples: 199 (fewer than 200" in few
    assert "fewer" not in robustness_table([point("pgd100", 0.1, 0.5, samples=200)], None, None)
    mixed = robustness_table([point("pgd100", 0.1, 0.5), point("spsa", 0.1, 0.5, samples=100)], None, None)
    assert "Samples: pgd100 2,000; spsa 100 (fewer than 200" in mixed
    assert "(spsa at noise 0.1;" in mixed


def test_table_of_nothing() -> None:
    assert "python -m ima_dist.evaluate" in robustness_table([], {0.1: 0.5}, 1)


def test_wilson_interval() -> None:
    # The bounds are the p with |p - accuracy| = 1.96 sqrt(p (1 - p) / n): in closed form for these two.
    z = 1.959963984540054
    half = z / (2 * math.sqrt(100 + z**2))
    assert wilson_interval(0.5, 100) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-9)
    assert wilson_interval(1.0, 10) == pytest.approx((10 / (10 + z**2), 1.0), abs=1e-9)


@pytest.mark.parametrize(
    ("level", "text"),
    [(0.0, "0"), (0.05, "0.05"), (8 / 255, "8/255"), (32 / 255, "32/255"), (1.0, "1"), (0.005, "0.005")],
)
def test_noise_levels_are_written_as_in_the_paper(level: float, text: str) -> None:
    assert format_noise(level) == text
    assert format_noise(round(level, 6)) == text


# ---- figures -------------------------------------------------------------------------------------------


def check_image(path: Path) -> np.ndarray:
    """(H, W, 4) pixels in [0, 1] of a PNG that is 1200 wide, not too flat and not empty."""
    image = matplotlib.image.imread(path)
    assert image.shape[1] == 1200
    assert 500 <= image.shape[0] <= 1200
    assert (image[..., :3].min(axis=2) < 0.5).mean() > 0.002  # lines and letters
    return np.asarray(image)


def has_colour(image: np.ndarray, colour: str) -> bool:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return bool((np.abs(image[..., :3] - rgb).max(axis=2) < 0.02).sum() > 50)


def boundary_arrays() -> dict[str, Any]:
    x, y = np.linspace(-1, 2, 40), np.linspace(-1, 1, 40)
    points = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    above = np.broadcast_to(1 / (1 + np.exp(-20 * y))[:, None], (40, 40))  # class 1 lies above y = 0
    return {
        "grid_x": x,
        "grid_y": y,
        "probability": above,
        "points": points,
        "labels": (points[:, 1] > 0) * 1,
    }


def test_decision_boundary_lies_where_the_probability_is_a_half(tmp_path: Path) -> None:
    arrays = {**boundary_arrays(), "points": np.zeros((0, 2)), "labels": np.zeros(0, dtype=int)}
    png.decision_boundary(tmp_path / "b.png", **arrays)
    image = check_image(tmp_path / "b.png")
    blue = image[..., 2] - image[..., 0]
    middle = slice(300, 700)  # columns left of the legend, right of the axis
    # Faint orange (class 1) above, faint blue (class 0) below: rows count from the top.
    rows = blue[:, middle].mean(axis=1)
    orange_rows, blue_rows = np.flatnonzero(rows < -0.1), np.flatnonzero(rows > 0.05)
    assert len(orange_rows) > 50
    assert len(blue_rows) > 50
    assert orange_rows.max() < blue_rows.min()
    black = np.flatnonzero((image[:, middle, :3].max(axis=2) < 0.1).all(axis=1))
    between = (black > orange_rows.max() - 6) & (black < blue_rows.min() + 6)
    assert between.any()


def test_decision_boundary_of_a_constant_classifier(tmp_path: Path) -> None:
    arrays = {**boundary_arrays(), "probability": np.full((40, 40), 0.9)}
    png.decision_boundary(tmp_path / "b.png", **arrays)
    check_image(tmp_path / "b.png")


def test_accuracy_curves(tmp_path: Path) -> None:
    curves = [point(a, x, 1 - x) for a in ("pgd100", "worst") for x in NOISE]
    png.accuracy_curves(tmp_path / "a.png", curves, dict(zip(NOISE, TABLE_1["ima"], strict=True)), "Moons")
    image = check_image(tmp_path / "a.png")
    assert has_colour(image, "#0072B2")
    assert has_colour(image, "#D55E00")
    png.accuracy_curves(tmp_path / "one.png", curves[:7], None, "Moons")
    assert not has_colour(check_image(tmp_path / "one.png"), "#D55E00")


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_margin_histogram(tmp_path: Path, classes: int) -> None:
    rng = np.random.default_rng(0)
    margins = np.minimum(rng.exponential(0.1, 20_000), 0.3).astype(np.float32)
    png.margin_histogram(tmp_path / "m.png", margins, 0.3, rng.integers(0, classes, 20_000), "l2")
    image = check_image(tmp_path / "m.png")
    assert has_colour(image, "#0072B2") == (classes == 1)


def test_training_curves_have_a_margin_panel_only_with_margins(tmp_path: Path) -> None:
    png.training_curves(tmp_path / "ima.png", HISTORY)
    bare: list[dict[str, Any]] = [{**row, "margin_mean": None, "margin_quantiles": None} for row in HISTORY]
    png.training_curves(tmp_path / "ce.png", bare)
    with_margins, without = check_image(tmp_path / "ima.png"), check_image(tmp_path / "ce.png")
    assert with_margins.shape[0] == 2 * without.shape[0]
    assert has_colour(with_margins, "#009E73")
    assert not has_colour(without, "#009E73")


def test_draw_all(run: RunDir) -> None:
    assert png.draw_all(Run(run)) == []
    assert not run.figures_dir.exists()
    run.write_history(HISTORY)
    assert png.draw_all(Run(run)) == [run.figures_dir / "training.png"]

    write_json(run.summary_path, {"curves": [entry("pgd100", x, 0.9 - x) for x in NOISE]})
    write_snapshot(run, 3, [0.1, 0.2, 0.3] * 2)
    run.examples_dir.mkdir()
    np.savez(run.examples_dir / "boundary.npz", **boundary_arrays())
    drawn = png.draw_all(Run(run))
    assert [p.name for p in drawn] == ["decision_boundary.png", "accuracy.png", "margins.png", "training.png"]
    for path in drawn:
        check_image(path)
    assert sorted(p.name for p in run.figures_dir.iterdir()) == sorted(p.name for p in drawn)


def test_draw_all_draws_the_rest_of_a_run_with_a_damaged_part(run: RunDir) -> None:
    run.examples_dir.mkdir()
    run.boundary_path.write_bytes(b"PK damaged")
    run.write_history(HISTORY)
    read = Run(run)
    assert png.draw_all(read) == [run.figures_dir / "training.png"]
    assert "boundary.npz is damaged" in read.problems["boundary"]


def test_import_needs_no_torch() -> None:
    # Nor pyplot, whose global state is not safe to use from the threads of a dashboard.
    code = """
import sys
from ima_dist.figures import png
from ima_dist.results import paper, table
from ima_dist.rundir import directory
sys.exit(" ".join({"torch", "matplotlib.pyplot"} & set(sys.modules)) or None)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
