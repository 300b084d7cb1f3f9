"""Results of a run that are damaged or gone: whoever continues it hears what is lost, and what can be is restored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from ima_dist import evaluate, train
from ima_dist.results.tradeoff import chosen_epoch
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.epochs import spans, without_figures
from ima_dist.rundir.files import read_parquet, write_json, write_parquet
from ima_dist.rundir.lost_points import lost_points
from ima_dist.rundir.run import Run

WORDS = "moons --local --epochs 3 --data.subset 130 --batch-size 64 --attack.steps 2 --method ima"
EVALUATION = "--eval.samples 8 --eval.steps 2 --eval.noise 0,0.5,1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with an attack more than its configuration has, one of them on another epoch, too."""
    path = tmp_path_factory.mktemp("lost") / "run"
    assert train.main([*WORDS.split(), *EVALUATION.split(), "--eval.attacks", "pgd100", "--out", str(path)]) == 0
    more = [str(path), "--local", *EVALUATION.split(), "--attack", "minimal,white-noise"]
    assert evaluate.main(more) == 0
    assert evaluate.main([str(path), "--local", *EVALUATION.split(), "--attack", "pgd-mma", "--epochs", "1"]) == 0
    return path


@pytest.fixture
def run(finished, tmp_path, capsys) -> RunDir:
    shutil.copytree(finished, tmp_path / "run")
    capsys.readouterr()
    return RunDir(tmp_path / "run")


def unfinished(run: RunDir) -> None:
    write_json(run.summary_path, {**run.summary(), "status": "interrupted"})


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("history.parquet", "loses the losses and accuracies of the epochs trained so far for good"),
        ("outcomes.parquet", "loses the answers for single samples until the attacks are evaluated again"),
        ("probabilities.parquet", "loses the probabilities of single samples until"),
        ("summary.json", "loses what the run has cost so far"),
    ],
)
def test_a_damaged_file_is_named_before_the_work_with_what_is_lost(run, capsys, name, lost):
    unfinished(run)
    (run.path / name).write_bytes(b"no")
    for main, words in ((train.main, ["--resume", str(run.path)]), (evaluate.main, [str(run.path)])):
        assert main([*words, "--local"]) == 2
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert f"{run.path / name} " in line
        assert lost in line
        assert "restore it from a copy" in line
        assert "training" not in out


def test_a_damaged_page_in_a_whole_file_is_found(run, capsys):
    content = bytearray(run.outcomes_path.read_bytes())
    content[4:200] = bytes(196)
    run.outcomes_path.write_bytes(content)
    assert evaluate.main([str(run.path), "--local"]) == 2
    assert "outcomes.parquet cannot be read as Parquet" in capsys.readouterr().err


def test_a_lost_history_is_said_and_its_epochs_stay_usable(run, capsys):
    rows = run.read_history()
    run.write_history(rows[2:])
    unfinished(run)
    assert train.main(["--resume", str(run.path), "--local"]) == 0
    err = capsys.readouterr().err
    assert err.count("has no figures of epochs 1 to 2, so no rule can select them; only a new training would") == 1
    assert [row["epoch"] for row in run.read_history()] == [3]

    assert evaluate.main([str(run.path), "--local", "--epochs", "1", *EVALUATION.split(), "--attack", "pgd-mma"]) == 0
    capsys.readouterr()
    assert evaluate.main([str(run.path), "--local", "--epochs", "1,9"]) == 2
    assert "has no epoch 9: it has 1 to 3." in capsys.readouterr().err
    assert chosen_epoch(Run(run), select="val_accuracy>=0") == 3
    assert "has no figures of epochs 1 to 2" in capsys.readouterr().err
    run.history_path.unlink()
    assert chosen_epoch(Run(run), epoch=2) == 2


def test_a_whole_history_and_an_early_end_are_no_loss(run, tmp_path):
    rows = run.read_history()
    assert without_figures(run, rows, 3) == []
    assert without_figures(run, [], 3) == [1, 2, 3]
    # An early end puts the weights of the best epoch after the last epoch of the configuration.
    shutil.copytree(run.checkpoints_dir / "epoch=0001", run.checkpoints_dir / "epoch=0009")
    assert without_figures(run, rows, 9) == []
    assert without_figures(run, rows[1:], 9) == [1]
    assert without_figures(run, rows, 8) == [9]
    (run.checkpoints_dir / "epoch=0009").rename(run.checkpoints_dir / "epoch=0004")
    assert without_figures(run, rows, 4) == []
    assert spans([1, 2, 3, 5, 8, 9]) == "1 to 3, 5, 8 to 9"
    assert spans([]) == ""


def test_points_are_restored_from_outcomes(run, capsys):
    before, performance = run.points(), run.summary()["performance"]
    run.summary_path.unlink()
    assert train.main(["--resume", str(run.path), "--local"]) == 0
    err = capsys.readouterr().err
    assert err.count("summary.json is missing: what earlier starts cost") == 1
    assert "summary.json has no accuracies after epoch 1 for pgd-mma: they are restored from outcomes.parquet." in err
    assert "after epoch 3 for minimal, pgd100, white-noise: they are restored from outcomes.parquet." in err
    # What the attacks met and warned of is lost but for pgd100, which was evaluated again.
    again = {(p.attack, p.loss, p.epoch, p.level): p for p in run.points()}
    assert len(again) == len(run.points()) == len(before)
    for point in before:
        found = again[point.attack, point.loss, point.epoch, point.level]
        lost = {} if point.attack == "pgd100" else {"met": None, "remarks": None}
        assert found == point.model_copy(update=lost)
    key = lambda entry: (entry["attack"], entry["epoch"], entry["noise"])  # noqa: E731
    assert sorted(run.summary()["performance"], key=key) == sorted(performance, key=key)
    assert run.status == "finished"

    assert evaluate.main([str(run.path), "--local", *EVALUATION.split(), "--attack", "pgd100"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_outcomes_that_do_not_tell_how_they_came_about_are_said(run, capsys):
    table = read_parquet(run.outcomes_path)
    assert lost_points(table.drop_columns("protocol"), run.points()) == []
    # The second has lost a sample.
    whole = pa.compute.not_equal(table["attack"], "minimal")
    cut = table.filter(pa.compute.or_(whole, pa.compute.greater(table["index"], pa.compute.min(table["index"]))))
    for changed, attacks in ((table.drop_columns("protocol"), "minimal,pgd100,white-noise"), (cut, "minimal")):
        write_parquet(run.outcomes_path, changed)
        run.summary_path.unlink()
        assert evaluate.main([str(run.path), "--local", *EVALUATION.split(), "--attack", "pgd-mma"]) == 0
        err = capsys.readouterr().err
        assert f"measure them again with python -m ima_dist.evaluate {run.path} --epochs 3 --attack {attacks}." in err
    assert {point.attack for point in run.points()} == {"white-noise", "pgd100", "pgd-mma"}
