"""A full or read-only disk costs only what is due."""

from __future__ import annotations

import errno
import io
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from ima_dist import train
from ima_dist.cli.entry import say
from ima_dist.config.errors import complain
from ima_dist.rundir import files
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import append, read_json
from ima_dist.tracking import recorder
from ima_dist.tracking.recorder import Recorder
from ima_dist.training.loop import Training
from tests.support import workers
from tests.support.commands import wait_for
from tests.support.inline import without_ray
from tests.support.summaries import make_run

TINY = ["--data.subset", "60", "--epochs", "3", "--eval.steps", "2", "--attack.steps", "2", "--device", "cpu"]
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _NoRoom(io.FileIO):
    def write(self, data: Any) -> int:
        raise OSError(FULL.errno, FULL.strerror)


class Disk:
    """Has no room for files and directories whose path has one of ``refused`` in it.

    Some of them cannot be written, and those that others write (Parquet, safetensors) cannot be synced.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused: tuple[str, ...] = ()
        self.tried: list[str] = []
        self.genuine = os.fsync
        monkeypatch.setattr(os, "fsync", self.sync)
        monkeypatch.setattr(files, "open", self.open, raising=False)

    def _refuses(self, path: str) -> bool:
        if any(part in path for part in self.refused):
            self.tried.append(path)
            return True
        return False

    def sync(self, descriptor: int) -> None:
        if self._refuses(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(FULL.errno, FULL.strerror)
        self.genuine(descriptor)

    def open(self, path: Path, mode: str, **more: int) -> Any:
        full = self._refuses(str(path))
        return io.BufferedWriter(_NoRoom(path, mode)) if full else open(path, mode, **more)


@pytest.fixture
def disk(monkeypatch):
    without_ray(monkeypatch)
    return Disk(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on a disk with room."""
    path = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        assert trained(path) == 0
    return path


def trained(path: Path, *options: str) -> int:
    return train.main(["moons", *TINY, "--out", str(path), *options])


def test_what_is_only_shown_does_not_end_a_run(disk, tmp_path, capsys):
    shown = ("progress.json", "answers", "boundary", "extremes", "accuracy.png")
    disk.refused = shown
    assert trained(tmp_path / "run") == 0
    err = capsys.readouterr().err
    assert all(any(name in path for path in disk.tried) for name in shown)
    run = RunDir(tmp_path / "run")
    assert run.status == "finished"
    assert [row["epoch"] for row in run.read_history()] == [1, 2, 3]
    assert not any(path.suffix == ".tmp" for path in run.path.rglob("*"))
    assert err.count("figures are missing") == 1


def test_it_is_tried_again_and_said_once(disk, tmp_path):
    config, run = workers.start_run(tmp_path / "run", "moons", data__subset=60, epochs=2, method="ce", batch_size=10)
    training = Training(config, run, workers.load(config.data, config.seed), workers.torch.device("cpu"))
    training.reporter.due = lambda: True
    step, count = training._step, 0

    def stepping(*given: Any) -> None:
        nonlocal count
        count += 1
        disk.refused = ("progress.json",) if count in (2, 3, 4) else ()
        step(*given)

    training._step = stepping
    training.fit()
    assert len(disk.tried) == 3
    (said,) = read_json(run.progress_path)["warnings"]
    assert "progress.json cannot be written (No space left on device): the run goes on without it" in said


@pytest.mark.parametrize("refused", ["model", "optimizer", "state.json", "shard", "manifest", "history", "checkpoints"])
def test_a_checkpoint_that_is_due_ends_it_with_one_sentence(disk, whole, tmp_path, capsys, monkeypatch, refused):
    finish = Training._finish_epoch

    def finishing(self: Training) -> None:
        if self.state.position.epoch == 1:
            disk.refused = (refused,)
        finish(self)

    monkeypatch.setattr(Training, "_finish_epoch", finishing)
    assert trained(tmp_path / "run") == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "No space left on device" in line]
    assert str(tmp_path / "run") in error
    run = RunDir(tmp_path / "run")
    assert "epoch=0001" in {p.name for p in run.checkpoints_dir.iterdir()}
    assert not [p for p in run.path.rglob("*") if p.name.startswith(".writing-") or p.suffix == ".tmp"]
    disk.refused = ()
    monkeypatch.setattr(Training, "_finish_epoch", finish)
    assert train.main(["--resume", str(run.path)]) == 0
    weights, margins = workers.final_state(run.config(), run.path)
    wanted, wanted_margins = workers.final_state(run.config(), whole)
    assert workers.largest_difference(weights, wanted) == 0
    assert margins.tolist() == wanted_margins.tolist()


