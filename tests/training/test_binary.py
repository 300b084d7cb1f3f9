"""Sensitivity, specificity and the choice of a threshold."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from ima_dist import train
from ima_dist.data.types import Resident, Split
from ima_dist.evaluation.artefacts import scores_table
from ima_dist.results.binary import binary_report, choose_threshold, rates, sensitivity_by_noise
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run
from tests.support.datafiles import write_covid
from tests.support.inline import without_ray

PROBABILITY = np.array([0.9, 0.8, 0.4, 0.3, 0.7, 0.2, 0.1, 0.05])
LABEL = np.array([1, 1, 1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("sensitivity", "threshold", "found", "spared"),
    [(0.5, 0.8, 0.5, 1.0), (0.51, 0.4, 0.75, 0.75), (0.75, 0.4, 0.75, 0.75), (0.99, 0.3, 1.0, 0.75), (1, 0.3, 1, 0.75)],
)
def test_the_highest_threshold_that_finds_enough(sensitivity, threshold, found, spared):
    assert choose_threshold(PROBABILITY, LABEL, sensitivity) == threshold
    assert rates(PROBABILITY, LABEL, threshold) == (found, spared)


def test_sensitivity_and_specificity_by_noise():
    outcomes = pa.table(
        {
            "attack": ["pgd100"] * 6 + ["pgd100", "worst"],
            "loss": ["both"] * 6 + ["ce", "both"],
            "noise": [0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1, 0.0],
            "epoch": [2] * 6 + [2, 1],
            "label": [1, 1, 0, 1, 1, 0, 0, 1],
            "prediction": [1, 1, 0, 0, 1, 1, 0, 1],
        }
    )
    rows = sensitivity_by_noise(outcomes, 2)
    assert [(r["attack"], r["noise"], r["sensitivity"], r["specificity"]) for r in rows] == [
        ("pgd100", 0.0, 1.0, 1.0),
        ("pgd100", 0.1, 0.5, 0.0),
    ]
    assert (rows[0]["positives"], rows[0]["negatives"]) == (2, 1)
    (only,) = sensitivity_by_noise(outcomes, 1)
    assert only["specificity"] is None


def test_scores_are_the_networks_probabilities():
    network = nn.Linear(2, 2)
    x, y = torch.randn(300, 2), torch.arange(300) % 2
    parts = {"validation": Resident(Split(x[:0], y[:0]), "cpu", torch.float32, None)}
    table = scores_table(network, {**parts, "test": Resident(Split(x, y), "cpu", torch.float32, None)})
    assert set(table["split"].to_pylist()) == {"test"}
    expected = network(x).softmax(1)[:, 1].detach()
    torch.testing.assert_close(torch.tensor(table["probability"].to_pylist()), expected, check_dtype=False)
    assert table["label"].to_pylist() == y.tolist()
    assert network.training


def test_covid_ct_reports_them_and_records_the_split_by_file_name(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    data = write_covid(tmp_path / "data")
    command = ["covid_ct", "--method", "ce", "--epochs", "1", "--batch-size", "2", "--data.dir", str(data)]
    command += ["--eval.steps", "1", "--eval.noise", "0,0.1", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert train.main(command) == 0
    out = capsys.readouterr().out
    assert "classified correctly under attack" in out
    assert "Threshold on the probability of COVID" in out
    run = RunDir(tmp_path / "run")
    assert binary_report(Run(run)) in out
    names = pq.read_table(run.samples_path).to_pydict()
    assert sorted(names["name"]) == sorted(f"{p.parent.name}/{p.name}" for p in data.rglob("*.png"))
    assert all((label == 1) == n.startswith("COVID/") for label, n in zip(names["label"], names["name"], strict=True))
    scores = pq.read_table(run.scores_path).to_pydict()
    tested = [n for n, split in zip(names["name"], names["split"], strict=True) if split == "test"]
    assert scores["split"].count("test") == len(tested)
