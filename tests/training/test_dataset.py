"""Runs as one data set: what it says is what the run directories say, whoever reads it and whenever."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ima_dist import dataset as command
from ima_dist import train
from ima_dist.config.presets import make_config
from ima_dist.config.values import option_values
from ima_dist.results.statistics import wilson_interval
from ima_dist.rundir import finding
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from ima_dist.tracking import collection, recorder
from ima_dist.tracking.collection import Collection
from ima_dist.tracking.recorder import Recorder
from ima_dist.tracking.tables import FOLDER, KINDS, SCHEMAS, file_of, name_in, stamp_of, write_run
from tests.support.commands import wait_for
from tests.support.inline import without_ray
from tests.support.results import RUN, files_of
from tests.support.summaries import curve, make_run


def epoch_row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 0.5, "val_accuracy": None, **more}


# ---- content -------------------------------------------------------------------------------------------


def test_the_data_set_says_what_the_runs_say(results):
    runs = pd.read_parquet(results / FOLDER / "runs").set_index("run")
    assert sorted(runs.index) == [
        "images",
        "sweep/ce-beta0.5-seed0",
        "sweep/ima-beta0.5-seed0",
        "sweep/ima-beta0.5-seed1",
        RUN,
    ]
    history = pd.read_parquet(results / FOLDER / "history")
    curves = pd.read_parquet(results / FOLDER / "curves")
    margins = pd.read_parquet(results / FOLDER / "margins")
    for name in runs.index:
        run = RunDir(results / name)
        config, summary = run.config(), run.summary()
        row = runs.loc[name]
        assert (row["status"], row["beta"], row["seed"], row["data_subset"]) == (
            "finished",
            config.beta,
            config.seed,
            60,
        )
        assert (row["delta_eps"], row["fingerprint"]) == (config.expansion, config.fingerprint())
        assert {k: json.loads(v) for k, v in row["options"]} == json.loads(json.dumps(option_values(config)))
        assert row["clean_accuracy"] == summary["clean_accuracy"]
        own = curves[curves.run == name]
        assert len(own) == len(summary["curves"])
        for (_, c), entry in zip(own.iterrows(), summary["curves"], strict=True):
            assert all(c[k] == entry[k] for k in ("attack", "loss", "noise", "epoch", "accuracy", "samples"))
            assert (c["low95"], c["high95"]) == wilson_interval(entry["accuracy"], entry["samples"])
        rows = history[history.run == name].to_dict("records")
        for found, wanted in zip(rows, run.read_history(), strict=True):
            assert found["epoch"] == wanted["epoch"]
            assert found["train_loss"] == wanted["train_loss"]
            if wanted.get("margin_histogram"):
                assert found["margin_histogram"].tolist() == wanted["margin_histogram"]
        newest = run.newest_margins()
        own = margins[margins.run == name]
        if newest is None:
            assert own.empty
        else:
            stored = newest[1].sort_by("index")
            assert own["index"].tolist() == stored["index"].to_pylist()
            assert own["margin"].tolist() == stored["margin"].to_pylist()
            assert set(own["epoch"]) == {3}


@pytest.mark.parametrize("kind", KINDS)
def test_pandas_polars_and_duckdb_read_a_folder_as_one_table(results, kind):
    folder = results / FOLDER / kind
    files = sorted(folder.glob("*.parquet"))
    assert len(files) == 5
    for file in files:
        assert pq.read_schema(file).equals(SCHEMAS[kind])
        assert pq.read_schema(file).names[0] == "run"
    rows = sum(pq.ParquetFile(f).metadata.num_rows for f in files)
    by_pandas = pd.read_parquet(folder)
    by_polars = pl.read_parquet(f"{folder}/*.parquet")
    by_duckdb = duckdb.sql(f"select run, count(*) from '{folder}/*.parquet' group by run").fetchall()
    assert len(by_pandas) == by_polars.height == sum(n for _, n in by_duckdb) == rows > 0
    assert dict(by_duckdb) == by_pandas.run.value_counts().to_dict()
    assert set(by_polars["run"]) == set(by_pandas["run"])


def test_names_and_files_belong_together(tmp_path):
    for name in ("a", "sweep/b", "odd %2F ü ../x", "c.parquet"):
        assert name_in(file_of(tmp_path, "runs", name)) == name
        assert file_of(tmp_path, "runs", name).parent == tmp_path / FOLDER / "runs"


# ---- while a run goes on -------------------------------------------------------------------------------


@pytest.fixture
def going(tmp_path, monkeypatch) -> RunDir:
    monkeypatch.setattr(recorder, "_POLL_SECONDS", 0.01)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = make_run(tmp_path / "runs" / "one", "moons", {})
    write_json(run.summary_path, {"status": "running"})
    return run


def recorded(root: Path, kind: str) -> pd.DataFrame:
    return pd.read_parquet(root / FOLDER / kind) if (root / FOLDER / kind).exists() else pd.DataFrame()


def test_it_is_written_while_the_run_goes_on_and_at_its_end(going):
    root = going.path.parent
    with Recorder(going, root):
        for epoch in (1, 2):
            going.write_history([epoch_row(e) for e in range(1, epoch + 1)])

            def there(epoch: int = epoch) -> bool:
                # Its rows in "runs" are written last, and may be missing for a moment.
                runs = recorded(root, "runs")
                return "epochs_done" in runs and runs["epochs_done"].tolist() == [epoch]

            wait_for(there, 60, "the epoch in the data set")
            assert len(recorded(root, "history")) == epoch
            assert recorded(root, "runs")["status"].tolist() == ["running"]
        write_json(going.summary_path, {"status": "failed", "message": "The disk is full."})
    assert recorded(root, "runs")[["status", "message", "epochs_done"]].values.tolist() == [
        ["failed", "The disk is full.", 2]
    ]


def test_a_run_outside_of_a_results_directory_leaves_nothing_beside_it(going, tmp_path):
    with Recorder(going, tmp_path / "elsewhere"):
        going.write_history([epoch_row(1)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]
    assert [p.name for p in going.path.parent.iterdir()] == ["one"]


def test_what_cannot_be_written_is_said_once_and_disturbs_nothing(going, capsys):
    root = going.path.parent
    (root / FOLDER).write_text("a file where a directory should be")
    with Recorder(going, root):
        for epoch in (1, 2):
            going.write_history([epoch_row(e) for e in range(1, epoch + 1)])
            if epoch == 1:
                wait_for(lambda: "not recorded" in capsys.readouterr().err, 60, "the warning")
    assert capsys.readouterr().err == ""


def events(place: Path) -> list[tuple[str, int, float]]:
    """Scalars in TensorBoard's event files: name, step, value."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(place.glob("events.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[12 + length + 4 :]
    return found


