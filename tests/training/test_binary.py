"""Sensitivity, specificity and the choice of a threshold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from ima_dist import models, train
from ima_dist.dashboard.parts import Grid, Plot
from ima_dist.dashboard.views import classes
from ima_dist.data.types import Resident, Split
from ima_dist.evaluation.artefacts import scores_table
from ima_dist.report.write import write_report
from ima_dist.results.binary import binary_report, choose_threshold, rates, sensitivity_by_noise, shown_thresholds
from ima_dist.results.card import make_card
from ima_dist.results.model_card import readme
from ima_dist.results.performance import CLEAN, shown
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.inputs import read_inputs
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection
from tests.support.datafiles import write_covid
from tests.support.inline import without_ray
from tests.support.small_images import of_any_size

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
    monkeypatch.setattr(models, "resnet18_in", of_any_size)
    data = write_covid(tmp_path / "data")
    command = ["covid_ct", "--method", "ce", "--epochs", "1", "--batch-size", "2", "--data.dir", str(data)]
    command += [
        "--eval.attacks",
        "pgd100,pgd-mma",
        "--eval.steps",
        "1",
        "--eval.noise",
        "0,0.1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
    ]
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
    _check_by_class(Run(run), out, scores, tmp_path)


def _check_by_class(run: Run, out: str, scores: dict[str, list], tmp_path: Path) -> None:
    """What summary.json, terminal, report, dashboard and card say of the classes."""
    entries = shown(run)
    levels = [(a, x) for a in ("pgd100", "pgd-mma") for x in (0.0, 0.1)]
    assert [(entry.attack, entry.noise) for entry in entries] == [(CLEAN, 0.0), *levels]
    clean, unmoved, attacked, stopped = entries[0], entries[1], entries[2], entries[4]
    label, probability = (
        np.array([v for v, s in zip(scores[name], scores["split"], strict=True) if s == "test"])
        for name in ("label", "probability")
    )
    assert clean.auc == pytest.approx(roc_auc_score(label, probability), abs=1e-6)
    assert unmoved.model_copy(update={"attack": CLEAN, "protocol": ""}) == clean
    kept = pq.read_table(run.dir.probabilities_path).to_pylist()
    rows = [row for row in kept if (row["attack"], row["noise"]) == ("pgd100", 0.1)]
    assert len(rows) == len(label)
    assert all(sum(row["probability"]) == pytest.approx(1, abs=1e-6) for row in rows)
    # The probabilities are those behind the verdict that outcomes.parquet has.
    assert [int(np.argmax(row["probability"])) for row in rows] == [row["prediction"] for row in rows]
    found = {(row["attack"], row["loss"], row["noise"], row["index"]): row["prediction"]
             for row in pq.read_table(run.dir.outcomes_path).to_pylist()}  # fmt: skip
    assert all(found["pgd100", "both", 0.1, row["index"]] == row["prediction"] for row in rows)
    assert "probability" not in pq.read_schema(run.dir.outcomes_path).names
    theirs = roc_auc_score([r["label"] for r in rows], [r["probability"][1] for r in rows])
    assert attacked.auc == pytest.approx(theirs, abs=1e-6)
    assert (stopped.auc, stopped.reliability) == (None, ())  # it leaves samples as soon as they are broken
    assert {(row["attack"], row["noise"]) for row in shown_thresholds(run)} == {
        (CLEAN, 0.0), ("pgd100", 0.0), ("pgd100", 0.1)
    }  # fmt: skip
    assert f"Without noise: balanced accuracy {clean.balanced_accuracy:.4f}" in out
    parts = classes.show(*_viewed(run, {"run": run.name, "at": "pgd100 0.1"}))
    assert {p.name for p in parts if isinstance(p, (Grid, Plot))} == {"classes", "overall", "reliability", "thresholds"}
    files, problems = write_report([run.dir.path], tmp_path / "report")
    assert not problems
    page = files[-1].read_text(encoding="utf-8")
    assert "Each class against the rest, without noise" in page
    assert "Reliability of" in page
    assert (tmp_path / "report" / "classes.csv").read_text().count("\n") == 1 + 2 * len(entries)
    inputs = read_inputs(run.dir.data_path)
    assert inputs is not None
    card = make_card(run, 1, inputs)
    text = readme(card, (), {})
    assert "## By class" in text
    assert "Thresholds on the probability of COVID" in text
    assert json.loads(json.dumps(card["by_class"])) == [entry.to_json() for entry in entries]


def _viewed(run: Run, values: dict[str, str]) -> tuple[Collection, dict[str, str]]:
    found = Collection(run.dir.path.parent)
    found.refresh(0)
    return found, values
