"""What an earlier version has saved is read as it was meant: fingerprints, runs, sweeps, jobs. Nothing is trained."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import yaml
from submitit.core.utils import DelayedSubmission

from cluster import status
from cluster.node import Task
from cluster.records import Row, RowRecord
from ima_dist import dataset, sweep
from ima_dist.config.presets import make_config, options_of
from ima_dist.config.values import from_dict, to_dict
from ima_dist.plans.jobfile import read_job
from ima_dist.plans.sweepfile import is_sweep, read_sweep
from ima_dist.plans.trial_record import earlier_records
from ima_dist.report import __main__ as report
from ima_dist.results.binary import binary_report
from ima_dist.results.margin_audit import audit_text, summarise
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection
from tests.saved import RESULTS, SAVED, copied_to
from tests.support.commands import ROOT

JOBS = ROOT / "jobs"
FINGERPRINTS: dict[str, Any] = json.loads((SAVED / "fingerprints.json").read_text())

# Run -> status, epochs in its history, epoch of its newest margins, points of its curves.
RUNS: dict[str, tuple[str, int, int | None, int]] = {
    "epochs": ("finished", 5, 5, 36),
    "finished": ("finished", 2, 2, 35),
    "interrupted-epoch": ("interrupted", 1, 1, 0),
    "interrupted-evaluation": ("interrupted", 2, None, 0),
    "interrupted-online": ("interrupted", 1, 1, 0),
    "jobs/moons-adv-linf-seed0-1b2cb476": ("finished", 2, None, 27),
    "jobs/moons-ima-linf-seed0-50fc7a36": ("finished", 2, 2, 27),
    "pictures": ("finished", 2, None, 12),
    "sweeps/grid/moons-ima-linf-seed0-ac7304f8": ("finished", 2, 2, 12),
    "sweeps/grid/moons-ima-linf-seed0-c7aea593": ("finished", 2, 2, 12),
    "sweeps/search/moons-ce-linf-seed0-82e4cc74": ("finished", 3, None, 8),
    "sweeps/search/moons-ce-linf-seed0-b5621335": ("finished", 3, None, 8),
    "sweeps/search/moons-ce-linf-seed0-df49bbd9": ("finished", 3, None, 8),
    "trades": ("finished", 2, None, 12),
}


def test_fingerprints_of_configurations():
    for preset, options, fingerprint in FINGERPRINTS["configurations"]:
        config = make_config(preset, {**_its_split(preset), **options})
        assert config.fingerprint() == fingerprint, (preset, options)
        assert from_dict(json.loads(json.dumps(to_dict(config)))).fingerprint() == fingerprint


def _its_split(preset: str) -> dict[str, int]:
    """The split of version 0.1.0, where the preset now has another."""
    return {"data.val_size": 5000} if preset in ("fashion_mnist", "mnist", "svhn") else {}


def test_an_entry_that_version_0_1_0_did_not_save_has_its_value():
    for preset in ("fashion_mnist", "mnist", "svhn", "cifar10"):
        tree = to_dict(make_config(preset, {**_its_split(preset), "data.subset": 100}))
        del tree["data"]["val_size"]
        old = from_dict(tree)
        assert old.data.val_size == 5000
        assert old.fingerprint() == make_config(preset, {**_its_split(preset), "data.subset": 100}).fingerprint()
        # Its commands keep the split.
        assert make_config(preset, options_of(old)) == old


def test_fingerprints_with_the_present_split():
    for preset, options, fingerprint in FINGERPRINTS["validation sets of a tenth"]:
        assert make_config(preset, options).fingerprint() == fingerprint, (preset, options)


@pytest.mark.parametrize("name", FINGERPRINTS["files"])
def test_fingerprints_of_the_rows_of_job_and_sweep_files(name):
    split = _its_split(yaml.safe_load((JOBS / name).read_text())["preset"])
    for scale, rows in FINGERPRINTS["files"][name].items():
        if is_sweep(JOBS / name):
            runs = read_sweep(JOBS / name, scale or None, split).runs
            found = {n: config.fingerprint() for n, (config, _) in runs.items()}
        else:
            found = {n: config.fingerprint() for n, config in read_job(JOBS / name, scale or None, split).rows.items()}
        assert rows.items() <= found.items(), scale


def below(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by their dotted names."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= below(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


@pytest.mark.parametrize("name", RUNS)
def test_a_run(name):
    status, epochs, margins, points = RUNS[name]
    run = RunDir.open(RESULTS / name)
    tree = yaml.safe_load(run.config_path.read_text())
    config, fingerprint = run.config(), tree.pop("fingerprint")
    assert config.fingerprint() == fingerprint
    assert tree.pop("versions")["ima_dist"] == "0.1.0"
    # Options that came later may be there too.
    assert below(tree).items() <= below(to_dict(config)).items()

    assert run.status == status
    history = run.read_history()
    assert [row["epoch"] for row in history] == list(range(1, epochs + 1))
    newest = run.newest_margins()
    assert (newest and newest[0]) == margins
    if newest is not None:
        table = newest[1].to_pydict()
        assert sorted(table["index"]) == list(range(config.data.subset or 0))
        assert np.mean(table["margin"]) == pytest.approx(history[-1]["margin_mean"], abs=1e-6)
    curves = run.summary().get("curves", [])
    assert len(curves) == points
    if points:
        rows = pq.read_table(run.outcomes_path).to_pandas()
        keys = ["attack", "loss", "epoch", "noise"]
        right = (rows.label == rows.prediction).groupby([rows[key] for key in keys]).mean()
        for curve in curves:
            assert curve["accuracy"] == pytest.approx(right[tuple(curve[key] for key in keys)])


def test_further_files_of_runs():
    equilibrium = RunDir(RESULTS / "finished").read_equilibrium()
    assert [(row["epoch"], row["class_i"], row["class_j"]) for row in equilibrium] == [(1, 0, 1), (2, 0, 1)]
    boundary = Run.open(RESULTS / "finished").boundary
    assert boundary is not None
    assert boundary["points"].shape == (200, 2)
    extremes = Run.open(RESULTS / "finished").extremes
    assert extremes is not None
    assert set(extremes["label"]) == {0, 1}

    pictures = Run.open(RESULTS / "pictures")
    noisy = pictures.noisy
    assert noisy is not None
    assert noisy["noisy"].shape == (2, 3, 1, 6, 6)
    assert "lower" in binary_report(pictures)

    table = read_parquet(RunDir(RESULTS / "epochs").audit_path)
    assert table.num_rows == 10
    assert "epoch 5" in audit_text(summarise(table, 0.3), 5)


def test_the_dashboard_shows_them():
    collection = Collection(RESULTS)
    collection.refresh()
    assert collection.problems == []
    assert sorted(collection.runs) == sorted(RUNS)
    for name, run in collection.runs.items():
        status, epochs, _, points = RUNS[name]
        assert (run.info["status"], len(run.history), len(run.points)) == (status, epochs, points)
        assert run.info["fingerprint"] == run.dir.config().fingerprint()
    assert collection.runs["interrupted-online"].progress()["epoch"] == 2


def test_the_data_set_is_brought_up_to_date(tmp_path, capsys):
    root = copied_to(tmp_path)
    before = pyarrow.dataset.dataset(str(root / "dataset" / "runs"), format="parquet").to_table().to_pylist()
    assert {row["run"] for row in before} == {"epochs", "finished", "interrupted-epoch"}
    assert dataset.main([str(root)]) == 0
    assert f"{len(RUNS)} runs" in capsys.readouterr().out
    after = pyarrow.dataset.dataset(str(root / "dataset" / "runs"), format="parquet").to_table().to_pylist()
    rows = {row["run"]: row for row in after}
    assert sorted(rows) == sorted(RUNS)
    for row in before:
        # A copy's files have other times, and columns and options may have been added since.
        assert dict(row.pop("options")).items() <= dict(rows[row["run"]].pop("options")).items()
        del row["stamp"], rows[row["run"]]["stamp"]
        assert row.items() <= rows[row["run"]].items()


def test_report(tmp_path, capsys):
    root = copied_to(tmp_path)
    finished = [name for name, (status, *_) in RUNS.items() if status == "finished"]
    assert report.main([*(str(root / name) for name in finished), "--out", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().err == ""
    with (tmp_path / "report" / "curves.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == sum(RUNS[name][3] for name in finished)
    html = (tmp_path / "report" / "report.html").read_text()
    for name in finished:
        assert Path(name).name in html


def test_choice_among_the_runs_of_sweeps(capsys):
    for name, choice in (("grid", "beta=0.7"), ("search", "optimizer.lr=0.013982")):
        assert sweep.main(["best", str(RESULTS / "sweeps" / name), "--min-clean", "0.5"]) == 0
        said = capsys.readouterr()
        assert f"Choice: {choice}," in said.out
        assert said.err == ""
    records = {r["name"]: r["status"] for r in earlier_records(RESULTS / "sweeps" / "search")}
    assert sorted(records.values()) == ["finished", "stopped", "stopped"]


@pytest.mark.parametrize(("job", "name"), [("1000_0", "ima"), ("1000_1", "adv0.1")])
def test_what_submitit_has_pickled(job, name):
    folder = Path("runs/cluster/job")
    task = DelayedSubmission.load(RESULTS / "cluster" / "job" / f"{job}_submitted.pkl").function
    words = ["-m", "ima_dist.job", str(folder / "job.yaml"), "--rows", name, "--out", "runs/jobs"]
    run = {"ima": "runs/jobs/moons-ima-linf-seed0-50fc7a36", "adv0.1": "runs/jobs/moons-adv-linf-seed0-1b2cb476"}
    assert type(task) is Task
    assert task.row == Row(name, [*words, "--scale", "tiny", "--device", "cpu"], run[name])
    assert (task.folder, task.notice, task.join_timeout, task.interface, task.temp) == (folder, 60, 120, None, None)


def test_records_of_a_submitted_job(tmp_path, monkeypatch):
    copied_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    rows = status.job_rows(Path("runs/cluster").absolute(), ["job"])
    assert [name for name, _, _ in rows] == ["job/ima", "job/adv0.1"]
    _, folder, row = rows[0]
    shown = status.describe(folder, row, {})
    assert (shown["state"], shown["start"]) == ("FINISHED", "0")
    assert RowRecord(folder, "ima").result() == {"status": 0, "message": "", "run": row["run"]}
