"""A run on samples that come in groups: its split, its intervals, and what is said of both."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ima_dist import evaluate, train
from ima_dist.report.write import write_report
from ima_dist.results.card import make_card
from ima_dist.results.performance import CLEAN, shown
from ima_dist.results.seeds import Network, by_sample, candidates_of
from ima_dist.results.statistics import interval_of, wilson_interval
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.inputs import read_inputs
from ima_dist.rundir.run import Run
from tests.support.inline import without_ray

MODULE = """
import numpy as np
from torch import nn


def load(config, seed):
    draw = np.random.default_rng(7)
    groups = np.repeat(np.arange(120), 4)
    y = groups % 3
    # The samples of a group are nearly equal, so that all or none of them are right.
    x = np.stack([np.cos(2 * y), np.sin(2 * y)], 1) + 1.6 * draw.normal(size=(120, 2))[groups]
    x += 0.01 * draw.normal(size=x.shape)
    x[1] = x[0]
    x[479] = x[6]
    return {"all": (x.astype(np.float32), y, [f"p{g}" for g in groups]), "class_names": ["a", "b", "c"]}


def build(num_classes, input_shape):
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    without_ray(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"grouped_{os.getpid()}_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(MODULE)
    command = f"own --name scans --data.source {name}:load --model.factory {name}:build --eps-max 0.1"
    command += " --eval.noise 0,0.2"
    command += " --epochs 3 --optimizer.lr 0.05 --eval.steps 2 --attack.steps 2 --device cpu --class-weights balanced"
    for seed in (0, 1):
        assert train.main([*command.split(), "--seed", str(seed), "--out", f"run{seed}"]) == 0
    return tmp_path


def test_a_run_on_groups(trained, capsys):
    run = Run(RunDir(trained / "run0"))
    names = pq.read_table(run.dir.samples_path).to_pylist()
    parts = {group: {row["split"] for row in names if row["group"] == group} for group in {r["group"] for r in names}}
    assert len(parts) == 120
    assert all(len(found) == 1 for found in parts.values())
    assert run.summary["split_level"] == "by group: 120 in all"
    assert run.summary["class_weights"] == pytest.approx([1, 1, 1], abs=0.2)
    tested = {row["index"]: row["group"] for row in names if row["split"] == "test"}
    count = len(set(tested.values()))

    points = [point for point in run.points if point.attack == "pgd100"]
    assert {point.groups for point in points} == {count}
    some = [point for point in points if 0 < point.share < 1]
    assert some
    for point in some:
        assert point.effective <= 1.5 * count
        low, high = interval_of(point)
        narrow = wilson_interval(point.share, point.samples)
        assert high - low > 1.5 * (narrow[1] - narrow[0])
    clean = shown(run)[0]
    assert (clean.attack, clean.groups) == (CLEAN, count)
    assert clean.accuracy == pytest.approx(run.summary["clean_accuracy"], abs=1e-6)

    inputs = read_inputs(run.dir.data_path)
    assert inputs is not None
    assert inputs.splits["test"].groups == count
    card = make_card(run, 3, inputs)
    assert card["data"]["split_level"] == "by group: 120 in all"
    assert card["clean_accuracy"]["interval"] == list(clean.accuracy_interval)
    files, _ = write_report([run.dir.path], trained / "report")
    assert "by group: 120 in all" in files[-1].read_text(encoding="utf-8")
    json.dumps(card)

    # Test samples are the same for both seeds, so their networks are compared group by group.
    runs = [run, Run(RunDir(trained / "run1"))]
    networks = [Network(run, 3) for run in runs]
    row = networks[0].evaluations["pgd100", points[0].protocol]
    found = by_sample(networks[0], row)
    assert found is not None
    assert found[1][0.0].size == count
    assert found[1][0.0].mean() == pytest.approx(row[0.0].share)
    _, candidates, _, notes = candidates_of([(str(n.seed), [n]) for n in networks], "pgd100")
    assert not notes
    one, two = (candidate.area for candidate in candidates)
    assert one.by_sample.keys() == two.by_sample.keys()
    assert (one.groups, one.samples) == (count, min(point.effective for point in row.values()))

    assert evaluate.main(["run0", "--attack", "white-noise"]) == 0
    said = capsys.readouterr()
    assert "Split by group: 120 in all." in said.out
    assert "Without noise: balanced accuracy" in said.out
    kept = pq.read_table(run.dir.probabilities_path)
    assert set(kept["attack"].to_pylist()) == {CLEAN, "pgd100", "white-noise"}
    assert np.isclose(np.array(kept["probability"].to_pylist()).sum(1), 1, atol=1e-5).all()
    again = Run(RunDir(trained / "run0"))
    assert [entry for entry in shown(again) if entry.attack != "white-noise"] == shown(run)
    assert {entry.auc is None for entry in shown(again) if entry.attack == "white-noise"} == {False}
