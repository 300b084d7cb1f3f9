"""When a worker dies, Ray closes the process group of those that are left while they are at work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ima_dist.config.values import with_options
from ima_dist.core import distributed
from ima_dist.data.load import load
from ima_dist.rundir.directory import RunDir
from ima_dist.training import checkpoint
from ima_dist.training.loop import Training
from ima_dist.worker.failure import Failure, failing_together
from tests.support import workers

OPTIONS = {"data__subset": 200, "epochs": 2, "batch_size": 50, "dtype": "float64", "attack__steps": 2}


def closed_at(moment: str, path: Path) -> None:
    """One worker's training, whose group is closed at this call of ``Training``; it must end with a Failure."""
    called = getattr(Training, moment)

    def closing(self, *given):
        if self.state.position.epoch == 1:
            dist.destroy_process_group()
        return called(self, *given)

    rank = dist.get_rank()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, moment, closing)
        patch.setattr("ima_dist.worker.failure._CAUSE_WITHIN", 0.0)
        with pytest.raises(Failure, match="process group") as failed:
            failing_together(lambda _: workers.train(RunDir(path).config(), path), {})  # type: ignore[func-returns-value]
    assert (failed.value.rank, failed.value.consequence) == (rank, True)


@pytest.mark.parametrize("moment", ["_margin_pass", "_finish_epoch", "_report"])
def test_no_worker_goes_on_as_if_it_were_alone(moment, tmp_path):
    _, run = workers.start_run(tmp_path / "run", "moons", **OPTIONS)
    workers.run_on(2, closed_at, moment, run.path, leave=False)
    assert sorted(path.name for path in run.checkpoints_dir.iterdir() if "step" not in path.name) == ["epoch=0001"]
    # Both workers' margins are there, and the run goes on from them.
    workers.run_on(2, workers.train, run.config(), run.path)
    assert len(run.read_history()) == 2


def test_margins_of_another_number_of_samples_are_refused(tmp_path):
    config, run = workers.start_run(tmp_path / "run", "moons", **OPTIONS)
    workers.train(config, run.path)
    fewer = with_options(config, {"data.subset": 100})
    training = Training(fewer, run, load(fewer.data, fewer.seed), torch.device("cpu"))
    identity = checkpoint.Identity(config.fingerprint(), load(config.data, config.seed).digest())
    found, _ = checkpoint.newest(run, identity)
    assert found is not None
    with pytest.raises(ValueError, match=r"epoch=0002 has the margins of 200 samples, not 100"):
        checkpoint.restore(found, training.state)


def test_outside_a_task_one_may_go_on_alone():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
