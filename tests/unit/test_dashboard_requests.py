"""What requests to the dashboard may ask for, who may ask, and what it must not import."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from ima_dist.dashboard import __main__ as entry
from ima_dist.dashboard import access
from ima_dist.dashboard.app import make_app
from ima_dist.dashboard.choosing import look
from ima_dist.dashboard.edit import _saved
from ima_dist.dashboard.parts import Editor
from ima_dist.dashboard.prefix import checked
from ima_dist.dashboard.shown import shown
from ima_dist.dashboard.views import VIEWS
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json, write_parquet
from ima_dist.rundir.notes import Notes, read_notes
from ima_dist.tracking.collection import Collection
from tests.support.commands import ROOT, environment
from tests.support.results import RUN, files_of
from tests.support.summaries import make_run, outcomes, outcomes_table
from tests.support.views import client, notes, plots, show

SECRET = "the content of a file outside"


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
    names = [*outputs, "canonical.data", "tick.disabled", "seen.data"]
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
    assert "Clean and robust accuracy under pgd100" in json.dumps(answer["content"])


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


def test_a_page_of_somebody_else_cannot_write(tmp_path):
    page = client(tmp_path)
    for site in ("cross-site", "same-site"):
        answer = page.post("/_dash-update-component", json={}, headers={"Sec-Fetch-Site": site})
        assert answer.status_code == 403
    assert page.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link may lead here


@pytest.mark.parametrize(
    ("given", "prefix"),
    [("/", "/"), ("", "/"), ("/node/n1/8050/", "/node/n1/8050/"), ("user/ann/proxy/8050", "/user/ann/proxy/8050/")],
)
def test_a_prefix_has_slashes_around_it(given, prefix):
    assert checked(given) == prefix


@pytest.mark.parametrize("given", ["//evil.example/", "/a/../b/", "/a b/", "/a?b/", "https://a/", "/a/./", "/<x>/"])
def test_a_prefix_that_is_no_path_is_refused(tmp_path, capsys, given):
    if given == "//evil.example/":
        assert checked(given) == "/evil.example/"  # not another host
        return
    assert entry.main([str(tmp_path), "--prefix", given]) == 2
    assert "--prefix must be a path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "asks"),
    [([], False), (["--prefix", "/x"], True), (["--edit"], True), (["--host", "0.0.0.0"], True)],
)
def test_when_a_token_is_asked_for(tmp_path, monkeypatch, capsys, options, asks):
    """On this machine alone, reading needs none; whoever may write, or comes through a proxy, needs one."""
    import werkzeug.serving

    class Stopped(Exception):
        pass

    def stop(*given: Any, **more: Any) -> Any:
        raise Stopped

    tokens: list[str | None] = []
    monkeypatch.setattr(access, "guard", lambda server, token: tokens.append(token))
    monkeypatch.setattr(werkzeug.serving, "make_server", stop)
    with pytest.raises(Stopped):
        entry._main([str(tmp_path), "--port", "0", *options])
    assert [token is not None for token in tokens] == [asks]


def test_notes_are_only_written_where_the_page_may_edit(tmp_path):
    make_run(tmp_path / "run", "moons", {0.1: 0.5})
    saved = _saved(Collection(tmp_path), "run", "a text", "one, two ,, one")
    assert saved == "Saved."
    assert read_notes(RunDir(tmp_path / "run")) == Notes("a text", ("one", "two"))
    assert "no such run" in _saved(Collection(tmp_path), "../run", "a text", "")
    outside = tmp_path.parent / "elsewhere.json"
    (tmp_path / "run" / "notes.json").unlink()
    (tmp_path / "run" / "notes.json").symlink_to(outside)
    assert "leads out of" in _saved(Collection(tmp_path), "run", "a text", "")
    assert not outside.exists()
    parts = shown("run", {"run": ["run"]}, look(Collection(tmp_path)))[1]
    assert not [p for p in parts if isinstance(p, Editor)]
    parts = shown("run", {"run": ["run"]}, look(Collection(tmp_path)), edit=True)[1]
    assert [p for p in parts if isinstance(p, Editor)]
    assert "note" not in str(make_app(tmp_path).callback_map)
    assert "note" in str(make_app(tmp_path, edit=True).callback_map)


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
    assert "pip install dash dash-ag-grid" in capsys.readouterr().err


def test_it_opens_without_torch_and_ray(results):
    code = f"""
import sys
for name in ("torch", "ray", "torchvision"):
    sys.modules[name] = None
from pathlib import Path
from ima_dist.dashboard import __main__
from ima_dist.dashboard.choosing import look
from ima_dist.dashboard.shown import values_of
from ima_dist.dashboard.views import VIEWS
from ima_dist.tracking.collection import Collection
runs = look(Collection(Path({str(results)!r})))
for view in VIEWS.values():
    assert view.show(runs, values_of(view.controls(runs, {{}})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
