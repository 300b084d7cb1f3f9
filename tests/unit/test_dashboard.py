"""The views of the dashboard, without a browser."""

from __future__ import annotations

import csv
import io
import os
import platform
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ima_dist.config.attacks import ATTACKS
from ima_dist.dashboard.choosing import look
from ima_dist.dashboard.links import carried, parsed, plain
from ima_dist.dashboard.state import Choice, parse, unparse
from ima_dist.dashboard.views import VIEWS
from ima_dist.results import paper
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json, write_parquet
from ima_dist.tracking.collection import Collection
from tests.support.results import RUN
from tests.support.summaries import make_run
from tests.support.views import client, grid, notes, plots, show


def table(root: Path, address: str) -> list[dict[str, str]]:
    answer = client(root).get(address)
    assert answer.status_code == 200, answer.text
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_runs_finished_running_and_failed(tmp_path):
    make_run(tmp_path / "done", "moons", {0.1: 0.5})
    going = make_run(tmp_path / "going", "moons", {})
    write_json(going.summary_path, {"status": "running"})
    going.lock_path.write_text(f"process {os.getpid()} on {platform.node()} in job 12, start 0 (0a1b2c3d)\n")
    state = {"stage": "training", "epoch": 3, "samples_done": 50_000, "samples_total": 200_000, "seconds_left": 100.2}
    write_json(going.progress_path, {**state, "samples_per_second": 1234.4, "workers": 2})
    failed = make_run(tmp_path / "failed", "moons", {})
    write_json(failed.summary_path, {"status": "failed", "message": "The disk is full."})
    make_run(tmp_path / "new", "moons", {}).summary_path.unlink()
    rows = {row["run"]: row for row in grid(show(tmp_path, "runs"), "runs")}
    assert set(rows) == {"done", "going", "failed", "new"}
    assert next(iter(rows)) == "going"  # the newest first
    assert list(rows)[-1] == "new"
    found = {k: rows["going"][k] for k in ("status", "done", "stage", "epoch", "samples/s", "time left", "where")}
    assert found == {
        "status": "running",
        "done": "25 %",
        "stage": "training",
        "epoch": "3/30",
        "samples/s": 1234,
        "time left": "1 min 40 s",
        "where": f"{platform.node()}, job 12, 2 workers",
    }
    assert (rows["failed"]["status"], rows["failed"]["message"]) == ("failed", "The disk is full.")
    assert (rows["done"]["status"], rows["done"]["clean accuracy"], rows["new"]["status"]) == (
        "finished",
        0.5,
        "unfinished",
    )
    assert [row["run"] for row in grid(show(tmp_path, "runs", "?status=failed"), "runs")] == ["failed"]
    os.utime(going.progress_path, (1, 1))
    assert str(grid(show(tmp_path, "runs", "?status=running"), "runs")[0]["message"]).startswith("no news for ")
    going.progress_path.write_text('{"stage": ')
    assert grid(show(tmp_path, "runs", "?status=running"), "runs")[0]["stage"] == "starting"


def test_accuracies_are_those_of_the_data_set_and_of_the_paper(results):
    parts = show(results, "accuracy", f"?runs={RUN}&attack=worst")
    curves = pd.read_parquet(results / "dataset" / "curves")
    own = curves[(curves.run == RUN) & (curves.attack == "worst") & (curves.loss == "both") & (curves.epoch == 3)]
    own = own.sort_values("noise")
    band, line = plots(parts)["accuracy"].data[:2]
    assert (list(line.x), list(line.y)) == (own.noise.round(6).tolist(), own.accuracy.tolist())
    assert list(band.y) == [*own.high95, *own.low95[::-1]]
    ours, *_ = grid(parts, "accuracies")
    assert [ours[k] for k in list(ours)[4:]] == own.accuracy.tolist()
    parts = show(results, "accuracy", "?runs=sweep/ima-beta0.5-seed0&attack=pgd100")
    theirs = {c.noise: c.accuracy for c in paper.cells(table=1, method="ima")}
    dotted = plots(parts)["accuracy"].data[2]
    assert dict(zip(dotted.x, dotted.y, strict=True)) == theirs
    ours, published, difference = grid(parts, "accuracies")
    assert published["0.3"] == theirs[0.3]
    assert difference["0.3"] == pytest.approx(ours["0.3"] - theirs[0.3])


