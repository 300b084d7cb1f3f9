"""An evaluation that is interrupted, continued and spread over workers has every sample once, and the same result."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ima_dist import evaluate, train
from ima_dist.config.values import with_options
from ima_dist.core import distributed
from ima_dist.data.choosing import to_attack
from ima_dist.data.load import load
from ima_dist.evaluation.attacks import EVALUATION_ATTACKS
from ima_dist.rundir.directory import RunDir
from tests.support import workers
from tests.support.evaluating import evaluate_on_worker
from tests.support.inline import without_ray

OPTIONS = {"data__subset": 1000, "dtype": "float64", "eval__steps": 5, "eval__noise": (0.0, 0.1, 0.3)}


def _batches(run: RunDir) -> set[str]:
    return {str(p.relative_to(run.path)) for p in run.path.rglob("from-*.parquet")}


def _evaluate_with_an_old_list(config, path):
    """On shared storage worker 0 may not see the newest files when it lists a directory."""
    with pytest.MonkeyPatch.context() as patch:
        if distributed.rank() == 0:
            patch.setattr(Path, "glob", lambda path, pattern: iter(()))
        evaluate_on_worker(config, path)


def test_interrupted_and_continued_on_other_numbers_of_workers(tmp_path):
    config, whole = workers.start_run(tmp_path / "whole", "moons", **OPTIONS)
    evaluate_on_worker(config, whole.path, batch_size=1000)
    expected = pq.read_table(whole.outcomes_path)
    assert expected.num_rows == 100 * 3 * (3 + 1)

    _, run = workers.start_run(tmp_path / "run", "moons", **OPTIONS)
    workers.run_on(2, evaluate_on_worker, config, run.path, 60)
    first = _batches(run)
    assert first
    assert not run.outcomes_path.exists()
    workers.run_on(1, evaluate_on_worker, config, run.path, 60)
    assert first < _batches(run)
    workers.run_on(2, _evaluate_with_an_old_list, config, run.path)
    assert pq.read_table(run.outcomes_path).equals(expected)
    assert run.summary()["curves"] == whole.summary()["curves"]
    assert not (run.path / "evaluation").exists()


def test_only_what_is_left_is_done_and_a_damaged_batch_is_done_again(tmp_path):
    config, run = workers.start_run(tmp_path, "moons", **OPTIONS)
    evaluate_on_worker(config, run.path, 150)
    *_, damaged = sorted(run.path.rglob("from-*.parquet"))
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("from-*.parquet") if p != damaged}
    assert len(before) >= 2
    damaged.write_bytes(damaged.read_bytes()[:100])
    evaluate_on_worker(config, run.path, 60)
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    assert pq.read_table(damaged).num_rows
    evaluate_on_worker(config, run.path)
    assert sorted(set(pq.read_table(run.outcomes_path)["index"].to_pylist())) == list(range(100))


def test_samples_that_were_attacked_twice_count_once(tmp_path):
    config, run = workers.start_run(tmp_path / "run", "moons", **OPTIONS)
    evaluate_on_worker(config, run.path, 150)
    first, *_ = sorted(run.path.rglob("from-*.parquet"))
    # An earlier start did not see this file and attacked some of its samples again, in a batch of another size.
    table = pq.read_table(first)
    pq.write_table(table.filter(pc.field("index") >= 3), first.with_name("from-000000003.parquet"))
    evaluate_on_worker(config, run.path)
    _, whole = workers.start_run(tmp_path / "whole", "moons", **OPTIONS)
    evaluate_on_worker(config, whole.path)
    assert pq.read_table(run.outcomes_path).equals(pq.read_table(whole.outcomes_path))


def test_another_setting_shares_nothing(tmp_path):
    config, run = workers.start_run(tmp_path, "moons", **OPTIONS)
    evaluate_on_worker(config, run.path, 150)
    before = _batches(run)
    other, _ = workers.start_run(tmp_path / "other", "moons", **{**OPTIONS, "eval__steps": 6})
    evaluate_on_worker(other, run.path)
    assert {c["steps"] for c in run.summary()["curves"]} == {6}
    assert _batches(run) == before  # the first one can still be continued


def test_continued_with_another_choice_of_samples(tmp_path):
    """Batches of samples that the new choice lacks are left out; a subset of the whole's outcomes is found."""
    config, whole = workers.start_run(tmp_path / "whole", "moons", **OPTIONS)
    evaluate_on_worker(config, whole.path, batch_size=1000)
    some = with_options(config, {"eval.samples": 30})
    run = RunDir.create(some, tmp_path / "run")
    evaluate_on_worker(with_options(some, {"eval.order": "first"}), run.path, 40)
    assert _batches(run)
    workers.run_on(2, evaluate_on_worker, some, run.path)
    data = load(config.data, config.seed)
    chosen = to_attack(data.test, 30, "stratified")
    assert data.test.y[chosen].sum() == 15
    expected = pq.read_table(whole.outcomes_path).filter(pc.field("index").isin(chosen.tolist()))
    assert pq.read_table(run.outcomes_path).drop_columns("protocol").equals(expected.drop_columns("protocol"))
    assert {(point.samples, point.order) for point in run.points()} == {(30, "stratified")}


