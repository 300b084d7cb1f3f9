"""The table of cluster.status --watch, and the output of a row as it is followed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cluster import live, slurm, status
from cluster.records import write_private

RUN = {"state": "RUNNING", "node": "n[1-2]", "start": "0", "epoch": "3/9", "samples/s": "1,234", "accuracy": "0.5000"}
LINES = [
    {**RUN, "job": "t/ima", "message": "", "done": "0.25", "left": "5 min"},
    {
        **RUN,
        "job": "t/ce",
        "state": "PENDING",
        "message": "waits for free nodes [x] (Resources)",
        "done": "",
        "left": "-",
    },
    {**RUN, "job": "t/adv", "state": "FINISHED", "message": "", "done": "1.0", "left": "-"},
]


def shown(height: int) -> str:
    console = Console(file=io.StringIO(), width=150, height=40)
    console.print(live.rich_table(LINES, height))
    return console.file.getvalue()


def test_the_table_says_what_one_waits_for():
    text = shown(20)
    for words in ("t/ima", "n[1-2]", "3/9", "1,234", "5 min", "waits for free nodes [x] (Resources)", "━"):
        assert words in text
    assert "1 RUNNING, 1 PENDING, 1 FINISHED" in text
    assert text.index("t/ima") < text.index("t/ce") < text.index("t/adv")
    assert "t/adv" not in shown(2)
    assert "1 not shown" in shown(2)


def test_without_a_terminal_the_table_is_printed_when_a_state_changes(monkeypatch):
    over = [{**line, "state": "FINISHED", "message": ""} for line in LINES]
    looks = iter([LINES, LINES, [{**line, "epoch": "4/9"} for line in LINES], over])
    monkeypatch.setattr(live.time, "sleep", lambda seconds: None)
    console = Console(file=io.StringIO(), width=150)
    live.follow_table(lambda: next(looks), lambda lines: f"{len(lines)} lines", console)
    assert console.file.getvalue() == "3 lines\n3 lines\n"
    live.follow_table(lambda: over, str, Console(file=io.StringIO(), force_terminal=True))


def test_following_says_why_a_row_waits_and_how_it_left(tmp_path, monkeypatch, capsys):
    row = {"name": "ima", "id": "7", "run": str(tmp_path / "run")}
    answers = [{"7": {"state": "PENDING", "reason": "Priority"}}] * 2 + [
        {"7": {"state": "RUNNING", "reason": "None"}},
        {},
    ]
    monkeypatch.setattr(slurm, "queue", lambda: answers.pop(0))

    def sleep(seconds: float) -> None:
        if len(answers) == 1:
            (tmp_path / "ima").mkdir(exist_ok=True)
            (tmp_path / "ima" / "output.txt").write_text("training\nKilled\n")

    monkeypatch.setattr(status.time, "sleep", sleep)
    status.follow(tmp_path, row, -1.0)
    out, err = capsys.readouterr()
    assert out == "training\nKilled\n"
    first, last = err.splitlines()
    assert first == "PENDING: jobs of higher priority come first (Priority)"
    assert last.startswith("it left SLURM without a result: see")
    assert last.endswith("which ends: training / Killed")
    write_private(tmp_path / "ima" / "result.json", {"status": 0, "message": ""})
    monkeypatch.setattr(slurm, "queue", dict)
    status.follow(tmp_path, row, -1.0)
    assert capsys.readouterr() == ("training\nKilled\n", "")


@pytest.mark.parametrize("name", ["SQUEUE_STATES", "SLURM_TIME_FORMAT", "SINFO_FORMAT", "SACCT_FORMAT"])
def test_the_users_forms_of_output_are_set_aside(name, tmp_path, monkeypatch):
    program = tmp_path / "squeue"
    program.write_text('#!/bin/sh\nenv | grep -c "^S[A-Z]*_[A-Z]*=relative" || true\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv(name, "relative")
    assert slurm.command("squeue") == "0\n"
