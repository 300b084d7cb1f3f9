"""Exports: programs that answer as the network does, a card with the run's numbers, and the choice of an epoch."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors import SafetensorError

import ima_dist
from ima_dist import export, models
from ima_dist.classifier import programs
from ima_dist.classifier.export import write_export
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.data.types import DataSet, Split
from ima_dist.results.candidates import best_text, rows_of_directory
from ima_dist.results.tradeoff import select_epoch
from ima_dist.rundir.directory import RunDir
from tests.support.exports import small_run

NETWORKS = {
    "moons_mlp": ((2,), "moons"),
    "fashion_mnist_cnn": ((1, 28, 28), "fashion_mnist"),
    "mnist_lenet5": ((1, 28, 28), "mnist"),
    "svhn_cnn": ((3, 32, 32), "svhn"),
    "resnet18_in": ((1, 64, 64), "covid_ct"),
    "wrn_28_4": ((3, 32, 32), "cifar10"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return small_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def exported(run):
    place = run.parent / "exported"
    assert export.main([str(run), "--to", str(place)]) == 0
    return place


@pytest.mark.parametrize("name", NETWORKS)
def test_programs_answer_as_the_network(name, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "_STEPS", 3)
    pytest.importorskip("onnxruntime")
    shape, preset = NETWORKS[name]
    classes = 2 if len(shape) == 1 or preset == "covid_ct" else 10
    torch.manual_seed(0)
    network = getattr(models, name)(classes, shape)
    draw = torch.rand(4, *shape)
    with torch.no_grad():
        network(3 * draw)  # running statistics other than those of a new network
    split = Split(draw, torch.arange(4) % classes)
    data = DataSet(split, split, split, None if preset == "moons" else (0.0, 1.0), classes)
    x = programs.samples_to_compare(network.eval(), data, make_config(preset))
    assert len(x) == 8
    assert not torch.equal(x[:4], x[4:])
    programs.write_program(network, x, tmp_path)
    programs.write_onnx(network, x, tmp_path)
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        expected = network(x)
        for answer in (program, programs.onnx_answers(tmp_path / "model.onnx")):
            found = torch.cat([answer(x[:1]), answer(x[1:6]), answer(x[6:])])
            assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
            top = expected.topk(2).values
            clear = top[:, 0] - top[:, 1] > 2e-4
            assert torch.equal(found.argmax(1)[clear], expected.argmax(1)[clear])


def test_a_program_that_answers_otherwise_is_refused(run, tmp_path, monkeypatch, capsys):
    wrong = lambda *_: lambda x: torch.zeros(len(x), 2)  # noqa: E731
    monkeypatch.setattr(programs, "onnx_answers", wrong)
    assert export.main([str(run), "--to", str(tmp_path / "out"), "--format", "onnx"]) == 2
    assert "model.onnx does not answer as the network does" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_labels_may_differ_only_where_logits_are_close():
    logits = torch.tensor([[1.0, 0.9999], [1.0, -1.0], [0.5, 0.0]])
    network = torch.nn.Identity()
    close = logits.clone()
    close[0] = torch.tensor([0.99995, 0.99996])
    assert programs.compared("model", network, lambda x: close[-len(x) :] if len(x) > 1 else close[:1], logits) == {
        "samples": 1,
        "difference": pytest.approx(6e-5, rel=0.1),
        "labels": 1,
    }
    with pytest.raises(ConfigError, match="does not answer"):
        programs.compared("model", network, lambda x: x + 2e-4, logits)


def test_the_card_has_the_numbers_of_the_run(run, exported):
    summary, card = RunDir(run).summary(), json.loads((exported / "card.json").read_text())
    shown = [curve for curve in summary["curves"] if curve["loss"] == "both"]
    assert len(shown) == 6
    assert [{k: v for k, v in entry.items() if k != "interval"} for entry in card["accuracies"]] == shown
    for entry in card["accuracies"]:
        low, high = entry["interval"]
        assert low <= entry["accuracy"] <= high
    assert card["clean_accuracy"]["accuracy"] == summary["clean_accuracy"]
    assert card["clean_accuracy"]["samples"] == 16
    history = RunDir(run).read_history()
    assert card["validation_accuracy"] == history[-1]["val_accuracy"]
    assert card["data"]["digest"] == summary["data_digest"]
    assert {name: part["samples"] for name, part in card["data"]["splits"].items()} == {
        "train": 96,
        "val": 8,
        "test": 16,
    }
    assert card["data"]["split_level"] == "by sample: groups unknown"
    assert card["reproduce"][0].startswith("python -m ima_dist.train own --name scans --method ima ")
    assert card["checks"].keys() == {"model.pt2", "model.onnx"}


def test_the_page_is_one_of_hugging_face(exported):
    front, _, page = (exported / "README.md").read_text()[4:].partition("---\n")
    head, card = yaml.safe_load(front), json.loads((exported / "card.json").read_text())
    assert head["pipeline_tag"] == "image-classification"
    metrics = head["model-index"][0]["results"][0]["metrics"]
    assert [m["value"] for m in metrics[1:]] == [entry["accuracy"] for entry in card["accuracies"]]
    for entry in card["accuracies"]:
        assert f"| {entry['accuracy']:.4f} | {entry['interval'][0]:.4f} to" in page
    config = json.loads((exported / "config.json").read_text())
    assert config["id2label"] == {"0": "healthy", "1": "ill"}
    everything = "".join(f.read_text() for f in exported.iterdir() if f.suffix in (".md", ".json"))
    assert str(exported.parent) not in everything


def test_another_epoch_that_was_not_attacked(run, tmp_path, capsys):
    words = [str(run), "--to", str(tmp_path / "a"), "--format", "safetensors", "--epoch", "1"]
    assert export.main(words) == 0
    assert "after epoch 1, has not been attacked" in capsys.readouterr().err
    found = ima_dist.load(tmp_path / "a")
    assert found.card["accuracies"] == []
    assert found.card["clean_accuracy"] is None
    x = torch.rand(4, 1, 10, 10)
    assert torch.equal(found(x), ima_dist.load(run, epoch=1)(x))
    assert not torch.equal(found(x), ima_dist.load(run)(x))
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "model.safetensors",
        "config.json",
        "card.json",
        "README.md",
        "code",
    }
    assert (tmp_path / "a" / "model.safetensors").stat().st_mode & 0o044


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epoch", "7"], "has no epoch 7: it has 1 to 2"),
        (["--format", "onxx"], "(did you mean onnx?)"),
        (["--format", ","], "at least one of"),
        (["--select", "best"], "must have the form 'val_accuracy>=0.90'"),
        ([], "exists: give another --to"),
    ],
)
def test_mistakes(run, tmp_path, capsys, options, message):
    to = tmp_path / "out"
    if not options:
        to.mkdir()
    assert export.main([str(run), "--to", str(to), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert to.exists() == (not options)


def test_nothing_is_left_of_an_export_that_fails(run, tmp_path, monkeypatch):
    from ima_dist.classifier import export as writing
    from ima_dist.rundir.run import Run
    from tests.support.small_images import two_classes

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_text_atomic", full)
    network = ima_dist.load(run).network
    with pytest.raises(OSError, match="No space"):
        write_export(Run.open(run), 2, network, two_classes(None, 0), ("safetensors",), tmp_path / "out")
    monkeypatch.undo()

    def full_too(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(writing.safetensors, "save_model", full_too)
    with pytest.raises(OSError, match=r"No space") as caught:
        write_export(Run.open(run), 2, network, two_classes(None, 0), ("safetensors",), tmp_path / "out")
    assert caught.value.filename.endswith("model.safetensors")
    assert [*tmp_path.iterdir()] == []


def test_the_most_robust_epoch():
    rows = [{"epoch": e, "val_accuracy": 0.9, "val_robust_accuracy": a} for e, a in enumerate([0.2, 0.6, 0.6, 0.5], 1)]
    assert select_epoch("best-robust", rows) == 3
    with pytest.raises(ConfigError, match=r"--eval\.val-noise"):
        select_epoch("best-robust", [{"epoch": 1, "val_accuracy": 0.9, "val_robust_accuracy": None}])


def test_the_choice_among_runs_ends_with_the_command_that_exports_it(run, tmp_path):
    shutil.copytree(run, tmp_path / "sweep" / "a run")
    rows, _ = rows_of_directory(tmp_path / "sweep")
    text = best_text(rows, 0.0)
    place = tmp_path / "sweep" / "a run"
    assert text.endswith(f"a run, epoch 2: python -m ima_dist.export '{place}' --to DIR --epoch 2")