def test_tensorboard_has_every_epoch_once_also_after_a_resume(going):
    root = going.path.parent
    for epochs in (2, 3):
        with Recorder(going, root):
            going.write_history([epoch_row(e) for e in range(1, epochs + 1)])
    losses = [(step, value) for name, step, value in events(root / "tensorboard" / "one") if name == "train_loss"]
    assert losses == [(e, pytest.approx(1 / e)) for e in (1, 2, 3)]
    # A new run of that name does not go on where the old one ended.
    shutil.rmtree(going.path)
    other = make_run(going.path, "moons", {}, beta=0.1)
    with Recorder(other, root):
        other.write_history([epoch_row(1)])
    assert [step for name, step, _ in events(root / "tensorboard" / "one") if name == "train_loss"] == [1]


def test_mlflow_has_options_epochs_and_accuracies(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        tiny = ["--data.subset", "40", "--epochs", "2", "--eval.steps", "2", "--attack.steps", "2", "--device", "cpu"]
        assert train.main(["moons", *tiny, "--out", str(tmp_path / "run")]) == 0
    run = RunDir(tmp_path / "run")
    client = mlflow.MlflowClient()
    place = client.get_experiment_by_name("ima_dist").experiment_id
    (found,) = client.search_runs([place])
    assert found.info.status == "FINISHED"
    assert found.data.params["beta"] == "0.5"
    assert found.data.params["data.subset"] == "40"
    losses = client.get_metric_history(found.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in losses] == [(row["epoch"], row["train_loss"]) for row in run.read_history()]
    clean = [c for c in run.summary()["curves"] if (c["attack"], c["loss"], c["noise"]) == ("worst", "both", 0.0)]
    assert found.data.metrics["accuracy_worst_0"] == clean[0]["accuracy"]
    # What is recorded again goes into the same run.
    with Recorder(run, tmp_path / "elsewhere"):
        pass
    assert len(client.search_runs([place])) == 1
    assert len(client.get_metric_history(found.info.run_id, "train_loss")) == 2


def test_without_mlflow_the_run_goes_on_with_a_warning(going, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with Recorder(going, going.path.parent):
        going.write_history([epoch_row(1)])
    err = capsys.readouterr().err
    assert err.count("pip install mlflow-skinny") == 1
    assert len(recorded(going.path.parent, "history")) == 1


@pytest.mark.parametrize(("failed", "limit"), [(0, "_END_SECONDS"), (1, "_LAST_CHANCE")])
def test_a_server_that_does_not_answer_does_not_hold_up_the_end(going, monkeypatch, capsys, failed, limit):
    """One that has not answered before gets less time."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://192.0.2.1")
    monkeypatch.setattr(recorder, limit, 0.5)
    answered, asked, calls = threading.Event(), threading.Event(), []

    def update(sink) -> None:
        calls.append(sink)
        if len(calls) <= failed:
            raise TimeoutError("timed out")
        asked.set()
        answered.wait()

    monkeypatch.setattr(recorder._MLflow, "update", update)
    with Recorder(going, going.path.parent):
        going.write_history([epoch_row(1)])
        assert asked.wait(60)
    answered.set()
    assert "the MLflow server has not answered for 0.5 s" in capsys.readouterr().err
    assert len(recorded(going.path.parent, "history")) == 1


def test_a_server_that_refuses_is_asked_ever_more_rarely_and_left_alone_at_the_end(going, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    tries: list[float] = []
    enough = threading.Event()

    def refuse(sink) -> None:
        tries.append(time.monotonic())
        if len(tries) == 5:
            enough.set()
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(recorder._MLflow, "update", refuse)
    with Recorder(going, going.path.parent):
        going.write_history([epoch_row(1)])
        assert enough.wait(60)
    assert 5 <= len(tries) < 9
    assert capsys.readouterr().err.count("not recorded") == 1
    assert len(recorded(going.path.parent, "history")) == 1


# ---- bringing it up to date ----------------------------------------------------------------------------


def test_the_command_writes_what_is_missing_and_removes_what_is_gone(tmp_path, capsys):
    for name in ("a", "b"):
        make_run(tmp_path / name, "moons", {0.1: 0.5})
    assert command.main([str(tmp_path)]) == 0
    assert "2 runs, 2 brought up to date, 0 removed" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "a")
    make_run(tmp_path / "c", "moons", {0.1: 0.25})
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.yaml").write_text("server: {port: 80}\n")
    assert command.main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "3 runs, 1 brought up to date, 1 removed" in out
    assert "d/config.yaml" in err
    assert sorted(pd.read_parquet(tmp_path / FOLDER / "curves")["accuracy"]) == [0.25, 0.5]
    assert command.main([str(tmp_path / "none")]) == 2


def test_only_what_has_changed_is_read_again_and_nothing_is_written(tmp_path, monkeypatch):
    runs = [make_run(tmp_path / name, "moons", {0.1: 0.5}) for name in ("a", "b", "c")]
    for run in runs[:2]:
        write_run(tmp_path, run)
    read: list[str] = []
    genuine = collection.read_run

    def counted(run: Any, **more: Any) -> Any:
        read.append(run.name)
        return genuine(run, **more)

    monkeypatch.setattr(collection, "read_run", counted)
    before = files_of(tmp_path)
    found = Collection(tmp_path)
    found.refresh()
    assert read == ["c"]  # the others come from the data set
    assert [run.points[0].accuracy for run in found.runs.values()] == [0.5] * 3
    found.refresh()
    assert read == ["c"]
    assert files_of(tmp_path) == before
    write_json(runs[0].summary_path, {"status": "finished", "curves": curve({0.1: 0.75}, norm="linf", epoch=30)})
    found.refresh()
    assert read == ["c", "a"]
    assert found.runs["a"].points[0].accuracy == 0.75
    shutil.rmtree(runs[1].path)
    found.refresh()
    assert list(found.runs) == ["a", "c"]
    assert found.problems == []


def test_the_stamp_follows_every_file_that_is_repeated(going):
    seen = {stamp_of(going)}
    going.write_history([epoch_row(1)])
    seen.add(stamp_of(going))
    write_json(going.summary_path, {"status": "finished"})
    seen.add(stamp_of(going))
    going.record(make_config("moons", {"eval.steps": 7}))
    seen.add(stamp_of(going))
    going.margins_dir.mkdir()
    seen.add(stamp_of(going))
    assert len(seen) == 5


# ---- damaged and foreign files -------------------------------------------------------------------------


def damage_row(file: Path) -> None:
    """The file's rows claim to be those of another run."""
    table = pq.ParquetFile(file).read()
    pq.write_table(table.set_column(0, "run", pa.array(["other"] * table.num_rows)), file)


@pytest.mark.parametrize("kind", ["runs", "curves", "history"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_text("this is no Parquet file"),
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
        lambda file: pd.DataFrame({"colour": ["red"]}).to_parquet(file),
        damage_row,
    ],
    ids=["text", "truncated", "empty", "missing", "foreign", "renamed"],
)
def test_a_damaged_file_of_the_data_set_is_made_up_for_by_the_run(tmp_path, kind, damage):
    for name in ("a", "b"):
        run = make_run(tmp_path / name, "moons", {0.1: 0.5})
        run.write_history([epoch_row(1)])
        write_run(tmp_path, run)
    damage(file_of(tmp_path, kind, "a"))
    found = Collection(tmp_path)
    found.refresh()
    for name in ("a", "b"):
        assert found.runs[name].points[0].accuracy == 0.5
        assert [r["epoch"] for r in found.runs[name].history] == [1]
    assert all("a.parquet" in p for p in found.problems)
    left = file_of(tmp_path, kind, "a")
    if left.exists() and left.stat().st_size < 200:  # no Parquet at all
        assert found.problems


def test_damaged_and_foreign_runs_are_named_and_the_rest_is_shown(tmp_path):
    make_run(tmp_path / "good", "moons", {0.1: 0.5})
    make_run(tmp_path / "half", "moons", {0.1: 0.5}).summary_path.write_text('{"status": "fini')
    make_run(tmp_path / "odd", "moons", {}).summary_path.write_text('{"status": 7, "curves": [{"attack": []}]}')
    make_run(tmp_path / "cut", "moons", {0.1: 0.5}).history_path.write_text("no Parquet")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text("server: {port: 80}\n")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "config.yaml").write_bytes(b"\x80\x04\x95pickle")
    (tmp_path / "huge").mkdir()
    (tmp_path / "huge" / "config.yaml").write_bytes(b"a: b\n" * 300_000)
    (tmp_path / "notes.parquet").write_text("text")
    (tmp_path / "around").symlink_to(tmp_path)
    outside = make_run(tmp_path.parent / "outside", "moons", {0.1: 0.125})
    (tmp_path / "link").symlink_to(outside.path)
    inner = make_run(tmp_path / "inner", "moons", {0.1: 0.5})
    inner.summary_path.unlink()
    inner.summary_path.symlink_to(outside.summary_path)
    found = Collection(tmp_path)
    found.refresh()
    assert sorted(found.runs) == ["cut", "good", "half", "inner", "odd"]
    for name in (
        "half/summary.json",
        "odd/summary.json",
        "cut/history.parquet",
        "foreign/config.yaml",
        "binary/config.yaml",
        "huge/config.yaml",
        "notes.parquet",
        "around",
        "link",
        "inner/summary.json",
    ):
        assert sum(name in problem for problem in found.problems) >= 1, name
    assert [point.accuracy for run in found.runs.values() for point in run.points] == [0.5, 0.5]  # of cut and good


def test_a_directory_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    make_run(tmp_path / "good", "moons", {0.1: 0.5})
    (tmp_path / "closed").mkdir()
    genuine = finding.os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):  # root may read everything, so permissions would not do
            raise PermissionError(13, "Permission denied", str(path))
        return genuine(path)

    monkeypatch.setattr(finding.os, "scandir", scandir)
    found = Collection(tmp_path)
    found.refresh()
    assert list(found.runs) == ["good"]
    assert any("closed" in problem and "Permission denied" in problem for problem in found.problems)
