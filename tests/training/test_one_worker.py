"""What one worker meets alone ends all workers at once, and its sentence is what the user sees."""

from __future__ import annotations

import platform
import shutil
import threading
import time

import pytest

from ima_dist.launch import workers as launcher
from ima_dist.launch.cluster import Cluster
from ima_dist.launch.workers import payload, run_workers
from ima_dist.rundir import files
from ima_dist.rundir.directory import RunDir
from ima_dist.worker.failure import Failure, first_cause
from tests.support import workers
from tests.support.plants import PLANTED, Plant, group

OPTIONS = {
    "data__subset": 64, "epochs": 2, "batch_size": 32, "checkpoint_every": 1, "attack__steps": 2, "eval__steps": 2,
    "eval__noise": (0.0, 0.1), "eval__samples": 20, "dtype": "float64", "device": "cpu",
}  # fmt: skip
HERE = platform.node()
# Seconds in which all have to end; without the first cause they would wait for a day.
SOON = 60


def told(rank: int, what: str) -> str:
    return f"The workers failed; worker {rank} on {HERE} was the first to report: {what}"


MISTAKE, FULL = "KeyError: 'a mistake'", "OSError: [Errno 28] No space left on device: '/runs/file'"
DAMAGED = "/runs/file is damaged"

# Where a worker may fail alone, in the order of docs/architecture.md; and the sentence.
TRAINING = [
    (Plant("ima_dist.worker.main:from_dict", "mistake"), told(1, MISTAKE)),
    (Plant("ima_dist.rundir.directory:RunDir.summary", "stale", rank=0), told(0, "OSError: [Errno 116] Stale file")),
    (Plant("ima_dist.worker.tasks:load", "mistake"), told(1, MISTAKE)),
    (Plant("ima_dist.worker.tasks:load", "differs"), f"Worker 1 on {HERE} has loaded different data from worker 0 on "),
    (Plant("ima_dist.training.state:make_network", "strange"), told(1, "Strange: what a library throws")),
    (
        Plant("ima_dist.training.checkpoint:newest", "strange", rank=0),
        told(0, "RuntimeError: Strange: what a library throws"),
    ),
    (Plant("ima_dist.training.loop:data_parallel", "mistake"), told(1, MISTAKE)),
    (Plant("ima_dist.worker.watchdog:_opened", "mistake"), told(1, MISTAKE)),
    (Plant("ima_dist.training.loop:Training._loss", "mistake", call=2), told(1, MISTAKE)),
    (Plant("ima_dist.training.loop:Training._loss", "exit", call=2), told(1, "SystemExit: 0")),
    (Plant("ima_dist.training.loop:Training._loss", "dies", call=2), "Worker 1 died: it was killed"),
    (Plant("ima_dist.margins.store:MarginStore.propose", "mistake", call=2), told(1, MISTAKE)),
    (Plant("ima_dist.training.reporter:Reporter.write", "mistake", rank=0), told(0, MISTAKE)),
    (Plant("ima_dist.training.validation:accuracy", "mistake"), told(1, MISTAKE)),
    (Plant("ima_dist.training.checkpoint:_write_margins", "damaged"), DAMAGED),
    (Plant("ima_dist.margins.snapshots:write_shard", "full"), told(1, FULL)),
    (Plant("ima_dist.training.checkpoint:_write_tensors", "full", rank=0), told(0, FULL)),
    (Plant("ima_dist.training.loop:write_answers", "mistake", rank=0), told(0, MISTAKE)),
    (Plant("ima_dist.rundir.directory:RunDir.write_history", "lost", rank=0), "/runs has been taken over"),
    (Plant("ima_dist.evaluation.artefacts:write_boundary", "mistake", rank=0), told(0, MISTAKE)),
]
RESUMING = [
    (
        Plant("ima_dist.training.checkpoint:restore", "stale"),
        f" was found whole, but worker 1 on {HERE} cannot read it (",
    ),
    (Plant("ima_dist.margins.store:MarginStore.load", "damaged"), DAMAGED),
]
EVALUATING = [
    (Plant("ima_dist.worker.tasks:load", "differs", rank=0), f"Worker 1 on {HERE} has loaded different data from"),
    (Plant("ima_dist.worker.tasks:load_weights", "damaged"), DAMAGED),
    (Plant("ima_dist.worker.tasks:most_at_once", "mistake"), told(1, MISTAKE)),
    (Plant("ima_dist.rundir.directory:RunDir.write_parquet", "full"), told(1, FULL)),
    (Plant("ima_dist.evaluation.runner:wait_for", "stale", rank=0), told(0, "OSError: [Errno 116] Stale file handle")),
]
AUDITING = [
    (Plant("ima_dist.evaluation.margin_audit:boundary_distance", "mistake"), told(1, MISTAKE)),
    (Plant("ima_dist.rundir.directory:RunDir.over_margins", "mistake", rank=0), told(0, MISTAKE)),
]