def test_the_plane_has_a_point_a_model_and_the_front(results):
    parts = show(results, "tradeoff", "?experiment=moons-linf&attack=pgd100&level=0.3")
    rows = {row["model"]: row for row in grid(parts, "models")}
    # Seeds together; an epoch that was evaluated by itself is a model of its own.
    assert sorted(rows) == [
        "ce, epoch 3",
        "ima, β 0.5, epoch 3",
        "ima, β 0.8, epoch 1",
        "ima, β 0.8, epoch 2",
        "ima, β 0.8, epoch 3",
    ]
    curves = pd.read_parquet(results / "dataset" / "curves")
    chosen = curves[
        curves.run.str.startswith("sweep/ima-beta0.5") & (curves.attack == "pgd100") & (curves.loss == "both")
    ]
    both = rows["ima, β 0.5, epoch 3"]
    assert both["seeds"] == 2
    assert both["clean"] == pytest.approx(chosen[chosen.noise == 0].accuracy.mean())
    assert both["robust"] == pytest.approx(chosen[chosen.noise.round(6) == 0.3].accuracy.mean())
    values = [(r["clean"], r["robust"]) for r in rows.values()]
    for row in rows.values():
        beaten = any(
            c >= row["clean"] and r >= row["robust"] and (c, r) != (row["clean"], row["robust"]) for c, r in values
        )
        assert row["Pareto"] == (not beaten)
    plane = plots(parts)["tradeoff"]
    assert sorted(plane.data[0].y) == sorted(r["robust"] for r in rows.values() if r["Pareto"])
    assert list(plane.data[1].customdata) == [r["clean"] for n, r in rows.items() if n.startswith(plane.data[1].name)]
    for row in rows.values():
        told = ("best", "not different from the best", "worse than the best", "cannot tell: one seed")
        assert row["verdict"] in told
        ends = f"{row['robust']:.3f} [{row['robust from']:.3f}, {row['robust to']:.3f}]"
        assert row["robust accuracy, 95 % interval"] == ends
    (best,) = [row for row in rows.values() if row["verdict"] == "best"]
    for row in rows.values():
        if row is not best:
            # These networks were tested on the same samples, whatever other seeds would bring.
            low, high = row["on these samples from"], row["on these samples to"]
            assert row["these networks on the same samples"].startswith(
                "not different" if low <= 0 <= high else "worse"
            )
            assert low <= row["robust"] - best["robust"] <= high
            single = 1 in (row["seeds"], best["seeds"])
            alike = row["less best from"] <= 0 <= row["less best to"]
            wanted = "not different from the best" if alike else "worse than the best"
            assert row["verdict"] == ("cannot tell: one seed" if single and alike else wanted)
    labels = [d.label for d in plots(parts)["parallel"].data[0].dimensions]
    assert labels == ["method", "β", "clean accuracy", "robust accuracy"]
    parallel = plots(parts)["parallel"].data[0]
    drawn = {t.name: t.marker.color for t in plane.data[1:]}
    assert {shade for _, shade in parallel.line.colorscale} == {*drawn.values()}
    perfect = any(r["clean"] == 1 for r in rows.values())
    said = "No model has a clean accuracy of at least 1." in notes(
        show(results, "tradeoff", "?experiment=moons-linf&least=1")
    )
    assert said != perfect


