"""The progress of a run as the user sees it: a bar on a terminal or in a notebook, plain lines in a log file.

The workers write progress.json, perhaps on other machines; this module only reads it, without torch.
Keys, all optional: stage ("starting", "training", "margins", "evaluation", "done"), epoch (from 1), epochs,
step, steps, samples_done, samples_total, samples_per_second, workers, loss, clean_accuracy, margin_mean,
share_at_max, seconds_left, evaluation_done, evaluation_total, message, notes, warnings, updated (Unix time).
"""

from __future__ import annotations

import contextlib
import html
import sys
import threading
import time
from typing import Any, Self, TextIO

from tqdm import tqdm

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import append, read_json
from ima_dist.rundir.lease import LeaseLost

_POLL_SECONDS = 0.5
_LINE_SECONDS = 60.0  # longest time without a line in a log
_AFTER_TRAINING = ("evaluation", "done")


class ProgressView:
    """Context manager that follows a run's progress.json and shows it on ``stream`` (default: stderr).

    On a terminal and in a notebook, one bar counts the samples of the whole training, then those of the evaluation.
    Elsewhere, a line is printed per stage, per finished epoch (unless it took less than half a second), and at least
    every minute, as always into the run's log.txt. A missing or damaged file, or a stream whose reader has gone, never
    disturbs the run. On exit, the last state is shown.
    """

    def __init__(self, run: RunDir, stream: TextIO | None = None) -> None:
        self._path, self._stacks = run.progress_path, run.stacks_dir
        self._told: set[str] = set()
        self._workers: int | None = None
        self._display = _display(stream)
        self._log = _Lines(_LogFile(run))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._poll()
            self._log.close()
            self._display.close()

    def _follow(self) -> None:
        # A terminal that has gone away, or a log on a full disk, must not end the training.
        with contextlib.suppress(BrokenPipeError):
            while not self._stop.wait(_POLL_SECONDS):
                try:
                    self._poll()
                except BrokenPipeError:
                    raise
                except OSError:
                    pass  # the disk may have room again later

    def _poll(self) -> None:
        try:
            state = read_json(self._path)
        except (ConfigError, OSError):
            return  # the next poll may find it whole
        if state:
            self._log.show(state)
            self._display.show(state)
            workers = state.get("workers") or self._workers
            if self._workers is not None and workers != self._workers:
                self._note(f"Continuing with {workers} worker{'s' * (workers != 1)}.")
            self._workers = workers
            notes = [*(state.get("notes") or []), *(f"warning: {warning}" for warning in state.get("warnings") or [])]
            for note in notes:
                if note not in self._told:
                    self._told.add(note)
                    self._note(note)
        for file in sorted(self._stacks.glob("worker-*.txt")):
            if file.name not in self._told and file.stat().st_size:
                self._told.add(file.name)
                number = int(file.stem.rsplit("-", 1)[1])
                self._note(f"Worker {number} has made no progress; its stack trace is in {file}.")

    def _note(self, line: str) -> None:
        self._log.note(line)
        self._display.note(line)


def describe(state: dict[str, Any], compact: bool = False) -> str:
    """One line for a state of progress.json, without the values that are missing or None.

    ``compact`` drops the step and moves the time left to the front, where a narrow terminal does not cut it off.
    """
    stage = state.get("stage")
    seconds = state.get("seconds_left")
    left = "" if seconds is None else f"{format_seconds(seconds)} left"
    if stage == "evaluation":
        counts = _filled("{:,}/{:,}", state.get("evaluation_done"), state.get("evaluation_total"))
        return "  ".join(part for part in (f"evaluation {counts}".strip(), left) if part)
    epoch = _filled("epoch {}/{}", state.get("epoch"), state.get("epochs"))
    if stage in ("starting", "done") or not epoch:
        return ": ".join(str(part) for part in (stage, state.get("message")) if part)
    step = _filled("step {}/{}", state.get("step"), state.get("steps"))
    margin = _filled("margin {:.4f}", state.get("margin_mean"))
    if margin and state.get("share_at_max") is not None:
        margin += f" ({100 * state['share_at_max']:.0f} % at maximum)"
    measured = [
        _filled("{:,.0f} samples/s", state.get("samples_per_second")),
        _filled("loss {:.3f}", state.get("loss")),
        _filled("clean {:.3f}", state.get("clean_accuracy")),
        margin,
    ]
    where = "margins" if stage == "margins" else "" if compact else step
    parts = [epoch, where, left, *measured] if compact else [epoch, where, *measured, left]
    return "  ".join(part for part in parts if part)