class _FullLog(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(FULL.errno, FULL.strerror)


def test_a_log_on_a_full_disk_does_not_end_a_run(monkeypatch):
    monkeypatch.setattr("sys.stdout", _FullLog())
    monkeypatch.setattr("sys.stderr", _FullLog())
    say("a line")
    complain("a warning")


@pytest.fixture
def short_files():
    """Files may have at most a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_appended_is_whole_or_not_there(tmp_path, short_files):
    path = tmp_path / "new" / "events"
    append(path, b"first")
    short_files(8)
    with pytest.raises(OSError, match="File too large") as caught:
        append(path, b"second")
    short_files(100)
    assert caught.value.filename == str(path)
    append(path, b"third")
    assert path.read_bytes() == b"firstthird"


def test_rows_and_events_are_recorded_when_there_is_room_again(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "_POLL_SECONDS", 0.01)
    said: list[str] = []
    # Not by capsys, which may lose what a thread writes while it is asked.
    monkeypatch.setattr(recorder, "complain", said.append)
    run, refused = make_run(tmp_path / "runs" / "one", "moons", {}), True
    genuine = recorder.append

    def appending(path: Path, data: bytes) -> None:
        if refused:
            raise OSError(FULL.errno, FULL.strerror, str(path))
        genuine(path, data)

    monkeypatch.setattr(recorder, "append", appending)
    with Recorder(run, run.path.parent):
        disk.refused = ("/dataset/",)
        run.write_history([{"epoch": 1, "train_loss": 1.0}])
        wait_for(lambda: len(said) == 2, 120, "both to be refused")
        disk.refused, refused = (), False
    assert all("not recorded" in text and "No space left on device" in text for text in said)
    (events,) = (run.path.parent / "tensorboard" / "one").iterdir()
    assert b"train_loss" in events.read_bytes()
    assert (run.path.parent / "dataset" / "history" / "one.parquet").exists()


def test_directories_are_on_the_disk_before_a_checkpoint_counts(tmp_path, monkeypatch):
    config, run = workers.start_run(tmp_path / "run", "moons", data__subset=60, epochs=1, batch_size=10)
    done: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, Path.rename, os.replace

    def syncing(descriptor: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renaming(path: Path, target: Path) -> Path:
        done.append(("move", str(target)))
        return rename(path, target)

    def replacing(path: Path, target: Path) -> None:
        if target != run.progress_path:  # of use only while the run goes on
            done.append(("move", str(target)))
        replace(path, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "rename", renaming)
    monkeypatch.setattr(os, "replace", replacing)
    workers.train(config, run.path)
    moves = [index for index, (what, _) in enumerate(done) if what == "move"]
    moved = {done[index][1] for index in moves}
    assert {str(run.checkpoints_dir / "epoch=0001"), str(run.margins_dir / "epoch=0001")} < moved
    assert {str(run.history_path), str(run.newest_path)} < moved
    for index in moves:
        assert done[index + 1] == ("sync", str(Path(done[index][1]).parent))
    # New folders, too: their names are in the run's directory.
    first = done.index(("move", str(run.margins_dir / "epoch=0001")))
    assert ("sync", str(run.path)) in done[:first]
    synced = {Path(path).name for what, path in done if what == "sync"}
    assert {file.name for file in (run.checkpoints_dir / "epoch=0001").iterdir()} <= synced


def test_a_directory_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    def refusing(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refusing)
    files.sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        files.sync(tmp_path / "file")
