"""What an earlier version has saved is continued: runs, evaluations, jobs, sweeps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch

from ima_dist import audit, evaluate, job, sweep, train
from ima_dist.config.attacks import ATTACK_TABLE
from ima_dist.config.values import with_options
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet, write_parquet
from tests.saved import copied_to, files_below
from tests.support import workers
from tests.support.inline import without_ray


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A copy of what was saved, as ``runs`` in the current directory; commands need no Ray."""
    without_ray(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return copied_to(tmp_path)


# Of the second, no event file has been kept.
@pytest.mark.parametrize(("name", "events_from"), [("interrupted-epoch", 2), ("interrupted-online", 1)])
def test_a_run_interrupted_in_mid_epoch_ends_like_an_undisturbed_one(runs, capsys, name, events_from):
    run = RunDir(runs / name)
    whole = RunDir.create(with_options(run.config(), {"workers": 1}), runs / "whole")
    workers.train(whole.config(), whole.path)
    events = files_below(runs / "tensorboard")

    assert train.main(["--resume", str(run.path), "--workers", "1"]) == 0
    assert "epoch 1, step 4" in capsys.readouterr().out
    weights, margins = workers.final_state(run.config(), run.path)
    expected_weights, expected_margins = workers.final_state(run.config(), whole.path)
    assert margins is not None
    assert margins.dtype == torch.float64
    assert workers.largest_difference(weights, expected_weights) < 1e-9
    assert float((margins - expected_margins).abs().max()) < 1e-9
    for found, expected in zip(run.read_history(), whole.read_history(), strict=True):
        for key in ("epoch", "train_loss", "train_accuracy", "val_accuracy", "noisy_samples", "margin_mean"):
            assert found[key] == pytest.approx(expected[key], abs=1e-9), key
    for found, expected in zip(run.read_equilibrium(), whole.read_equilibrium(), strict=True):
        assert found == pytest.approx(expected, abs=1e-9)
    assert run.status == "finished"
    assert {curve["epoch"] for curve in run.summary()["curves"]} == {3}
    after = files_below(runs / "tensorboard")
    assert events.items() <= after.items()
    (new,) = after.keys() - events.keys()
    assert new.startswith(f"{name}/")
    assert new.endswith(f".epoch000{events_from}")


def test_an_interrupted_evaluation_does_nothing_twice(runs):
    run = RunDir(runs / "interrupted-evaluation")
    weights = files_below(run.checkpoints_dir)
    (part,) = run.path.glob("evaluation/pgd100-*/from-*.parquet")
    # A mark by which to tell what was there from what is made again.
    table = read_parquet(part)
    wrong = pc.subtract(1, table["label"])
    write_parquet(part, table.set_column(table.column_names.index("prediction"), "prediction", wrong))

    assert train.main(["--resume", str(run.path), "--workers", "1"]) == 0
    assert run.status == "finished"
    assert files_below(run.checkpoints_dir) == weights
    curves = run.summary()["curves"]
    assert {curve["accuracy"] for curve in curves if curve["attack"] == "pgd100"} == {0.0}
    assert max(curve["accuracy"] for curve in curves if curve["attack"] == "worst") > 0.5


def test_a_further_attack_on_a_finished_run(runs):
    run = RunDir(runs / "finished")
    before = run.summary()["curves"]
    weights = files_below(run.checkpoints_dir)
    words = ["--attack", "pgd-mma", "--eval.steps", "2", "--eval.samples", "5", "--device", "cpu"]
    assert evaluate.main([str(run.path), *words]) == 0
    after = run.summary()["curves"]
    assert [curve for curve in after if curve["attack"] != "pgd-mma"] == before
    assert {curve["noise"] for curve in after if curve["attack"] == "pgd-mma"} == set(run.config().eval.noise)
    assert files_below(run.checkpoints_dir) == weights


def in_order(run: RunDir) -> list[dict[str, Any]]:
    return sorted(run.summary()["curves"], key=lambda c: (c["epoch"], c["attack"], c["loss"], c["noise"]))


def test_the_same_evaluation_and_audit_give_the_same_again(runs):
    run = RunDir(runs / "epochs")
    before, audited = in_order(run), read_parquet(run.audit_path)
    assert evaluate.main([str(run.path), "--epochs", "1,3,5", "--device", "cpu"]) == 0
    after = [point for point in in_order(run) if point.get("version", 1) == 1]
    # ``worst`` is another attack now: its results stand beside the old ones.
    assert {p["attack"] for p in in_order(run) if p not in after} == {"worst"} & set(run.config().eval.attacks)
    # Of the attacks' counts, which the old version did not make, only that all is well.
    met = [point.pop("met") for point in after if "met" in point]
    assert after == before
    assert met
    assert not any(counts[name] for counts in met for name in ("not_finite", "bad_logits", "outside"))
    assert audit.main([str(run.path), "--samples", "10", "--device", "cpu"]) == 0
    again = read_parquet(run.audit_path)
    assert again.schema == audited.schema
    for name in audited.column_names:  # the saved audit is by FAB, the new one by FMN
        assert again[name].to_pylist() == pytest.approx(audited[name].to_pylist(), rel=1e-2), name


def weights_and_margins(root: Path) -> dict[str, bytes]:
    """The content of the runs' files that only a training writes."""
    found = files_below(root)
    return {
        name: found[name] for name in found if re.search("(^|/)(checkpoints|margins)/", name) and "dataset/" not in name
    }


def test_a_finished_job_is_evaluated_by_the_present_attacks_and_then_left_as_it_is(runs, capsys):
    trained = weights_and_margins(runs)
    file = runs / "cluster" / "job" / "job.yaml"
    command = [str(file), "--scale", "tiny", "--device", "cpu", "--out", str(runs / "jobs")]
    assert job.main(command) == 0
    capsys.readouterr()
    for path in (runs / "jobs").glob("moons-*"):
        versions = {point.attack: point.version for point in RunDir(path).points()}
        assert all(version == ATTACK_TABLE[attack].version for attack, version in versions.items())
    assert weights_and_margins(runs) == trained
    of_runs = [path for path in (runs / "jobs").iterdir() if path.name.startswith("moons-")]
    before = [files_below(path) for path in of_runs]
    assert job.main(command) == 0
    assert capsys.readouterr().out.count(" is finished.") == 2
    assert [files_below(path) for path in of_runs] == before


def test_a_sweep_runs_only_what_is_left(runs, capsys):
    root = runs / "sweeps" / "grid"
    before = weights_and_margins(root)
    assert sweep.main(["--resume", str(root), "--list"]) == 0
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    done = {path.name for path in root.glob("moons-*")}
    (pending,) = set(names) - done
    assert len(done) == 2

    assert sweep.main(["--resume", str(root), "--trials", ",".join(names)]) == 0
    assert sweep.main(["--resume", str(root)]) == 0  # the table: Ray Tune has nothing to do
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines() if " worst " in line]
    assert lines[-3:] == [["0.3", "worst", "1/1"], ["0.7", "worst", "1/1"], ["0.9", "worst", "1/1"]]
    assert RunDir(root / pending).status == "finished"
    after = files_below(root)
    assert {name: after[name] for name in before} == before
