"""``--notify``: what is told, to whom, and that nothing waits for it."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import Any, ClassVar

import pytest

from ima_dist import sweep, train
from ima_dist.cli import notify as module
from ima_dist.cli.notify import notify
from ima_dist.rundir.directory import RunDir

SHORT = ["--local", "--data.subset", "40", "--epochs", "1", "--attack.steps", "1", "--eval.steps", "1"]
SHORT += ["--eval.noise", "0", "--eval.samples", "5"]


def test_a_command_reads_the_summary(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["moons", *SHORT, "--out", "run", "--notify", "cat > told.json"]) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["event"], told["kind"], told["name"], told["message"], told["command"]) == (
        "finished", "run", "run", None, None,
    )  # fmt: skip
    assert told["summary"] == RunDir("run").summary()
    assert "notify" not in (tmp_path / "run" / "config.yaml").read_text()  # it may be secret


def test_a_failure_is_told_with_its_sentence_and_how_to_continue(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(module.VARIABLE, "cat > told.json")
    words = ["moons", *SHORT, "--data.subset", "600", "--epochs", "40", "--out", "run"]
    assert train.main([*words, "--model.factory", "tests.support.user_code:raises"]) == 1
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["event"] == "failed"
    assert "KeyError: 'a mistake'" in told["message"]
    assert told["command"] == "python -m ima_dist.train --resume run"


def test_a_sweep_tells_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("title: t\npreset: moons\noptions: {method: ce}\nsweep: {epochs: [1, 2]}\n")
    monkeypatch.setenv(module.VARIABLE, "cat >> told.json")
    monkeypatch.setattr(sweep, "_run", lambda *_: 1)
    monkeypatch.setattr(
        sweep, "earlier_records", lambda root: [{"name": "a", "status": "failed"}, {"name": "b", "status": "finished"}]
    )
    assert sweep.main(["s.yaml", "--out", "out"]) == 1
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["kind"], told["name"], told["message"]) == ("sweep", "out", "1 of 2 trials failed")
    assert told["summary"] == {"a": "failed", "b": "finished"}


class Receiver(http.server.BaseHTTPRequestHandler):
    received: ClassVar[list[dict[str, Any]]] = []
    status = 200

    def do_POST(self):
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Receiver.received, Receiver.status = [], 200
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/secret"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_gets_one_sentence_and_the_summary(address, tmp_path, capsys):
    notify(address, "run", tmp_path / "r", message="It broke.", summary={"a": 1})
    (told,) = Receiver.received
    assert told["text"].startswith("run r on ")
    assert told["text"].endswith(" failed: It broke.")
    assert told["summary"] == {"a": 1}
    assert capsys.readouterr().err == ""
    Receiver.status = 500
    notify(address, "run", tmp_path / "r", message=None, summary={})
    said = capsys.readouterr().err
    assert said.startswith("warning: --notify: not posted (HTTPError: HTTP Error 500")
    assert "secret" not in said


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("exit 3", "the command ended with status 3"),
        ("echo no such channel >&2; false", "status 1 (no such channel)"),
        ("sleep 60 & wait", "the command had not ended after 1 s, and was ended"),
        ("http://127.0.0.1:9/secret", "not posted (URLError"),
        ("http://[secret", "not posted (ValueError"),
    ],
)
def test_what_goes_wrong_is_a_warning_and_keeps_nobody(target, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "WITHIN", 1.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    began = time.monotonic()
    notify(target, "run", tmp_path, message=None, summary={})
    assert time.monotonic() - began < 30
    said = capsys.readouterr().err
    assert problem in said
    assert said.count("\n") == 1
    assert "secret" not in said


def test_nobody_is_told_unless_asked(tmp_path, capsys):
    notify(None, "run", tmp_path, message="x", summary={})
    assert capsys.readouterr() == ("", "")
