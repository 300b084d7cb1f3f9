"""Nothing of the user's is written into, written over or removed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ima_dist import dataset, sweep
from ima_dist.config.errors import ConfigError
from ima_dist.data import prepared
from ima_dist.data.types import Split
from ima_dist.report.write import write_report
from ima_dist.rundir.finding import MARKER, find_runs, is_dataset
from ima_dist.tracking.collection import Collection, update
from ima_dist.tracking.recorder import Recorder
from ima_dist.tracking.tables import FOLDER, KINDS, file_of, make_dataset, root_of, write_run
from tests.support.commands import ROOT
from tests.support.results import files_of
from tests.support.summaries import make_run

SAVED = ROOT / "tests" / "saved" / "results"


def users_dataset(root: Path, kind: str) -> Path:
    """A folder ``dataset`` as a user may have one."""
    folder = root / FOLDER
    names = {
        "classes": ["cats/1.png", "dogs/2.png"],
        "runs and curves": ["runs/monday.csv", "curves/learning.png"],
        "all names of ours": [f"{kind}/one.txt" for kind in KINDS],
        "other tables": [],
        "ours and more": ["notes.txt"],
    }[kind]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("the user's")
    if kind in ("other tables", "ours and more"):
        for name in KINDS:
            (folder / name).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"run": [1], "speed": [2.0]}), folder / name / "one.parquet")
    return folder


@pytest.mark.parametrize("kind", ["classes", "runs and curves", "all names of ours", "other tables", "ours and more"])
def test_a_users_folder_called_dataset_stays_as_it_is(tmp_path, capsys, kind):
    root = tmp_path / "project"
    folder = users_dataset(root, kind)
    run = make_run(root / "results" / "run", "moons", {0.1: 0.5})
    run.write_history([{"epoch": 1, "train_loss": 1.0}])
    before = files_of(folder)
    assert not is_dataset(folder)
    assert root_of(run, tmp_path / "runs") is None
    # Also where runs go by default, or where a command is told to write.
    with Recorder(run, root):
        pass
    assert "holds files that are not ours: rename it" in capsys.readouterr().err
    assert dataset.main([str(root)]) == 2
    for act in (lambda: make_dataset(root), lambda: write_run(root, run), lambda: update(root)):
        with pytest.raises(ConfigError, match="holds files that are not ours"):
            act()
    collection = Collection(root)
    collection.refresh()
    assert list(collection.runs) == ["results/run"]
    assert files_of(folder) == before


def test_ours_has_a_marker_and_is_known_by_it(tmp_path):
    run = make_run(tmp_path / "results" / "run", "moons", {0.1: 0.5})
    (tmp_path / FOLDER).mkdir()  # empty, so that nothing can be harmed
    assert root_of(run, tmp_path / "runs") is None
    write_run(tmp_path, run)
    assert (tmp_path / FOLDER / MARKER).is_file()
    assert root_of(run, tmp_path / "runs") == tmp_path
    for kind in KINDS:  # damaged or emptied, it is ours all the same
        file_of(tmp_path, kind, "results/run").write_text("damaged")
    assert is_dataset(tmp_path / FOLDER)


def test_that_of_an_earlier_version_is_ours(tmp_path):
    folder = tmp_path / FOLDER
    shutil.copytree(SAVED / FOLDER, folder)
    assert not (folder / MARKER).exists()
    assert is_dataset(folder)
    next((folder / "curves").iterdir()).write_text("damaged")
    assert is_dataset(folder)
    (folder / "runs" / ".one.parquet.0123abcd.tmp").write_text("half")
    assert is_dataset(folder)
    make_dataset(tmp_path)
    assert (folder / MARKER).is_file()
    empty = tmp_path / "empty" / FOLDER
    for kind in KINDS:  # of a sweep that was stopped before its first run
        (empty / kind).mkdir(parents=True)
    assert is_dataset(empty)


def test_only_rows_of_runs_that_are_gone_are_removed(tmp_path):
    make_run(tmp_path / "kept", "moons", {0.1: 0.5})
    gone = make_run(tmp_path / "gone", "moons", {0.1: 0.5})
    update(tmp_path)
    shutil.rmtree(gone.path)
    own = tmp_path / FOLDER / "curves" / "own.parquet"
    pq.write_table(pa.table({"speed": [1.0]}), own)
    shutil.copyfile(file_of(tmp_path, "curves", "gone"), own.with_name("copy.parquet"))
    done = update(tmp_path)
    assert (done.removed, file_of(tmp_path, "curves", "gone").exists()) == (1, False)
    assert sorted(p.name for p in own.parent.iterdir()) == ["copy.parquet", "kept.parquet", "own.parquet"]
    assert [text for text in done.problems if "own.parquet is not ours" in text]


def test_events_of_others_stay_when_a_run_begins_anew(tmp_path):
    run = make_run(tmp_path / "runs" / "one", "moons", {})
    place = tmp_path / "runs" / "tensorboard" / "one"
    (place / "profile").mkdir(parents=True)
    others = [place / "notes.txt", place / "profile" / "trace", place / "events.out.tfevents.1795761735.host.17.0"]
    for path in others:
        path.write_text("the user's")
    old = place / "events.out.tfevents.1795761735.host.epoch0001"
    old.write_text("of an earlier run of this name")
    with Recorder(run, tmp_path / "runs"):
        run.write_history([{"epoch": 1, "train_loss": 1.0}])
    assert not old.exists()
    assert all(path.read_text() == "the user's" for path in others)


@pytest.mark.parametrize("kind", ["sweep.yaml", "trials", FOLDER])
def test_a_sweep_does_not_write_over_files(tmp_path, capsys, kind):
    out = tmp_path / "out"
    out.mkdir()
    own = (ROOT / "jobs" / "sweep_moons.yaml").read_text(encoding="utf-8")
    if kind == "sweep.yaml":
        (out / kind).write_text(own, encoding="utf-8")
    else:
        (out / kind).mkdir()
        (out / kind / "patient.json").write_text("{}")
    before = files_of(out)
    assert sweep.main([str(ROOT / "jobs" / "sweep_moons.yaml"), "--out", str(out), "--trials", "x"]) == 2
    assert ("rename it" if kind == FOLDER else "give another --out") in capsys.readouterr().err
    assert files_of(out) == before


def test_a_report_does_not_write_over_files(tmp_path):
    run = make_run(tmp_path / "run", "moons", {0.0: 0.9, 0.1: 0.5})
    out = tmp_path / "out"
    out.mkdir()
    (out / "curves.csv").write_text("the user's")
    (out / "report.html").write_text("<title>My report</title>")
    with pytest.raises(ConfigError, match="was not written by a report: give another --out"):
        write_report([run.path], out)
    assert sorted(p.name for p in out.iterdir()) == ["curves.csv", "report.html"]
    assert (out / "curves.csv").read_text() == "the user's"
    (out / "curves.csv").unlink()
    (out / "report.html").unlink()
    (out / "notes.txt").write_text("the user's")
    for _ in range(2):  # an earlier report of ours is replaced
        write_report([run.path], out)
    assert (out / "notes.txt").read_text() == "the user's"


def test_a_prepared_copy_does_not_write_over_arrow_files(tmp_path):
    own = tmp_path / "train.arrow"
    own.write_text("the user's")
    with pytest.raises(ConfigError, match=r"holds other files \(train\.arrow\)"), prepared.writing(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["train.arrow"]
    place = tmp_path / "new"
    parts = {"train": Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]))}
    for _ in range(2):
        with prepared.writing(place):
            prepared.write(place, "mnist", parts, {})
    (place / prepared.MANIFEST).unlink()  # killed in mid-write
    with prepared.writing(place):
        prepared.write(place, "mnist", parts, {})
    assert prepared.verify(place)["name"] == "mnist"


def test_runs_in_a_users_dataset_are_found(tmp_path):
    users_dataset(tmp_path, "runs and curves")
    make_run(tmp_path / FOLDER / "runs" / "mine", "moons", {0.1: 0.5})
    assert [run.path.name for run in find_runs(tmp_path)[0]] == ["mine"]
