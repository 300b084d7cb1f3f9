"""Where each run stands: its status, how far it is, on which machine, and what to do about one that has ended badly."""

import re
from dataclasses import dataclass
from typing import Any

from ima_dist.cli.progress import format_seconds
from ima_dist.results.commands import continue_command
from ima_dist.rundir.lease import Lease
from ima_dist.rundir.liveness import DIED, RUNNING
from ima_dist.tracking.collection import Recorded

_SILENT = 120.0  # seconds without news after which the status of a running run says so
BADLY = ("failed", DIED, "damaged", "interrupted")


@dataclass(frozen=True)
class Progress:
    """How far a run is. share: of its training, or of the evaluation after it. epoch: number and that of all, such as
    "6/8"; words: the same with what it means. rate: samples of the training per second. left: time, in words. where:
    machine, job and workers. silent: words if nothing has been heard of it for minutes."""

    share: float
    stage: str
    epoch: str
    words: str
    rate: int | None
    left: str | None
    where: str | None
    silent: str | None


def progress_of(run: Recorded) -> Progress:
    """From progress.json while the run goes on, else from what it has left."""
    info = run.info
    done, epochs = info["epochs_done"], info["epochs"]
    share, epoch, words = min(1.0, done / epochs), f"{done}/{epochs}", f"{done} of {epochs} epochs done"
    last = run.epochs_table.slice(max(0, run.epochs_table.num_rows - 1)).to_pylist() or [{}]
    rate = _rate(info["train_samples_per_second"] or last[0].get("samples_per_second"))
    if run.status not in (RUNNING, DIED):
        return Progress(share, "", epoch, words, rate, None, None, None)
    state = run.progress()
    stage = str(state.get("stage") or "starting")[:40]
    kind = "evaluation" if stage == "evaluation" else "samples"
    part, whole = _number(state.get(f"{kind}_done")), _number(state.get(f"{kind}_total"))
    share = max(0.0, min(1.0, part / whole)) if part is not None and whole else share
    if isinstance(state.get("epoch"), int):
        epoch, words = f"{state['epoch']}/{epochs}", f"in epoch {state['epoch']} of {epochs}"
    left, age = _number(state.get("seconds_left")), state.get("age", 0.0)
    if run.status == DIED:
        return Progress(share, stage, epoch, words, rate, None, _where(run, state), None)
    silent = f"no news for {format_seconds(age)}" if age > _SILENT else None
    rate = None if kind == "evaluation" else _rate(state.get("samples_per_second"))
    said_left = None if left is None else format_seconds(left)
    return Progress(share, stage, epoch, words, rate, said_left, _where(run, state), silent)


def _where(run: Recorded, state: dict[str, Any]) -> str | None:
    lease, workers = Lease.read(run.dir.lock_path), state.get("workers")
    said = [] if lease is None else [lease.host, *([f"job {lease.job}"] if lease.job else [])]
    said += [f"{workers} worker{'s' * (workers != 1)}"] if isinstance(workers, int) and workers else []
    return ", ".join(said) or None


def sentence_of(run: Recorded) -> str:
    """Why a run ended badly."""
    if run.status == "damaged":
        found = next(iter([*run.damaged("summary"), *run.problems.values()]), "Its files cannot be read.")
        # Without the parser's own words.
        return re.sub(r" is damaged \(.*\): ", " cannot be read, perhaps cut off while it was written: ", found)
    usual = {"interrupted": "It was interrupted, and can be continued.", "failed": "It failed without a message."}
    return run.message or usual.get(run.status, "")


def remedy_of(run: Recorded) -> str:
    """The command that goes on with a run that ended badly; empty where there is none, or where it would fail again."""
    return "" if run.status == "damaged" or caution_of(run) else continue_command(run)


def caution_of(run: Recorded) -> str:
    """A sentence for a run that failed for want of another value of an option, as its message says; else empty."""
    wanted = run.status == "failed" and re.search(r"(?<!\S)--(?!resume\b)[a-z]", run.message or "")
    return "Continued unchanged, it would fail again: start a new run with what the message asks for." if wanted else ""


def began_at(run: Recorded) -> float:
    """When the run was made (Unix time), which writes its configuration; 0 if that has vanished."""
    try:
        return run.dir.config_path.stat().st_mtime
    except OSError:
        return 0.0


def ended_at(run: Recorded) -> float:
    """When the run last wrote its summary (Unix time); 0 if it never did."""
    try:
        return run.dir.summary_path.stat().st_mtime
    except OSError:
        return 0.0


def ago(seconds: float) -> str:
    """How long ago something was: "just now", "5 min ago", "3 h ago", "2 days ago"."""
    minutes = max(0, round(seconds / 60))
    if minutes < 90:
        return f"{minutes} min ago" if minutes else "just now"
    hours = round(seconds / 3600)
    return f"{hours} h ago" if hours < 48 else f"{round(seconds / 86400)} days ago"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _rate(value: object) -> int | None:
    return round(value) if isinstance(value, int | float) else None