def test_margins_by_epoch_by_class_at_both_ends_and_audited(results, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(results, root)
    run = RunDir(root / "images")
    _, stored = run.newest_margins() or (0, None)
    assert stored is not None
    few = stored.sort_by("index").slice(0, 20)
    audit = few.append_column("distance", few["margin"]).append_column("epoch", [[3] * 20])
    write_parquet(run.audit_path, audit.drop_columns(["correct"]).append_column("correct", [[True] * 20]))
    frame = stored.to_pandas()
    number = int(frame.label[frame.correct.astype(bool)].mode()[0])
    parts = show(root, "margins", f"?run=images&epoch=2&class={number}")
    figures = plots(parts)
    row = run.read_history()[1]
    assert list(figures["histogram"].data[0].y) == row["margin_histogram"]
    assert list(figures["histogram"].data[1].x) == [row["margin_mean"]] * 2
    own = frame[(frame.label == number) & frame.correct.astype(bool)].sort_values(["margin", "index"])
    ends = grid(parts, "ends")
    smallest = [e["index"] for e in ends if e["end"] == "smallest"]
    assert smallest == own["index"].tolist()[: len(smallest)]
    largest = [e["margin"] for e in ends if e["end"] == "largest"]
    assert len({e["index"] for e in ends}) == len(ends)  # no sample at both ends
    assert largest == pytest.approx(sorted(own.margin, reverse=True)[: len(largest)])
    assert all(t.source.startswith("data:image/png;base64,") for t in figures["extremes"].data)
    by_class = {r["class"]: r for r in grid(parts, "by-class")}
    assert sum(r["samples"] for r in by_class.values()) == 60
    assert sorted(figures["audit"].data[0].x) == pytest.approx(sorted(few["margin"].to_pylist()))
    assert show(root, "margins", "?run=images&epoch=99")[0].name == "histogram"  # type: ignore[union-attr]


def test_training_marks_the_epoch_that_the_threshold_selects(results):
    history = RunDir(results / RUN).read_history()
    threshold = sorted(row["val_accuracy"] for row in history)[1]
    parts = show(results, "training", f"?runs={RUN}&threshold={threshold}")
    wanted = max(row["epoch"] for row in history if row["val_accuracy"] >= round(threshold, 6) - 1e-9)
    (row,) = grid(parts, "selected")
    assert row["selected epoch"] == wanted
    stars = [t for t in plots(parts)["training"].data if t.marker.symbol == "star"]
    assert [list(t.x) for t in stars] == [[wanted]]
    validation = plots(parts)["training"].data[0]
    assert list(validation.y) == [row["val_accuracy"] for row in history]
    assert len(grid(parts, "epochs")) == 3
    (row,) = grid(show(results, "training", "?runs=sweep/ce-beta0.5-seed0&threshold=0"), "selected")
    assert (row["selected epoch"], row["mean margin"]) == (3, None)


def test_one_sample_with_its_images_and_predictions(results):
    arrays = np.load(results / "images" / "examples" / "noisy.npz", allow_pickle=False)
    index = int(arrays["index"][1])
    parts = show(results, "sample", f"?run=images&sample={index}")
    assert len(plots(parts)["sample"].data) == 6  # clean and two levels, and their differences
    own = pd.read_parquet(results / "images" / "outcomes.parquet").query(f"index == {index}")
    rows = grid(parts, "outcomes")
    assert len(rows) == len(own)
    right = arrays["index"][arrays["clean_prediction"] == arrays["label"]]
    if len(right):
        assert int(right.min()) in {row["index"] for row in grid(show(results, "sample", "?run=images"), "outcomes")}
    for row in rows:
        same = own[(own.attack == row["attack"]) & (own.loss == row["loss"]) & (own.noise == row["noise"])]
        assert row["prediction"] == same.prediction.item()
        assert row["predicted class"] == str(arrays["class_names"][row["prediction"]])
    other = max(pd.read_parquet(results / "images" / "outcomes.parquet")["index"])
    parts = show(results, "sample", f"?run=images&sample=other&index={other}")
    assert {row["index"] for row in grid(parts, "outcomes")} == {other}
    assert "not attacked" in notes(show(results, "sample", "?run=images&sample=other&index=12345"))


def test_the_boundary_is_that_of_the_run(results):
    figure = plots(show(results, "boundary", f"?runs={RUN}"))["boundary0"]
    arrays = np.load(results / RUN / "examples" / "boundary.npz", allow_pickle=False)
    assert np.allclose(figure.data[1].z, arrays["probability"][::2, ::2])
    assert sum(len(t.x) for t in figure.data[2:]) == 60


@pytest.mark.parametrize("view", VIEWS)
def test_an_empty_directory_and_odd_addresses_show_a_page(results, tmp_path, view):
    assert show(tmp_path, view)
    for search in (
        "?runs=none&run=../../etc&epoch=nan&threshold=inf&level=x&class=99&sample=-1&index=1e99",
        "?%ff&=&runs",
    ):
        assert show(results, view, search)


def test_links_in_texts_carry_the_runs():
    text = "See [Compare](compare), or [words](#words)."
    assert plain(text) == "See Compare, or words."
    assert list(parsed(text)) == [("See ", "Compare", "compare"), (", or ", "words", "#words"), (".", "", "")]
    assert plain("An interval [0.1, 0.2] (95 %)") == "An interval [0.1, 0.2] (95 %)"
    assert carried({"run": ["a"], "at": ["1"]}) == {"run": ["a"], "runs": ["a"], "at": ["1"]}
    assert carried({"runs": ["b", "c"]}) == {"run": ["b"], "runs": ["b", "c"]}
    for view in VIEWS.values():
        assert all(not target or target in VIEWS or target == "#words" for *_, target in parsed(view.INTRODUCTION))


@pytest.mark.parametrize("view", ["accuracy", "compare", "tradeoff", "run", "samples"])
def test_attacks_have_one_order_and_a_line_of_help(results, view):
    controls = VIEWS[view].controls(look(Collection(results)), {"run": [RUN], "runs": [RUN]})
    (control,) = [c for c in controls if isinstance(c, Choice) and c.name == "attack"]
    assert list(control.options) == [name for name in ATTACKS if name in control.options]
    assert control.about["worst"] == "worst: the strongest of several attacks per sample"


def test_an_address_keeps_the_state():
    state = {"runs": ["a b", "c/d&e"], "epoch": ["3"], "ü": ["%2F"]}
    assert parse(unparse(state)) == state
    assert unparse({}) == unparse({"runs": []}) == ""
    assert parse("?" + "&".join(f"a{i}=1" for i in range(2000))) == {}


def test_tables_come_as_csv_in_full_precision(results):
    rows = table(results, f"/csv/accuracy/accuracies.csv?runs={RUN}&attack=worst")
    curves = [
        c
        for c in RunDir(results / RUN).summary()["curves"]
        if (c["attack"], c["loss"], c["epoch"]) == ("worst", "both", 3)
    ]
    assert [float(rows[0][k]) for k in list(rows[0])[4:]] == [
        c["accuracy"] for c in sorted(curves, key=lambda c: c["noise"])
    ]
    for address in ("/csv/accuracy/none.csv", "/csv/none/runs.csv"):
        assert client(results).get(address).status_code == 404