def test_what_an_attack_has_finished_is_stored_before_the_next_begins(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    known = dict(EVALUATION_ATTACKS)

    def fails(*arguments):
        raise RuntimeError("expected Float\nbut found Double.")

    def looks(network, x, y, keys, config, box):
        seen.update(point.attack for point in RunDir(out).points())
        return known["worst"](network, x, y, keys, config, box)

    seen, out = set(), tmp_path / "run"
    monkeypatch.setitem(EVALUATION_ATTACKS, "spsa", fails)
    monkeypatch.setitem(EVALUATION_ATTACKS, "worst", looks)
    options = "--data.subset 40 --epochs 1 --method ce --eval.steps 1 --eval.noise 0,0.3 --device cpu"
    asked = ["--eval.attacks", "pgd100,spsa,worst"]
    assert train.main(["moons", *options.split(), *asked, "--out", str(out)]) == 1
    assert seen == {"pgd100"}
    shown = capsys.readouterr()
    assert re.search(r"^ *spsa +failed +failed$", shown.out, re.MULTILINE)
    assert "Doubtful: spsa failed (RuntimeError: expected Float)." in shown.out
    assert re.search(r"error: spsa failed .* all other results are stored\. .* --attack spsa$", shown.err, re.MULTILINE)
    run = RunDir(out)
    assert run.status == "finished"
    assert {point.attack for point in run.points()} == {"pgd100", "worst"}
    assert run.summary()["failed_attacks"] == {"1": {"spsa": "RuntimeError: expected Float"}}

    # Another attack does not ask after it; the same one that works is forgiven.
    assert evaluate.main([str(out), "--attack", "white-noise", "--device", "cpu"]) == 0
    assert "spsa" in run.summary()["failed_attacks"]["1"]
    monkeypatch.setitem(EVALUATION_ATTACKS, "spsa", known["white-noise"])
    assert evaluate.main([str(out), "--attack", "spsa", "--device", "cpu"]) == 0
    assert run.summary()["failed_attacks"] == {}
    assert "spsa" in {point.attack for point in run.points()}
    assert not (out / "evaluation").exists()

    def warns(*arguments):
        logging.getLogger("auto-attack").warning("it seems to be a dynamic defense!")
        return known["white-noise"](*arguments)

    monkeypatch.setitem(EVALUATION_ATTACKS, "autoattack", warns)
    assert evaluate.main([str(out), "--attack", "autoattack", "--device", "cpu"]) == 0
    assert run.summary()["remarks"] == {"1": {"autoattack": ["dynamic"]}}
    assert "Doubtful: AutoAttack warns of this network that it computes gradients" in capsys.readouterr().out

    # An evaluation by a weaker protocol is kept beside that one, and so are its warnings.
    monkeypatch.setitem(EVALUATION_ATTACKS, "autoattack", known["white-noise"])
    assert evaluate.main([str(out), "--attack", "autoattack", "--eval.samples", "4", "--device", "cpu"]) == 0
    kept = {point.samples: point.remarks for point in run.points() if point.attack == "autoattack"}
    assert kept == {4: [], 20: ["dynamic"]}
    assert "Doubtful: AutoAttack warns of this network that it computes gradients" in capsys.readouterr().out
