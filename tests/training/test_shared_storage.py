"""What must be there is named, and waited for: on shared storage a list of a directory may be old."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from ima_dist.data.load import load
from ima_dist.rundir import files
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json, write_json
from ima_dist.training import checkpoint, resume
from ima_dist.training.loop import Training
from tests.support import workers

SMALL = {"data__subset": 60, "epochs": 2, "batch_size": 10, "attack__steps": 2, "margin_update": "online"}


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A run with a checkpoint after its first epoch, and one after two steps of the second."""
    monkeypatch.setattr(files, "VISIBLE_WITHIN", 0.3)
    config, run = workers.start_run(tmp_path / "run", "moons", **SMALL)
    workers.train(config, run.path, stop_after=9)
    assert sorted(p.name for p in run.checkpoints_dir.iterdir())[-1].startswith("epoch=0001-step=")
    return Training(config, run, load(config.data, config.seed), torch.device("cpu"))


def newest(training: Training) -> checkpoint.Checkpoint:
    found, complaints = checkpoint.newest(training.run, training.identity)
    assert found is not None
    assert complaints == []
    return found


def appear(path, seconds=0.1):
    """Make the file or directory at ``path`` visible again after a while."""
    hidden = path.with_name(f"hidden-{path.name}")
    os.rename(path, hidden)
    timer = threading.Timer(seconds, os.rename, (hidden, path))
    timer.start()
    return timer


def test_proposals_that_are_seen_late_are_waited_for(interrupted, monkeypatch):
    monkeypatch.setattr(files, "VISIBLE_WITHIN", 30.0)
    found = newest(interrupted)
    (file,) = found.path.glob("pending-*")
    (found.path / "pending-0001-of-0002.safetensors").write_bytes(b"of no checkpoint")
    timer = appear(file)
    resume._restore(interrupted.run, found, interrupted.state, checkpoint.restore)
    timer.join()
    assert int(interrupted.state.store.proposed.sum()) == 10 * found.position.step


def test_proposals_that_never_come_are_an_error(interrupted):
    found = newest(interrupted)
    (file,) = found.path.glob("pending-*")
    file.unlink()
    with pytest.raises(checkpoint.Damaged, match=rf"{file.name}"):
        resume._restore(interrupted.run, found, interrupted.state, checkpoint.restore)


def test_the_newest_checkpoint_is_waited_for_if_another_host_has_written_it(interrupted, monkeypatch):
    found, run = newest(interrupted), interrupted.run
    assert read_json(run.newest_path)["name"] == found.path.name
    write_json(run.newest_path, {"name": found.path.name, "host": "another"})
    monkeypatch.setattr(files, "VISIBLE_WITHIN", 30.0)
    for path in (found.path, found.path / "state.json", next(found.path.glob("pending-*"))):
        timer = appear(path)
        assert newest(interrupted).position == found.position
        timer.join()


def test_the_noted_checkpoint_is_found_though_a_list_of_the_directory_is_old(interrupted, monkeypatch):
    found, genuine = newest(interrupted), Path.glob

    def old_list(self, pattern):
        return (path for path in genuine(self, pattern) if path != found.path)

    monkeypatch.setattr(Path, "glob", old_list)
    assert newest(interrupted).position == found.position


@pytest.mark.parametrize("host", [None, "another"])
def test_a_newest_checkpoint_that_does_not_come_is_named(interrupted, host):
    found, run = newest(interrupted), interrupted.run
    if host:
        write_json(run.newest_path, {"name": found.path.name, "host": host})
    os.rename(found.path, run.path / "elsewhere")
    before, complaints = checkpoint.newest(run, interrupted.identity)
    assert before.position.epoch == 1
    assert complaints == [f"{found.path} is missing"]
    os.rename(before.path, run.path / "elsewhere-too")
    for other in run.checkpoints_dir.iterdir():
        os.rename(other, run.path / f"moved-{other.name}")
    with pytest.raises(checkpoint.Damaged, match=r"is missing\. No whole checkpoint is left"):
        checkpoint.newest(run, interrupted.identity)


@pytest.mark.parametrize("text", ["{}", "{", '{"name": 7}', '{"name": "../../etc"}'])
def test_a_note_that_says_nothing_is_passed_over(interrupted, text):
    interrupted.run.newest_path.write_text(text)
    newest(interrupted)


def test_a_shard_of_margins_that_is_missing_is_named(interrupted):
    run = RunDir(interrupted.run.path)
    (shard,) = (run.margins_dir / "epoch=0001").glob("shard-*")
    shard.unlink()
    said: list[str] = []
    assert run.newest_margins(said.append) is None
    assert len(said) == 1
    assert shard.name in said[0]
