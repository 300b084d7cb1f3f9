"""The progress view on a log file and on a terminal."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ima_dist.cli import progress
from ima_dist.cli.progress import ProgressView, describe, format_seconds
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json

TRAINING = {
    "stage": "training",
    "epoch": 3,
    "epochs": 30,
    "step": 157,
    "steps": 157,
    "samples_done": 60_000,
    "samples_total": 600_000,
    "samples_per_second": 9300.4,
    "loss": 0.2311,
    "clean_accuracy": 0.9979,
    "margin_mean": 0.02871,
    "share_at_max": 0.61,
    "seconds_left": 100.2,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class GonePipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_POLL_SECONDS", 0.005)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "nothing was shown"
        time.sleep(0.005)


def show(run: RunDir, stream: io.StringIO, steps: list[tuple[dict[str, Any], str]]) -> str:
    """Write each state once the text that belongs to the one before it has appeared."""
    with ProgressView(run, stream):
        for state, text in steps:
            write_json(run.progress_path, state)
            wait_for(lambda text=text: text in stream.getvalue())  # type: ignore[misc]
    assert not any(t.name == "progress" for t in threading.enumerate())
    return stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (59.7, "1 min 00 s"),
        (100, "1 min 40 s"),
        (65, "1 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (7199, "2 h 00 min"),
        (180_000, "50 h 00 min"),
        (-3, "0 s"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_describe_training() -> None:
    assert describe(TRAINING) == (
        "epoch 3/30  step 157/157  9,300 samples/s  loss 0.231  clean 0.998  "
        "margin 0.0287 (61 % at maximum)  1 min 40 s left"
    )
    assert describe(TRAINING, compact=True) == (
        "epoch 3/30  1 min 40 s left  9,300 samples/s  loss 0.231  clean 0.998  margin 0.0287 (61 % at maximum)"
    )


def test_describe_without_margins_or_rate() -> None:
    ce = {**TRAINING, "margin_mean": None, "share_at_max": None, "samples_per_second": None}
    assert describe(ce) == "epoch 3/30  step 157/157  loss 0.231  clean 0.998  1 min 40 s left"


def test_describe_other_stages() -> None:
    evaluation = {**TRAINING, "stage": "evaluation", "evaluation_done": 1200, "evaluation_total": 2000}
    assert describe(evaluation) == "evaluation 1,200/2,000  1 min 40 s left"
    assert describe({"stage": "evaluation"}) == "evaluation"
    assert describe({**TRAINING, "stage": "done"}) == "done"
    assert describe({"stage": "starting", "message": "2 workers"}) == "starting: 2 workers"
    assert describe({}) == ""


def test_log_tells_when_the_number_of_workers_changes(run: RunDir) -> None:
    steps = [
        ({**TRAINING, "workers": 1}, "training"),
        ({**TRAINING, "workers": 2}, "Continuing with 2 workers."),
        ({**TRAINING, "stage": "evaluation"}, "evaluation"),
        ({**TRAINING, "workers": 1}, "Continuing with 1 worker."),
    ]
    text = show(run, io.StringIO(), steps)
    assert text.count("Continuing") == 2


def test_a_warning_is_shown_once(run: RunDir) -> None:
    warning = "model.safetensors is damaged; continuing from epoch=0002."
    steps = [({**TRAINING, "warnings": [warning], "step": step}, f"warning: {warning}") for step in (1, 2)]
    text = show(run, io.StringIO(), [*steps, ({**TRAINING, "stage": "evaluation", "warnings": []}, "evaluation")])
    assert text.count("damaged") == 1


def test_log_has_a_line_for_each_stage_and_each_finished_epoch(run: RunDir) -> None:
    first = {**TRAINING, "epoch": 1, "epochs": 2, "step": 150, "margin_mean": None, "share_at_max": None}
    margins = {**first, "stage": "margins", "step": 157, "loss": 0.5}
    second = {**TRAINING, "epoch": 2, "epochs": 2, "step": 1, "margin_mean": 0.02}
    text = show(
        run,
        io.StringIO(),
        [
            ({"stage": "starting", "message": "2 workers"}, "starting"),
            (first, "training (epoch 1/2)"),
            (margins, "margins (epoch 1/2)"),
            (second, "training (epoch 2/2)"),
            ({**second, "stage": "evaluation", "evaluation_done": 0, "evaluation_total": 10}, "evaluation"),
            ({"stage": "done"}, "done"),
        ],
    )
    # Epoch 1: the steps are complete, the margins are those that came after them.
    assert text.splitlines() == [
        "starting: 2 workers",
        "training (epoch 1/2)",
        "margins (epoch 1/2)",
        "epoch 1/2  step 157/157  9,300 samples/s  loss 0.500  clean 0.998  "
        "margin 0.0200 (61 % at maximum)  1 min 40 s left",
        "training (epoch 2/2)",
        "epoch 2/2  step 157/157  9,300 samples/s  loss 0.231  clean 0.998  margin 0.0200 (61 % at maximum)",
        "evaluation",
        "done",
    ]


def test_log_follows_a_run_that_goes_back_to_an_earlier_epoch(run: RunDir) -> None:
    later = {**TRAINING, "epoch": 7}
    again = {**TRAINING, "epoch": 5}
    text = show(
        run,
        io.StringIO(),
        [
            (later, "training (epoch 7/30)"),
            ({"stage": "starting"}, "starting"),
            (again, "training (epoch 5/30)"),
            ({**again, "epoch": 6}, "epoch 5/30  step"),
        ],
    )
    assert "epoch 7/30  step" not in text  # epoch 7 was not finished
    assert text.splitlines()[-1].startswith("epoch 6/30  step 157/157")  # the last state, on leaving


def test_log_has_a_line_a_minute_even_without_news(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.05)
    stream = io.StringIO()
    write_json(run.progress_path, TRAINING)
    with ProgressView(run, stream):
        wait_for(lambda: stream.getvalue().count("\n") >= 4)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training (epoch 3/30)"
    assert lines[1].startswith(describe(TRAINING))
    assert lines[2] == describe(TRAINING) + "  (no news for 0 s)"


def test_log_is_quiet_within_the_minute(run: RunDir) -> None:
    text = show(run, io.StringIO(), [(TRAINING, "training")])
    assert text.splitlines() == ["training (epoch 3/30)", describe(TRAINING)]


def test_terminal_shows_one_bar_over_the_whole_training(run: RunDir) -> None:
    text = show(
        run,
        Terminal(),
        [
            ({"stage": "starting"}, "starting"),
            (TRAINING, " 10%|"),
            ({"stage": "evaluation", "evaluation_done": 500, "evaluation_total": 2000}, " 25%|"),
            ({**TRAINING, "stage": "done", "samples_done": 590_000}, "done"),
        ],
    )
    assert describe(TRAINING, compact=True) in text
    assert "evaluation 500/2,000" in text
    assert text.endswith("\n")  # the prompt comes on a line of its own
    last = text.rstrip().split("\r")[-1]
    assert last.startswith("100%|")
    assert last.rstrip().endswith("done")


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_nothing_is_shown_without_a_file(run: RunDir, kind: type[io.StringIO]) -> None:
    stream = kind()
    with ProgressView(run, stream):
        time.sleep(0.05)
    assert stream.getvalue() == ""
    assert not any(t.name == "progress" for t in threading.enumerate())


def test_last_state_is_shown_after_an_exception(run: RunDir) -> None:
    stream = io.StringIO()

    def fail() -> None:
        with ProgressView(run, stream):
            write_json(run.progress_path, TRAINING)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert stream.getvalue().splitlines()[-1] == describe(TRAINING)


def test_a_damaged_file_is_passed_over(run: RunDir) -> None:
    stream = io.StringIO()
    with ProgressView(run, stream):
        run.progress_path.write_text('{"stage": "tra')
        time.sleep(0.05)
        write_json(run.progress_path, TRAINING)
        wait_for(lambda: "training" in stream.getvalue())
    assert stream.getvalue().splitlines() == ["training (epoch 3/30)", describe(TRAINING)]


def test_a_closed_pipe_does_not_end_the_run(run: RunDir) -> None:
    write_json(run.progress_path, TRAINING)
    view = ProgressView(run, GonePipe())
    with view:
        wait_for(lambda: not view._thread.is_alive())
    assert not view._thread.is_alive()


def test_import_needs_no_torch() -> None:
    code = "import sys, ima_dist.cli.progress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_in_a_notebook_one_bar_is_updated(tmp_path, monkeypatch, capsys):
    shown = []
    handle = types.SimpleNamespace(update=lambda bundle, raw: shown.append(bundle))
    module = types.ModuleType("IPython")
    module.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    module.display = types.ModuleType("IPython.display")
    module.display.display = lambda bundle, raw, display_id: handle
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", module.display)
    run = RunDir(tmp_path)
    with ProgressView(run):
        write_json(run.progress_path, {**TRAINING, "message": "<b>", "warnings": ["a warning"]})
    assert shown[-1]["text/plain"] == describe(TRAINING, compact=True)
    assert '<progress value="60000" max="600000">' in shown[-1]["text/html"]
    assert "warning: a warning" in capsys.readouterr().err
