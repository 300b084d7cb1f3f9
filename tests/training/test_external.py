"""A network that was trained elsewhere, evaluated and read like that of a run."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ima_dist
from ima_dist import audit, evaluate, export, sweep, train
from ima_dist.classifier.loading import load
from ima_dist.cli import running
from ima_dist.config.errors import EXIT_DONE, EXIT_REQUEUE, ConfigError
from ima_dist.config.presets import external_config, make_config, options_of, preset_config
from ima_dist.dashboard.views import VIEWS
from ima_dist.evaluation.attacks import EVALUATION_ATTACKS
from ima_dist.launch.signals import Stopped
from ima_dist.models import moons_mlp
from ima_dist.report.tables import setting_differences
from ima_dist.results.doubts import door_doubts
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run
from ima_dist.training import external as training_external
from tests.support import small_images
from tests.support.exports import FACTORY, SOURCE, small_run
from tests.support.reports import report_on
from tests.support.views import grid, show

ATTACK = ["--eval.noise", "0,1/20,1/10", "--eval.steps", "2", "--device", "cpu", "--local"]
NETWORK = ["--model.factory", FACTORY, "--model.weights", "weights.safetensors"]
DATA = ["--data.source", SOURCE]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with ``runs/trained``, and ``weights.safetensors`` with the weights that this run ended with."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("external")
    small_run(root / "runs" / "trained")
    shutil.copy(root / "runs/trained/checkpoints/epoch=0002/model.safetensors", root / "weights.safetensors")
    return root


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def measured(place):
    """The run directory of these weights, as another's network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        words = [*NETWORK, *DATA, *ATTACK, "--out", "runs/external"]
        assert evaluate.main(words) == 0
        assert evaluate.main([*words, "--attack", "white-noise"]) == 0
    return Run.open(place / "runs" / "external")


def curves(run: Run, attack: str, epoch: int) -> list[tuple[Any, ...]]:
    points = [p for p in run.points if (p.attack, p.epoch) == (attack, epoch)]
    return sorted((p.loss, p.noise, p.accuracy, p.samples, p.protocol, str(p.met)) for p in points)


# ---- the evaluation


def test_the_numbers_are_those_of_the_run_that_trained_it(place, measured):
    trained = Run.open(place / "runs" / "trained")
    for attack in ("pgd100", "worst"):
        assert curves(measured, attack, 1) == curves(trained, attack, 2) != []
    assert {point.attack for point in measured.points} == {"pgd100", "worst", "white-noise"}
    summary = measured.summary
    assert (summary["method"], summary["status"], summary["preset"]) == ("external", "finished", "own")
    assert summary["clean_accuracy"] == trained.summary["clean_accuracy"]
    assert summary["findings"]["trained"] is True
    assert "failed_attacks" in summary


def test_nothing_is_trained(place, measured):
    """Weights and running statistics are the given ones."""
    given = load_file(place / "weights.safetensors")
    kept = load_file(measured.dir.checkpoints_dir / "epoch=0001" / "model.safetensors")
    assert given.keys() == kept.keys()
    assert all(torch.equal(given[name], kept[name]) for name in given)
    assert [row["epoch"] for row in measured.history] == [1]
    assert measured.training_history == []
    assert not (measured.dir.figures_dir / "training.png").exists()
    assert (measured.dir.figures_dir / "accuracy.png").exists()


