"""The dashboard without a browser: what views show, what requests may ask for, and what it must not import."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flask.testing import FlaskClient

from ima_dist.dashboard import __main__ as entry
from ima_dist.dashboard import access
from ima_dist.dashboard.app import look, make_app, values_of
from ima_dist.dashboard.parts import Grid, Note, Part, Plot
from ima_dist.dashboard.state import parse, unparse
from ima_dist.dashboard.views import VIEWS
from ima_dist.results import paper
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json, write_parquet
from ima_dist.tracking.collection import Collection
from tests.support.commands import ROOT, environment
from tests.support.results import RUN, files_of
from tests.support.summaries import make_run, outcomes, outcomes_table

SECRET = "the content of a file outside"


def client(root: Path, token: str | None = None) -> FlaskClient:
    return make_app(root, token).server.test_client()


def table(root: Path, address: str) -> list[dict[str, str]]:
    answer = client(root).get(address)
    assert answer.status_code == 200, answer.text
    return list(csv.DictReader(io.StringIO(answer.text)))


def show(root: Path, view: str, search: str = "") -> list[Part]:
    runs = look(Collection(root))
    return VIEWS[view].show(runs, values_of(VIEWS[view].controls(runs, parse(search))))


def plots(parts: list[Part]) -> dict[str, Any]:
    return {p.name: p.figure for p in parts if isinstance(p, Plot)}


def grid(parts: list[Part], name: str) -> list[dict[str, Any]]:
    (found,) = [p.rows for p in parts if isinstance(p, Grid) and p.name == name]
    return found


def notes(parts: list[Part]) -> str:
    return " ".join(p.text for p in parts if isinstance(p, Note))


# ---- what is shown -------------------------------------------------------------------------------------


def test_runs_finished_running_and_failed(tmp_path):
    make_run(tmp_path / "done", "moons", {0.1: 0.5})
    going = make_run(tmp_path / "going", "moons", {})
    write_json(going.summary_path, {"status": "running"})
    state = {"stage": "training", "epoch": 3, "samples_done": 50_000, "samples_total": 200_000, "seconds_left": 100.2}
    write_json(going.progress_path, {**state, "samples_per_second": 1234.4, "workers": 2})
    failed = make_run(tmp_path / "failed", "moons", {})
    write_json(failed.summary_path, {"status": "failed", "message": "The disk is full."})
    make_run(tmp_path / "new", "moons", {}).summary_path.unlink()
    rows = {row["run"]: row for row in grid(show(tmp_path, "runs"), "runs")}
    assert list(rows) == ["going", "failed", "done", "new"]
    assert {k: rows["going"][k] for k in ("status", "done", "stage", "epoch", "samples/s", "time left")} == {
        "status": "running",
        "done": "25 %",
        "stage": "training, 2 workers",
        "epoch": "3/30",
        "samples/s": 1234,
        "time left": "1 min 40 s",
    }
    assert (rows["failed"]["status"], rows["failed"]["message"]) == ("failed", "The disk is full.")
    assert (rows["done"]["status"], rows["done"]["clean"], rows["new"]["status"]) == ("finished", 0.5, "unfinished")
    assert [row["run"] for row in grid(show(tmp_path, "runs", "?status=failed"), "runs")] == ["failed"]
    os.utime(going.progress_path, (1, 1))
    assert grid(show(tmp_path, "runs"), "runs")[0]["status"].startswith("running, no news for ")
    going.progress_path.write_text('{"stage": ')
    assert grid(show(tmp_path, "runs"), "runs")[0]["stage"] == "starting"


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
        "ce, beta 0.5, epoch 3",
        "ima, beta 0.5, epoch 3",
        "ima, beta 0.8, epoch 1",
        "ima, beta 0.8, epoch 2",
        "ima, beta 0.8, epoch 3",
    ]
    curves = pd.read_parquet(results / "dataset" / "curves")
    chosen = curves[
        curves.run.str.startswith("sweep/ima-beta0.5") & (curves.attack == "pgd100") & (curves.loss == "both")
    ]
    both = rows["ima, beta 0.5, epoch 3"]
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
    assert sorted(plane.data[0].x) == sorted(r["clean"] for r in rows.values() if r["Pareto"])
    labels = [d.label for d in plots(parts)["parallel"].data[0].dimensions]
    assert labels == ["method", "beta", "clean", "robust"]
    best = any(r["clean"] == 1 for r in rows.values())
    said = "No model has a clean accuracy of at least 1." in notes(
        show(results, "tradeoff", "?experiment=moons-linf&least=1")
    )
    assert said != best


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


def test_one_sample_with_its_images_and_predictions(results):
    arrays = np.load(results / "images" / "examples" / "noisy.npz", allow_pickle=False)
    index = int(arrays["index"][1])
    parts = show(results, "sample", f"?run=images&sample={index}")
    assert len(plots(parts)["sample"].data) == 6  # clean and two levels, and their differences
    own = pd.read_parquet(results / "images" / "outcomes.parquet").query(f"index == {index}")
    rows = grid(parts, "outcomes")
    assert len(rows) == len(own)
    for row in rows:
        same = own[(own.attack == row["attack"]) & (own.loss == row["loss"]) & (own.noise == row["noise"])]
        assert row["prediction"] == same.prediction.item()
        assert row["predicted class"] == str(arrays["class_names"][row["prediction"]])
    parts = show(results, "sample", "?run=images&sample=other&index=9")
    assert {row["index"] for row in grid(parts, "outcomes")} == {9}
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


# ---- what may be asked for -----------------------------------------------------------------------------


def test_nothing_outside_of_the_results_is_ever_returned(tmp_path):
    root = tmp_path / "results"
    run = make_run(root / "run", "moons", {0.1: 0.5})
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text(SECRET)
    other = make_run(outside / "run", "moons", {0.1: 0.5})
    write_json(other.summary_path, {**other.summary(), "message": SECRET})
    write_json(other.progress_path, {"stage": SECRET})
    (root / "link").symlink_to(outside / "run")
    (run.path / "examples").symlink_to(outside)
    run.progress_path.symlink_to(other.progress_path)
    write_json(run.summary_path, {**run.summary(), "status": "running"})
    run.outcomes_path.symlink_to(outside / "secret.txt")
    (root / "dataset").symlink_to(outside)
    page = client(root)
    ways = [
        "../outside/secret.txt",
        "..%2Foutside%2Fsecret.txt",
        "%2e%2e/outside/secret.txt",
        "....//outside/secret.txt",
        str(outside / "secret.txt"),
        "link/summary.json",
        "run/examples/secret.txt",
        "../outside/run",
        "link",
    ]
    answers = []
    for way in ways:
        for address in (
            f"/{way}",
            f"/assets/{way}",
            f"/csv/{way}",
            f"/csv/runs/{way}.csv",
            f"/_dash-component-suites/dash/{way}",
            f"/csv/accuracy/accuracies.csv?runs={way}",
            f"/csv/sample/outcomes.csv?run={way}",
        ):
            answers.append(page.get(address, follow_redirects=True))
    for view in VIEWS:
        for way in ("run", *ways):
            answers.append(page.get(f"/csv/{view}/runs.csv?run={way}&runs={way}"))
            answers.append(update(page, f"/{view}", f"?run={way}&runs={way}"))
    assert {a.status_code for a in answers} <= {200, 204, 302, 308, 403, 404}
    assert any(a.status_code == 200 for a in answers)
    assert not any(SECRET in a.text for a in answers)


def update(page: FlaskClient, path: str, search: str) -> Any:
    """The request by which the page asks for its content."""
    outputs = ["content.children", "introduction.children", "views.children", "problems.children", "problems.hidden"]
    names = [*outputs, "canonical.data"]
    body = {
        "output": ".." + "...".join(names) + "..",
        "outputs": [dict(zip(("id", "property"), name.split("."), strict=True)) for name in names],
        "inputs": [
            {"id": "address", "property": "pathname", "value": path},
            {"id": "address", "property": "search", "value": search},
        ],
        "state": [{"id": "canonical", "property": "data", "value": None}],
        "changedPropIds": ["address.search"],
    }
    answer = page.post("/_dash-update-component", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def test_the_page_names_damaged_files_and_shows_the_rest(tmp_path):
    make_run(tmp_path / "good", "moons", {0.1: 0.5})
    make_run(tmp_path / "half", "moons", {0.1: 0.5}).summary_path.write_text('{"status": "fini')
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text("server: {port: 80}\n")
    answer = update(client(tmp_path), "/accuracy", "").get_json()["response"]
    text = json.dumps(answer["problems"])
    assert "half/summary.json is damaged" in text
    assert "foreign/config.yaml" in text
    assert answer["problems"]["hidden"] is False
    assert "Accuracy under pgd100" in json.dumps(answer["content"])


class Bomb:
    def __reduce__(self) -> Any:
        return os.makedirs, (str(Path(os.environ["BOMB"])),)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    root = tmp_path / "results"
    run = make_run(root / "run", "fashion_mnist", {0.1: 0.5})
    run.write_history(
        [{"epoch": 1, "margin_mean": 0.1, "share_at_max": 0.0, "margin_histogram": [1, 2], "val_accuracy": 0.5}]
    )
    write_parquet(run.outcomes_path, outcomes_table(outcomes("pgd100", 0.1, {0: True}, epoch=60)))
    run.examples_dir.mkdir()
    bomb = np.array([Bomb()], dtype=object)
    for name, keys in (("noisy", ("index", "label")), ("extremes", ("index", "label")), ("boundary", ("grid_x",))):
        np.savez(run.examples_dir / f"{name}.npz", **dict.fromkeys(keys, bomb))
    run.audit_path.write_bytes(pickle.dumps(Bomb()))
    for view in VIEWS:
        show(root, view, "?run=run&runs=run")
    assert "Object arrays cannot be loaded" in notes(show(root, "margins", "?run=run"))
    assert "audit.parquet" in notes(show(root, "margins", "?run=run"))
    assert not (tmp_path / "exploded").exists()


def test_a_name_that_is_markup_stays_text(tmp_path):
    name = "<img src=x onerror=alert(1)>"
    make_run(tmp_path / name, "moons", {0.1: 0.5})
    for trace in plots(show(tmp_path, "accuracy"))["accuracy"].data:
        assert "<" not in trace.name


def test_looking_changes_nothing(results):
    before = files_of(results)
    page = client(results)
    for view in VIEWS:
        update(page, f"/{view}", f"?runs={RUN}&run=images")
    assert files_of(results) == before


# ---- who may look --------------------------------------------------------------------------------------


def test_on_loopback_only_names_of_this_machine_are_answered(tmp_path):
    page = client(tmp_path)
    for name in ("localhost", "127.0.0.1:8050", "[::1]:8050"):
        assert page.get("/", headers={"Host": name}).status_code == 200
    for name in ("evil.example", "evil.example:8050", "127.0.0.1.evil.example", "localhost.evil.example:80"):
        assert page.get("/", headers={"Host": name}).status_code == 403
        assert page.post("/_dash-update-component", json={}, headers={"Host": name}).status_code == 403


def test_elsewhere_the_token_is_asked_for_and_kept_in_a_cookie(tmp_path):
    token = access.new_token()
    assert len(token) >= 32
    page = client(tmp_path, token)
    for address in (
        "/",
        "/?token=",
        "/?token=wrong",
        f"/?token={token}x",
        f"/?token={token[:-1]}",
        "/csv/runs/runs.csv",
        "/_dash-layout",
    ):
        answer = page.get(address)
        assert answer.status_code == 403
        assert token not in answer.text
    answer = page.get(f"/accuracy?runs=a&token={token}&runs=b")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/accuracy?runs=a&runs=b")
    assert all(word in answer.headers["Set-Cookie"] for word in ("HttpOnly", "SameSite=Strict"))
    assert page.get("/_dash-layout").status_code == 200


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.9.9.9", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("::", False),
        ("login1", False),
    ],
)
def test_which_hosts_are_this_machine_alone(host, alone):
    assert access.is_loopback(host) is alone


def test_mistakes_are_one_sentence(tmp_path, capsys, monkeypatch):
    assert entry.main([str(tmp_path / "none")]) == 2
    assert "is not a directory" in capsys.readouterr().err
    assert entry.main([str(tmp_path), "--host", "192.0.2.1"]) == 2
    assert "Cannot listen on" in capsys.readouterr().err
    monkeypatch.setattr(entry.importlib.util, "find_spec", lambda name: None)
    assert entry.main([str(tmp_path)]) == 2
    assert "pip install dash" in capsys.readouterr().err


def test_it_opens_without_torch_and_ray(results):
    code = f"""
import sys
for name in ("torch", "ray", "torchvision"):
    sys.modules[name] = None
from pathlib import Path
from ima_dist.dashboard import __main__
from ima_dist.dashboard.app import look, values_of
from ima_dist.dashboard.views import VIEWS
from ima_dist.tracking.collection import Collection
runs = look(Collection(Path({str(results)!r})))
for view in VIEWS.values():
    assert view.show(runs, values_of(view.controls(runs, {{}})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
