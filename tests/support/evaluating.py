"""One worker's part of an evaluation, interrupted where a test says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ima_dist.config.schema import Config
from ima_dist.core import distributed
from ima_dist.data.choosing import to_attack
from ima_dist.data.load import load
from ima_dist.data.types import Resident
from ima_dist.evaluation import smoothing
from ima_dist.evaluation.outcomes import save
from ima_dist.evaluation.runner import evaluate, forget
from ima_dist.rundir.directory import RunDir
from ima_dist.training.network import make_network


def evaluate_on_worker(config: Config, path: Path, stop_after: int | None = None, batch_size: int = 16) -> None:
    """All of one worker's part; stops at the ``stop_after``-th look of worker 0, each forward pass being one."""
    looks = 0

    def should_stop() -> bool:
        nonlocal looks
        looks += 1
        return stop_after is not None and distributed.rank() == 0 and looks >= stop_after

    run = RunDir(path)
    data = load(config.data, config.seed)
    network = make_network(config, data)
    test = Resident(data.test, "cpu", torch.float64, data.box)
    samples = to_attack(data.test, config.eval.samples, config.eval.order)

    def keep(outcomes, remarks, met):
        if outcomes["attack"][0].as_py() == "smoothing":
            smoothing.save(run, outcomes, config, {"test_samples": len(test)})
            return
        save(run, outcomes, config, {"test_samples": len(test)}, met)

    how = {"samples": samples, "batch_size": batch_size, "should_stop": should_stop}
    where = {"epoch": config.epochs, "digest": data.digest()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ima_dist.evaluation.stopping._LOOK_EVERY", 0.0)
        try:
            evaluate(network, test, config, run, on_finished=keep, **how, **where)
        except distributed.Interrupted:
            assert stop_after is not None
            return
    assert stop_after is None
    if distributed.rank() == 0:
        forget(run, config, **where)


def short_autoattack(*arguments: Any, **options: Any) -> Any:
    """AutoAttack with a few iterations of each attack."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(*arguments, **options)
    for part in (attack.apgd, attack.apgd_targeted, attack.fab):
        part.n_iter = 5
    attack.apgd.n_iter_orig = attack.apgd_targeted.n_iter_orig = 5
    attack.square.n_queries = 20
    return attack
