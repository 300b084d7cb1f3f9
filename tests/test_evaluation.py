"""An evaluation that is interrupted, continued and spread over workers has every sample once, and the same result."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ima_dist import distributed
from ima_dist.config import Config
from ima_dist.data.dataset import Resident, load
from ima_dist.engine.setup import make_network
from ima_dist.evaluation.outcomes import save
from ima_dist.evaluation.run import evaluate, forget
from ima_dist.results.rundir import RunDir
from tests import workers

OPTIONS = {"data__subset": 1000, "dtype": "float64", "eval__steps": 5, "eval__noise": (0.0, 0.1, 0.3)}


def _evaluate(config: Config, path: Path, stop_after: int | None = None, batch_size: int = 16) -> None:
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
    where = {"epoch": config.epochs, "digest": data.digest()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ima_dist.evaluation.run._LOOK_EVERY", 0.0)
        try:
            outcomes = evaluate(network, test, config, run, batch_size=batch_size, should_stop=should_stop, **where)
        except distributed.Interrupted:
            assert stop_after is not None
            return
    assert stop_after is None
    if distributed.rank() == 0:
        save(run, outcomes, config, {})
        forget(run, config, **where)


def _batches(run: RunDir) -> set[str]:
    return {str(p.relative_to(run.path)) for p in run.path.rglob("from-*.parquet")}


def test_interrupted_and_continued_on_other_numbers_of_workers(tmp_path):
    config, whole = workers.start_run(tmp_path / "whole", "moons", **OPTIONS)
    _evaluate(config, whole.path, batch_size=1000)
    expected = pq.read_table(whole.outcomes_path)
    assert expected.num_rows == 100 * 3 * (3 + 1)

    _, run = workers.start_run(tmp_path / "run", "moons", **OPTIONS)
    workers.run_on(2, _evaluate, config, run.path, 60)
    first = _batches(run)
    assert first
    assert not run.outcomes_path.exists()
    workers.run_on(1, _evaluate, config, run.path, 60)
    assert first < _batches(run)
    workers.run_on(2, _evaluate, config, run.path)
    assert pq.read_table(run.outcomes_path).equals(expected)
    assert run.summary()["curves"] == whole.summary()["curves"]
    assert not (run.path / "evaluation").exists()


def test_only_what_is_left_is_done_and_a_damaged_batch_is_done_again(tmp_path):
    config, run = workers.start_run(tmp_path, "moons", **OPTIONS)
    _evaluate(config, run.path, 150)
    *_, damaged = sorted(run.path.rglob("from-*.parquet"))
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("from-*.parquet") if p != damaged}
    assert len(before) >= 2
    damaged.write_bytes(damaged.read_bytes()[:100])
    _evaluate(config, run.path, 60)
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    assert pq.read_table(damaged).num_rows
    _evaluate(config, run.path)
    assert sorted(set(pq.read_table(run.outcomes_path)["index"].to_pylist())) == list(range(100))


def test_another_setting_shares_nothing(tmp_path):
    config, run = workers.start_run(tmp_path, "moons", **OPTIONS)
    _evaluate(config, run.path, 150)
    before = _batches(run)
    other, _ = workers.start_run(tmp_path / "other", "moons", **{**OPTIONS, "eval__steps": 6})
    _evaluate(other, run.path)
    assert {c["steps"] for c in run.summary()["curves"]} == {6}
    assert _batches(run) == before  # the first one can still be continued
