"""Choosing among a run's epochs, and noise levels for plain adversarial training from its margins."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from ima_dist import evaluate, recommend
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.results import paper
from ima_dist.results.tradeoff import select_epoch, tradeoff_table
from ima_dist.rundir.curves import Point
from ima_dist.rundir.files import write_json
from tests.support import commands, workers
from tests.support.summaries import curve

HISTORY = [{"epoch": e, "val_accuracy": a} for e, a in enumerate([0.5, 0.92, 0.95, 0.91, 0.93, 0.89], start=1)]


def test_the_last_epoch_that_keeps_the_accuracy_is_selected():
    assert select_epoch("val_accuracy>=0.92", HISTORY) == 5
    assert select_epoch(" val_accuracy >= .95 ", HISTORY) == 3
    with pytest.raises(ConfigError, match=r"the best is 0.9500, in epoch 3"):
        select_epoch("val_accuracy>=0.96", HISTORY)
    with pytest.raises(ConfigError, match="validation set"):
        select_epoch("val_accuracy>=0.5", [{"epoch": 1, "val_accuracy": None}])
    for rule in ("accuracy>=0.9", "val_accuracy>0.9", "val_accuracy>=90", "val_accuracy>=", "__import__('os')"):
        with pytest.raises(ConfigError, match="must have the form"):
            select_epoch(rule, HISTORY)


def test_rows_of_the_paper_by_epoch():
    config = make_config("fashion_mnist", {})
    table, row, clean = paper.epoch_row(config, 60)
    assert (table, row[0.3], clean) == (17, 0.1521, 0.8910)
    assert paper.epoch_row(make_config("svhn", {"norm": "l2"}), 10)[0] == 18
    assert paper.epoch_row(config, 11) is None
    assert paper.epoch_row(make_config("fashion_mnist", {"epochs": 8}), 10) is None
    assert paper.epoch_row(make_config("fashion_mnist", {"method": "mma"}), 10) is None


def test_table_of_epochs_shows_margins_validation_and_the_paper():
    config = make_config("fashion_mnist", {})
    accuracies = {10: {0.0: 0.9, 0.1: 0.2}, 20: {0.0: 0.8, 0.1: 0.4}}
    points = [Point.from_json(c) for e, row in accuracies.items() for c in curve(row, norm="linf", epoch=e)]
    lines = tradeoff_table(config, points, [{"epoch": 10, "val_accuracy": 0.91}]).splitlines()
    assert lines[1].split() == ["epochs", "largest", "margin", "0", "0.1", "0", "(val)"]
    assert lines[2].split() == ["10", "0.05", "0.9000", "0.2000", "0.9100"]
    assert lines[3].split() == ["paper", "(Table", "17)", "0.9159", "0.2598", "0.9165"]
    assert lines[4].split() == ["20", "0.1", "0.8000", "0.4000", "-"]


def test_the_peak_of_the_margins_is_recommended():
    right = np.concatenate([np.linspace(0.1, 0.14, 120), np.linspace(0.15, 0.3, 80)])
    # Misclassified samples stand at the margin expansion under ima, at 0 under mma: most of them change nothing.
    for wrong in (np.full(250, 0.003), np.zeros(250)):
        margins, correct = np.concatenate([wrong, right]), np.arange(450) >= 250
        found = recommend.recommend(margins, correct, 0.3)
        assert found.levels == pytest.approx((0.1, 0.12, 0.13), abs=0.011)
        assert found.share_wrong == pytest.approx(250 / 450)
        assert found.share_at_max == pytest.approx(1 / 200)
    with pytest.raises(ConfigError, match="Fewer than two training samples are classified correctly"):
        recommend.recommend(np.full(5, 0.003), np.zeros(5, bool), 0.3)


def test_recommended_commands_train_on_the_same_data(tmp_path, capsys):
    config, run = workers.start_run(tmp_path / "run", "moons", data__subset=300, epochs=2, seed=3, optimizer__lr=0.01)
    workers.train(config, run.path)
    assert recommend.main([str(run.path)]) == 0
    out = capsys.readouterr().out
    assert "Margins of 300 training samples after epoch 2 of 2" in out
    _, table = run.newest_margins() or (0, None)
    assert table is not None
    wrong = 300 - sum(table["correct"].to_pylist())
    assert wrong > 0
    assert f"{wrong / 300:.1%} of the samples are misclassified without noise" in out
    command = [line for line in out.splitlines() if "--method adv" in line][-1]
    assert shlex.split(command)[:4] == ["python", "-m", "ima_dist.train", "moons"]
    for words in ("--data.subset 300", "--epochs 2", "--seed 3", "--optimizer.lr 0.01", "--norm linf"):
        assert words in command
    assert "--beta" not in command
    assert "--eval.noise" not in command


def test_a_run_without_margins_gets_one_sentence(tmp_path, capsys):
    config, run = workers.start_run(tmp_path / "run", "moons", data__subset=100, epochs=1, method="ce")
    workers.train(config, run.path)
    assert recommend.main([str(run.path)]) == 2
    assert "has no margins" in capsys.readouterr().err


def test_epochs_that_cannot_be_evaluated(tmp_path, capsys):
    config, run = workers.start_run(tmp_path / "run", "moons", data__subset=100, epochs=2, method="ce")
    workers.train(config, run.path)

    def refused(*options: str) -> str:
        assert evaluate.main([str(run.path), *options]) == 2
        return capsys.readouterr().err

    assert "has no epoch 3: it has 1 to 2" in refused("--epochs", "1,3")
    assert "whole numbers" in refused("--epochs", "one")
    assert "not allowed with" in refused("--epochs", "1", "--select", "val_accuracy>=0")
    assert "must have the form" in refused("--select", "loss<1")
    (run.checkpoints_dir / "epoch=0001" / "model.safetensors").unlink()
    assert "is missing" in refused("--epochs", "1,2")


@pytest.mark.slow
def test_several_epochs_of_one_run_are_evaluated(tmp_path):
    config, run = workers.start_run(tmp_path / "run", "moons", data__subset=300, epochs=3, eval__steps=3)
    workers.train(config, run.path)
    write_json(run.summary_path, {"status": "interrupted", "message": None})
    done = commands.run("ima_dist.evaluate", run.path, "--epochs", "1,3", "--attack", "worst", "--local")
    assert done.returncode == 0, done.stderr
    assert "worst: accuracy on the test set by number of epochs" in done.stdout
    summary = run.summary()
    assert {(c["epoch"], c["attack"]) for c in summary["curves"]} == {(1, "worst"), (3, "worst")}
    assert summary["status"] == "interrupted"