def format_seconds(seconds: float) -> str:
    """A duration for people: ``45 s``, ``1 min 40 s``, ``2 h 05 min``."""
    whole = max(0, round(seconds))
    minutes = round(whole / 60)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{minutes // 60} h {minutes % 60:02d} min"


def _display(stream: TextIO | None) -> _Bar | _Cell | _Lines:
    if stream is None and "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        if getattr(shell, "kernel", None) is not None:
            return _Cell()
    stream = stream or sys.stderr
    return _Bar(stream) if stream.isatty() else _Lines(stream)


class _LogFile:
    """A run's log.txt, for as long as the run is ours. It is only shown: what cannot be written is left out."""

    def __init__(self, run: RunDir) -> None:
        self._run = run

    def write(self, line: str) -> None:
        with contextlib.suppress(OSError, LeaseLost):
            self._run.check_lease()
            append(self._run.log_path, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}".encode())

    def flush(self) -> None:
        pass


class _Lines:
    """Plain lines for a log file."""

    def __init__(self, stream: TextIO | _LogFile) -> None:
        self._stream = stream
        self._last: dict[str, Any] = {}
        self._last_line = ""
        self._changed_at = self._line_at = time.monotonic()

    def show(self, state: dict[str, Any]) -> None:
        before, self._last = self._last, state
        now = time.monotonic()
        self._changed_at = self._changed_at if state == before else now
        if _epoch_finished(before, state):
            self.note(_finished_line(before, state))
        if state.get("stage") and state["stage"] != before.get("stage"):
            self.note(_stage_line(state))
        elif now - self._line_at >= _LINE_SECONDS:
            silence = now - self._changed_at
            note = f"  (no news for {format_seconds(silence)})" if silence >= _LINE_SECONDS else ""
            self.note(describe(state) + note)

    def close(self) -> None:
        line = describe(self._last)
        if line and line != self._last_line:
            self.note(line)

    def note(self, line: str) -> None:
        self._line_at, self._last_line = time.monotonic(), line
        self._stream.write(line + "\n")
        self._stream.flush()


class _Bar:
    """A tqdm bar on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm[Any] | None = None

    def show(self, state: dict[str, Any]) -> None:
        text = describe(state, compact=True)
        if self._bar is None:
            # tqdm's own rate and time left would include the start-up time, and the old samples of a resumed run.
            layout = "{percentage:3.0f}%|{bar:12}| {desc}"
            self._bar = tqdm(desc=text, total=1, file=self._stream, dynamic_ncols=True, bar_format=layout)
        self._bar.n, self._bar.total = _done(state)
        self._bar.set_description_str(text)

    def note(self, text: str) -> None:
        tqdm.write(text, file=self._stream)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Cell:
    """A bar in the output of a notebook's cell."""

    def __init__(self) -> None:
        from IPython.display import display

        # Here, in the main thread: an output belongs to the cell that is being run.
        self._handle: Any = display(self._bundle({}), raw=True, display_id=True)

    def show(self, state: dict[str, Any]) -> None:
        self._handle.update(self._bundle(state), raw=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass

    def _bundle(self, state: dict[str, Any]) -> dict[str, str]:
        text = describe(state, compact=True)
        done, total = _done(state)
        return {
            "text/plain": text,
            "text/html": f'<progress value="{done}" max="{total}"></progress> {html.escape(text)}',
        }


def _done(state: dict[str, Any]) -> tuple[int, int]:
    """Samples done and to do, in training or evaluation."""
    what = "evaluation" if state.get("stage") == "evaluation" else "samples"
    total = state.get(f"{what}_total") or 1
    return min(total if state.get("stage") == "done" else state.get(f"{what}_done") or 0, total), total


def _epoch_finished(before: dict[str, Any], state: dict[str, Any]) -> bool:
    if before.get("epoch") is None or before.get("stage") in _AFTER_TRAINING:
        return False
    return state.get("stage") in _AFTER_TRAINING or (state.get("epoch") or 0) > before["epoch"]


def _finished_line(before: dict[str, Any], state: dict[str, Any]) -> str:
    # The last state read may be some steps short of the epoch's end. Its margins are computed after its steps, so only
    # the newer state has them. The newer time left is shown too, unless it is that of the evaluation.
    newer = {k: state[k] for k in ("margin_mean", "share_at_max") if state.get(k) is not None}
    left = None if state.get("stage") in _AFTER_TRAINING else state.get("seconds_left")
    whole = {"stage": "training", "step": before.get("steps"), "seconds_left": left}
    return describe({**before, **newer, **whole})


def _stage_line(state: dict[str, Any]) -> str:
    line = str(state["stage"])
    if line in ("training", "margins"):
        line += _filled(" (epoch {}/{})", state.get("epoch"), state.get("epochs"))
    return f"{line}: {state['message']}" if state.get("message") else line


def _filled(template: str, *values: Any) -> str:
    return "" if any(value is None for value in values) else template.format(*values)