def test_the_door_does_not_try_to_train(place):
    """A network without trainable parameters is none to train, but can be attacked."""
    words = ["--model.factory", "tests.training.test_external:frozen", *DATA, *ATTACK, "--out", "runs/frozen"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate.main([*words, "--attack", "worst"]) == 0
    assert Run.open(place / "runs" / "frozen").summary["clean_accuracy"] > 0.9


def frozen(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """It brings its weights itself."""
    network = small_images.batch_norm_cnn(num_classes, input_shape)
    network.load_state_dict(load_file("weights.safetensors"))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("when", ["brought in", "attacked"])
def test_interrupted_and_repeated_it_goes_on(place, monkeypatch, when):
    words = [*NETWORK, *DATA, *ATTACK, "--out", f"runs/{when}"]
    run = RunDir(place / "runs" / when)
    with monkeypatch.context() as patch:
        if when == "brought in":
            patch.setattr(training_external, "write_answers", _stopped)
            assert evaluate.main(words) == EXIT_REQUEUE
            assert run.status == "running"
            assert run.read_history() == []
        else:
            patch.setattr(running, "on_workers", lambda *_: (EXIT_REQUEUE, None))
            assert evaluate.main(words) == EXIT_REQUEUE
            assert run.status == "interrupted"
    # The run keeps the weights: neither command needs the file again.
    for again in (words, [str(run.path), *ATTACK]):
        assert evaluate.main(again) == EXIT_DONE
        assert run.status == "finished"
    assert curves(Run.open(run.path), "worst", 1) == curves(Run.open("runs/external"), "worst", 1)


def _stopped(*_: object) -> None:
    raise Stopped


def test_batches_that_were_attacked_are_not_attacked_again(place, measured, monkeypatch):
    asked: list[int] = []
    attacked = EVALUATION_ATTACKS["worst"]

    def counting(network, x, *rest):
        asked.append(len(x))
        return attacked(network, x, *rest)

    monkeypatch.setitem(EVALUATION_ATTACKS, "worst", counting)
    assert evaluate.main([str(measured.dir.path), *ATTACK, "--attack", "worst", "--eval.samples", "6"]) == 0
    assert asked == [6]
    points = Run.open(measured.dir.path).points
    assert {point.samples for point in points if point.attack == "worst"} == {6, 16}


# ---- who reads it


def test_load_export_and_predict(place, measured, tmp_path):
    classifier, trained = load(measured.dir.path), ima_dist.load("runs/trained")
    x = small_images.two_classes(None, 0).test.x
    assert torch.equal(classifier(x), trained(x))
    card = classifier.card
    assert card["method"] == "external"
    assert card["validation_accuracy"] is None
    assert any("trained elsewhere" in text for text in card["limits"])
    assert not any("One seed" in text for text in card["limits"])
    command = card["reproduce"][0]
    assert command.startswith("python -m ima_dist.evaluate --")
    assert "--eps-max" not in command
    assert "--method" not in command
    assert export.main([str(measured.dir.path), "--to", str(tmp_path / "export"), "--format", "safetensors"]) == 0
    assert torch.equal(ima_dist.load(tmp_path / "export")(x), classifier(x))
    page = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert "trained elsewhere" in page
    assert "## Training" not in page
    assert "epoch 1 of 1" not in page


def test_report_and_dashboard_show_it_without_training_and_margins(place, measured, tmp_path):
    page = report_on(tmp_path / "report", place / "runs")
    assert page.row("external: external", "worst")
    assert page.row("ima", "worst")
    headings = " ".join(page.texts["h3"])
    assert "Training and validation accuracy of" in headings
    assert not [h for h in page.texts["h3"] if "Training" in h and "external" in h]
    assert any("python -m ima_dist.evaluate --norm linf" in code for code in page.texts["code"])
    for name, view in VIEWS.items():
        parts = show(place / "runs", name)
        assert parts, view
    (row,) = [r for r in grid(show(place / "runs", "runs"), "runs") if r["run"] == "external"]
    assert (row["status"], row["done"], row["validation"]) == ("finished", "100 %", None)
    shown = grid(show(place / "runs", "accuracy", "?runs=external&attack=worst"), "accuracies")
    assert [r["run"] for r in shown] == ["external"]
    for name in ("training", "margins"):
        assert "external" not in str([vars(c) for c in VIEWS[name].controls(*_at(place))])


def _at(place: Path) -> tuple[Any, dict[str, Any]]:
    from ima_dist.dashboard.app import look
    from ima_dist.tracking.collection import Collection

    return look(Collection(place / "runs")), {}


def test_what_needs_margins_or_training_refuses_it(place, measured, tmp_path, capsys):
    run = str(measured.dir.path)
    (tmp_path / "job.yaml").write_text("title: t\npreset: moons\nsweep: {method: [ima, external]}\n", encoding="utf-8")
    for main, words, message in (
        (train.main, ["--resume", run], "only evaluated: python -m ima_dist.evaluate"),
        (train.main, ["moons", "--method", "external"], "cannot be trained"),
        (sweep.main, [str(tmp_path / "job.yaml")], "cannot be trained"),
        (audit.main, [run], "has no margins"),
        (evaluate.main, [run, "--norm", "l2"], "--norm goes with a network trained elsewhere"),
        (evaluate.main, [run, "--out", "x"], "--out goes with a network trained elsewhere"),
        (evaluate.main, [run, "--select", "val_accuracy>=0.5"], "no validation set"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


# ---- what is refused before anything is written


def _wide(file: Path) -> str:
    given = load_file("weights.safetensors")
    save_file({k: torch.cat([v, v]) if k.startswith("5.") else v for k, v in given.items()}, file)
    return "5.bias has the shape"


def _short(file: Path) -> str:
    given = load_file("weights.safetensors")
    save_file({k: v for k, v in given.items() if k != "5.bias"}, file)
    return "lacks 5.bias, and a network that is not trained here needs all"


@pytest.mark.parametrize("write", [_wide, _short])
def test_weights_must_be_those_of_the_whole_network(tmp_path, capsys, write):
    message = write(tmp_path / "w.safetensors")
    file = str(tmp_path / "w.safetensors")
    words = ["--model.factory", FACTORY, "--model.weights", file, *DATA, *ATTACK, "--out", str(tmp_path / "run")]
    given = {"model.factory": FACTORY, "model.weights": file, "data.source": SOURCE, "eval.noise": (0.0, 0.1)}
    config = external_config("own", {**given, "model.weights_strict": False})
    assert evaluate.main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=message.split(",")[0]):
        running.tried(config)


def test_other_weights_than_the_classifiers_may_be_left_over(place, tmp_path):
    save_file({**load_file("weights.safetensors"), "auxiliary": torch.zeros(2)}, tmp_path / "w.safetensors")
    given = {"model.factory": FACTORY, "model.weights": str(tmp_path / "w.safetensors"), "data.source": SOURCE}
    config = external_config("own", {**given, "eval.noise": (0.0, 0.1)})
    with pytest.raises(ConfigError, match=r"auxiliary too much; --model\.weights-strict false leaves out"):
        running.tried(config)
    words = ["--model.factory", FACTORY, "--model.weights", str(tmp_path / "w.safetensors"), *DATA, *ATTACK,
             "--model.weights-strict", "false", "--attack", "white-noise", "--out", str(tmp_path / "run")]  # fmt: skip
    with pytest.warns(UserWarning, match="auxiliary"):
        assert evaluate.main(words) == 0
    assert "--model.weights-strict false" in load(tmp_path / "run").card["reproduce"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give a run, or a network"),
        (["--model.factory", "torchvision:resnet18", "--preset", "cifar10"], "builds an untrained network"),
        ([*NETWORK, *DATA], "needs --eval.noise"),
        ([*NETWORK, *DATA, "--eval.noise", "0"], "needs a level above 0"),
        ([*NETWORK, *DATA, "--eval.noise", "0.1", "--epochs", "3"], "--epochs and --select go with a run"),
        ([*NETWORK, *DATA, "--eval.noise", "0.1", "--out", "runs/trained"], "holds a network that was trained here"),
        ([*NETWORK, "--data.source", "tests.support.small_images:four_classes", "--eval.noise", "0.1"], "the shape"),
        ([*NETWORK, "--preset", "nothing"], "Unknown preset"),
        ([*NETWORK, *DATA, "--eval.noise", "0.1", "--attack", "worst,nothing"], "must be one of"),
        (["--model.factory", "tests.training.test_external:moody", *DATA, "--eval.noise", "0.1"], "different answers"),
    ],
)
def test_one_sentence_and_nothing_written(place, words, message, capsys):
    out = [] if "--out" in words else ["--out", "runs/none"]
    assert evaluate.main([*words, *out, "--local", "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs/none").exists()


def test_another_network_in_its_directory(place, measured, capsys):
    save_file({k: v + 1 if v.is_floating_point() else v for k, v in load_file("weights.safetensors").items()}, "b.st")
    words = ["--model.factory", FACTORY, "--model.weights", "b.st", *DATA, *ATTACK, "--out", "runs/external"]
    assert evaluate.main(words) == 2
    assert "holds a network with another --model.weights-sha256" in capsys.readouterr().err


class Moody(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + torch.rand(len(x), 1)


def moody(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return Moody(nn.Flatten(), nn.Linear(100, num_classes))


# ---- its configuration


def test_of_own_data_the_noise_is_what_was_asked_for(tmp_path):
    given = {
        "model.factory": "mine:build",
        "data.source": "folder",
        "data.dir": str(tmp_path),
        "eval.noise": (0.0, 0.25),
    }
    assert external_config("own", given).eps_max == 0.25


def test_the_configuration_on_a_presets_data():
    file = str(Path("weights.safetensors").absolute())
    given = {"model.factory": "mine:build", "model.weights": file, "norm": "l2"}
    config = external_config("cifar10", given)
    assert (config.method, config.epochs, config.eps_max) == ("external", 1, config.eval.noise[-1])
    assert config.eval.noise == make_config("cifar10", {"norm": "l2"}).eval.noise
    assert config.eval.order == "stratified"
    assert {"method", "epochs", "eps_max"}.isdisjoint(options_of(config))
    assert external_config("cifar10", options_of(config)) == config
    less = external_config("cifar10", {**given, "eval.noise": (0.0, 0.5)})
    assert less.eps_max == 0.5
    assert preset_config(less).eps_max == config.eps_max
    assert [text.split(" ")[0] for text in setting_differences(less)] == ["model.factory", "model.weights_sha256"]
    with pytest.raises(ConfigError, match="no noise levels for l2"):
        external_config("covid_ct", given)


def test_doubts_of_the_door_speak_of_the_network_that_was_tried():
    found = {"samples": 10, "zero_gradient": 10}
    assert door_doubts(found, [0.3], "linf")[0].startswith("The untrained network has")
    assert door_doubts({**found, "trained": True}, [0.3], "linf")[0].startswith("The network has")


def test_the_papers_network_on_the_papers_data_is_no_row_of_its_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file(moons_mlp(2, (2,)).state_dict(), "mlp.safetensors")
    words = ["--preset", "moons", "--model.factory", "ima_dist.models:moons_mlp", "--model.weights", "mlp.safetensors",
             "--data.subset", "200", "--eval.noise", "0,0.05,0.2", "--eval.steps", "2", "--device", "cpu", "--local",
             "--attack", "pgd100", "--out", "runs/mlp"]  # fmt: skip
    assert evaluate.main(words) == 0
    assert "paper" not in capsys.readouterr().out
    run = Run.open("runs/mlp")
    assert run.boundary is not None
    assert run.summary["paper_table"] is None
    page = report_on(tmp_path / "report", tmp_path / "runs")
    assert page.row("external: mlp", "pgd100")
    assert not [text for text in page.texts["dd"] if "reduced" in text]
    assert "Beside the paper's tables: Moons, L∞ noise" in page.texts["h2"]
