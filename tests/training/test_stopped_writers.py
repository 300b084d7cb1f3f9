"""A process that was stopped in mid-save, and goes on when another has taken its place, changes nothing of the other's.

The other one is let in at a chosen moment, by replacing a step of the first one's save.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from ima_dist.data.load import load
from ima_dist.evaluation import runner
from ima_dist.launch import workers as workers_of_ray
from ima_dist.rundir import files
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.lease import Lease, LeaseLost
from ima_dist.tracking import tables
from ima_dist.training import aside, checkpoint
from ima_dist.training.aside import Asides, clear_unfinished
from ima_dist.training.loop import Training
from ima_dist.worker.watchdog import watched
from tests.support import workers

SMALL = {"data__subset": 60, "epochs": 2, "batch_size": 10, "attack__steps": 2, "margin_update": "online"}
TAKEN = "has been taken over by process 2 on node2"


def contents(root: Path) -> dict[str, str]:
    """Path -> checksum of every file but those that are being written."""
    written = (p for p in root.rglob("*") if p.is_file() and p.suffix != ".tmp")
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in written}


def take(run: RunDir, process: int) -> RunDir:
    """The run as its next writer sees it, who has written itself into the lease."""
    other = RunDir(run.path)
    other.mark = f"{process}" * 8
    other.lock_path.write_text(f"{Lease(process, f'node{process}', other.mark)}\n")
    return other


def begun(config: Any, run: RunDir) -> Training:
    training = Training(config, run, load(config.data, config.seed), torch.device("cpu"))
    training.begin()
    return training


def advance(training: Training, steps: int) -> None:
    for _ in range(steps):
        training._step(torch.arange(10) + 10 * training.state.position.step)
        training.state.position.step += 1


@pytest.mark.parametrize(
    ("owner", "step", "after"),
    [
        (Asides, "make", True),
        (checkpoint, "_write_margins", False),
        (checkpoint, "_write_margins", True),
        (checkpoint, "_write_tensors", True),
        (checkpoint, "move_directory", False),
        (files.shutil, "rmtree", False),
        (checkpoint.noted, "note", False),
        (checkpoint, "_prune", False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("mid_epoch", [True, False], ids=["within an epoch", "at its end"])
def test_a_save_that_was_stopped(tmp_path, monkeypatch, owner, step, after, mid_epoch):
    config, run = workers.start_run(tmp_path / "run", "moons", **SMALL)
    first = take(run, 1)
    training = begun(config, first)
    advance(training, 1)
    checkpoint.save(first, training.identity, training.state)
    advance(training, 1)
    if not mid_epoch:
        training.state.store.reduce()
        training.state.begin_epoch(1)
    genuine, left = getattr(owner, step), []

    def successor() -> None:
        other = take(run, 2)
        clear_unfinished(other)
        second = begun(config, other)
        advance(second, 3)
        checkpoint.save(other, second.identity, second.state)
        second.state.store.reduce()
        second.state.begin_epoch(1)
        checkpoint.save(other, second.identity, second.state)
        other.write_json(other.summary_path, {"status": "the successor's"})
        # It is in the middle of its next one.
        Asides(other, other.checkpoints_dir / "epoch=0002", other.margins_dir / "epoch=0002").make()
        left.append(contents(run.path))

    def stopped(*arguments: Any, **more: Any) -> Any:
        if left or getattr(stopped, "busy", False):
            return genuine(*arguments, **more)
        stopped.busy = True
        if after:
            done = genuine(*arguments, **more)
            successor()
            return done
        successor()
        return genuine(*arguments, **more)

    monkeypatch.setattr(owner, step, stopped)
    with pytest.raises(LeaseLost, match=TAKEN):
        checkpoint.save(first, training.identity, training.state)
    assert contents(run.path) == left[0]
    assert sorted(p.name for p in run.checkpoints_dir.glob(f"{aside.WRITING}*")) == [".writing-epoch=0002-22222222"]
    found, complaints = checkpoint.newest(run, training.identity)
    assert (found.position.epoch, complaints) == (1, [])


@pytest.mark.parametrize("kind", ["summary", "progress", "history", "config", "table"])
def test_a_file_that_was_being_written(tmp_path, monkeypatch, kind):
    config, run = workers.start_run(tmp_path / "runs" / "run", "moons", **SMALL)
    first, root, left = take(run, 1), tmp_path / "runs", []

    def write(run: RunDir, value: int) -> None:
        if kind == "summary":
            run.write_json(run.summary_path, {"value": value})
        elif kind == "progress":
            run.write_progress({"value": value})
        elif kind == "history":
            run.write_history([{"epoch": value}])
        elif kind == "config":
            run.record(config.model_copy(update={"workers": value}))
        else:
            tables.write_run(root, run)

    write(first, 1)

    class Stopped(io.BufferedWriter):
        def flush(self) -> None:
            super().flush()
            if not left:
                left.append({})
                write(take(run, 2), 2)
                left[0] = contents(root)

    monkeypatch.setattr(files, "open", lambda path, mode: Stopped(io.FileIO(path, mode)), raising=False)
    with pytest.raises(LeaseLost, match=TAKEN):
        write(first, 3)
    assert contents(root) == left[0]
    assert not list(root.rglob("*.tmp"))


@pytest.mark.parametrize("kind", ["damaged outcomes", "progress", "stop request", "empty stacks"])
def test_a_file_that_was_to_be_removed(tmp_path, monkeypatch, kind):
    """What the first one finds is damaged, or no longer true; by the time it removes that, it is the successor's."""
    _, run = workers.start_run(tmp_path / "run", "moons", **SMALL)
    first = take(run, 1)
    file = run.path / {"progress": "progress.json", "empty stacks": "stacks/worker-0000.txt"}.get(kind, "file")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"damaged" if kind == "damaged outcomes" else b"")
    take(run, 2)
    if kind == "damaged outcomes":
        with pytest.raises(LeaseLost, match=TAKEN):
            runner._kept(first, [file])
    elif kind == "progress":

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(files, "open", full, raising=False)
        with pytest.raises(LeaseLost, match=TAKEN):
            first.write_progress({})
    elif kind == "stop request":
        monkeypatch.setattr(workers_of_ray, "STOP_FILE", file.name)
        workers_of_ray._tidy(first)
    else:
        with watched(first, torch.nn.Linear(1, 1), 60.0):
            pass
    assert file.exists()


def test_pieces_of_a_table_are_not_written_either(tmp_path):
    _, run = workers.start_run(tmp_path / "run", "moons", **SMALL)
    first = take(run, 1)
    take(run, 2)
    with pytest.raises(LeaseLost):
        first.write_parquet(first.outcomes_path, pa.table({"index": [1]}))
    with pytest.raises(LeaseLost):
        first.write_progress({})
    assert not first.dropped
    assert not list(run.path.glob(".*.tmp"))