def named(value: Plant | str) -> str:
    return str(value) if isinstance(value, Plant) else ""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped within its second epoch."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    config, run = workers.start_run(path, "moons", **OPTIONS)
    workers.train(config, path, stop_after=4)
    assert (run.checkpoints_dir / "epoch=0001-step=000001").is_dir()
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, stopped):
    path = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(stopped, path)
    workers.train(RunDir(path).config(), path)
    return path


def outcome(plant: Plant, task: str, path, monkeypatch, **arguments):
    """How the driver ends a run of two workers, and the seconds that it took since one of them met something."""
    run = RunDir(path)
    config = run.config()

    def once(*_):
        return group(plant, payload(task, config, run, arguments))

    monkeypatch.setattr(launcher, "_run_once", once)
    with run.writing():
        try:
            found = run_workers(task, config, run, Cluster(2, 1, False))
        except RuntimeError as error:
            found = error
    return found, time.time() - (path / PLANTED).stat().st_mtime


def ends_with(sentence: str, plant: Plant, task: str, path, monkeypatch, **arguments) -> None:
    found, seconds = outcome(plant, task, path, monkeypatch, **arguments)
    assert seconds < SOON
    if sentence.startswith(("The workers", "Worker 1 died")):
        assert isinstance(found, RuntimeError)
        assert sentence in str(found)
    else:
        assert found["status"] == "failed"
        assert sentence in found["message"]


@pytest.mark.parametrize(("plant", "sentence"), TRAINING, ids=named)
def test_in_training(plant, sentence, tmp_path, monkeypatch):
    workers.start_run(tmp_path / "run", "moons", **OPTIONS)
    ends_with(sentence, plant, "train", tmp_path / "run", monkeypatch)


@pytest.mark.parametrize(("plant", "sentence"), RESUMING, ids=named)
def test_in_resuming(plant, sentence, stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped, tmp_path / "run")
    ends_with(sentence, plant, "train", tmp_path / "run", monkeypatch)


@pytest.mark.parametrize(("plant", "sentence"), EVALUATING, ids=named)
def test_in_an_evaluation(plant, sentence, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    ends_with(sentence, plant, "evaluate", tmp_path / "run", monkeypatch, epochs=[2])


@pytest.mark.parametrize(("plant", "sentence"), AUDITING, ids=named)
def test_in_an_audit(plant, sentence, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    ends_with(sentence, plant, "audit", tmp_path / "run", monkeypatch, samples=10)


def test_an_attack_that_fails_on_one_worker_costs_only_itself(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    plant = Plant("ima_dist.evaluation.runner:_attack_batch", "mistake")
    found, _ = outcome(plant, "evaluate", tmp_path / "run", monkeypatch, epochs=[2])
    assert found == {"status": "finished", "message": None}
    assert RunDir(tmp_path / "run").summary()["failed_attacks"] == {"2": {"pgd100": MISTAKE}}


def test_the_first_of_several_causes_counts_and_a_collective_that_failed_counts_least():
    lost = Failure("RuntimeError: Connection closed by peer", False, consequence=True, moment=1.0)
    late, early = Failure("late", False, moment=3.0), Failure("early", False, moment=2.0)
    assert first_cause([lost, late, early]) is early
    assert first_cause([lost]) is lost
    assert first_cause([]) is None


def test_a_file_that_another_worker_has_written_is_waited_for(tmp_path, monkeypatch):
    here, late, never = (tmp_path / name for name in ("here", "late", "never"))
    here.touch()
    appears = threading.Timer(0.3, late.touch)
    appears.start()
    files.wait_for([here, late])
    appears.join()
    monkeypatch.setattr(files, "VISIBLE_WITHIN", 0.1)
    with pytest.raises(FileNotFoundError, match=f"another worker has written it, .* {HERE} lacks it: '{never}'"):
        files.wait_for([here, never])
