"""The option or value that was meant, help with defaults, and what will run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ima_dist import evaluate, job, recommend, sweep, train
from ima_dist.cli.meant import _SYNONYMS
from ima_dist.cli.parser import OneLineParser, add_options, user_options
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from tests.support.summaries import make_run


@pytest.fixture
def train_says(capsys, monkeypatch, tmp_path):
    """What ``ima_dist.train`` prints of a mistake; nothing is loaded or written."""

    def says(*words: str) -> str:
        monkeypatch.setattr(train, "check_inputs", lambda *_: pytest.fail("data are loaded before this is noticed"))
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        assert train.main([*words]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err

    return says


@pytest.mark.parametrize(
    ("word", "option"),
    [
        ("--lr", "--optimizer.lr"),
        ("--torch-compile", "--compile"),
        ("--cuda-graph", "--cuda-graphs"),
        ("--learning-rate", "--optimizer.lr"),
        ("--learning_rate=0.1", "--optimizer.lr"),
        ("--gpu", "--device cuda"),
        ("--epsilon", "--eps-max"),
        ("--eps_max", "--eps-max"),
        ("--batchSize", "--batch-size"),
        ("--weight_decay", "--optimizer.weight-decay"),
        ("--wd", "--optimizer.weight-decay"),
        ("--steps", "--attack.steps or --eval.steps"),
        ("--data-dir", "--data.dir"),
        ("--amp", "--autocast float16"),
        ("--output-dir", "--out"),
        ("--l2", "--norm"),
        ("--attack", "--eval.attacks"),
        ("--num_workers", "--workers"),
        ("--dry-run", "--show-config"),
        ("--bta", "--beta"),
    ],
)
def test_an_option_that_was_meant_is_named(train_says, word, option):
    assert f"(did you mean {option}?)" in train_says("moons", word, "1")


def test_every_synonym_names_an_option():
    parser = OneLineParser(prog="test", allow_abbrev=False)
    add_options(parser)
    options = {"--out", "--resume", "--show-config", *parser._option_string_actions}
    assert {text.split(" ")[0] for text in _SYNONYMS.values()} <= options
    # One name per option: a synonym is no option itself.
    assert not {option.strip("-").replace("-", "").replace(".", "") for option in options} & set(_SYNONYMS)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--device", "gpu", "did you mean cuda?"),
        ("--norm", "Linf", "did you mean linf?"),
        ("--norm", "L2", "did you mean l2?"),
        ("--norm", "inf", "did you mean linf?"),
        ("--method", "pgd-at", "did you mean adv?"),
        ("--dtype", "double", "did you mean float64?"),
        ("--autocast", "fp16", "did you mean float16?"),
        ("--optimizer.name", "Adam", "did you mean adam?"),
        ("--eval.attacks", "aa", "did you mean autoattack?"),
        ("--data.source", "mine.py:load", "pkg.module:function, such as mine:load, not 'mine.py:load'"),
        ("--data.source", "./nets/mine.py:load", "such as nets.mine:load"),
        ("--model.factory", "mine.build", "such as mine:build"),
        ("--data.source", "what is this", "pkg.module:function, not 'what is this'"),
        ("--norm", "l7", "must be one of linf, l2, not 'l7'"),
    ],
)
def test_a_value_that_was_meant_is_named(train_says, option, value, says):
    assert says in train_says("moons", option, value)


def test_a_place_that_is_taken_is_refused_before_anything_is_loaded(train_says, tmp_path):
    run = make_run(tmp_path / "run", "moons", {})
    (tmp_path / "file").write_text("")
    for out, says in (("run", f"--resume {run.path}"), ("file", "is a file"), ("file/run", "cannot be written")):
        assert says in train_says("moons", "--out", out)


def test_the_help_has_every_default(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "learning rate (default: 0.001)",
        "0 to 1 (default: 0.5)",
        "--data.args.KEY VALUE",
        "weight decay (default: 0.0)",
    ):
        assert words in text


def test_what_will_run_fits_one_screen(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    words = ["cifar10", "--method", "adv", "--eps-max", "8/255", "--model.args.width", "3"]
    assert train.main([*words, "--show-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 65
    assert max(map(len, lines[:-1])) <= 120
    rows = {line[3:].split()[0]: line for line in lines[1:-2]}
    assert rows["--eps-max"].split()[:4] == ["*", "--eps-max", "0.0314", "0.125"]
    assert rows["--optimizer.lr"].split() == ["--optimizer.lr", "0.1", "learning", "rate"]
    assert rows["--model.args.width"].split()[:3] == ["*", "--model.args.width", "3"]
    assert not {"--beta", "--data.size", "--model.weights-sha256"} & rows.keys()
    assert lines[-1].startswith("Not read by --method adv: --delta-eps, --beta")
    assert list(tmp_path.iterdir()) == []


def test_every_command_with_a_configuration_shows_it_and_the_others_say_so(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert job.main(["table01", "--rows", "ce,ima", "--seed", "7", "--show-config"]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith("[")] == ["[ce]", "[ima]"]
    assert [line.split()[:3] for line in shown.splitlines() if line.startswith("*")] == [["*", "--seed", "7"]] * 2
    assert sweep.main(["sweep_moons", "--show-config"]) == 0
    shown = capsys.readouterr().out
    assert "--beta" in shown
    assert shown.splitlines()[-1].startswith("The sweep varies --method choice of ima, adv, trades; --beta choice of")
    assert sweep.main(["sweep_moons", "--show-config", "--trials", "nothing"]) == 2
    assert "no trial 'nothing'" in capsys.readouterr().err
    assert recommend.main(["run", "--show-config"]) == 2
    assert "only train, evaluate, audit, job and sweep have a configuration to show" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_unit_of_noise_levels_is_refused_in_files(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, rows in ((job, "rows: {a: {}}"), (sweep, "sweep: {beta: [0.1]}")):
        Path("file.yaml").write_text(f"title: t\npreset: moons\noptions: {{eps_unit: range}}\n{rows}\n")
        assert command.main(["file.yaml", "--list"]) == 2
        assert "eps_unit is an option of the commands train and evaluate" in capsys.readouterr().err
        assert command.main(["file.yaml", "--eps-unit", "range"]) == 2
        assert "only train and evaluate take it; in a job or sweep file" in capsys.readouterr().err


def test_a_run_shows_its_own_configuration(capsys, tmp_path):
    run = RunDir(make_run(tmp_path / "run", "moons", {}, beta=0.3).path)
    write_json(run.summary_path, {"status": "finished"})
    assert train.main(["--resume", str(run.path), "--show-config"]) == 0
    assert "--beta" in capsys.readouterr().out
    assert evaluate.main([str(run.path), "--eval.steps", "7", "--show-config"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in shown if line.startswith("*")] == [["*", "--eval.steps", "7"]]


@pytest.mark.parametrize(
    ("words", "tf32", "norms"),
    [
        ([], None, None),
        (["--tf32"], True, None),
        (["--no-tf32"], False, None),
        (["--tf32=true"], True, None),
        (["--tf32=False"], False, None),
        (["--optimizer.decay-norms", "false"], None, False),
        (["--no-optimizer.decay-norms"], None, False),
    ],
)
def test_a_switch_can_be_turned_on_and_off(words, tf32, norms):
    parser = OneLineParser(prog="x", allow_abbrev=False)
    add_options(parser)
    options = user_options(parser.parse_args(words))
    assert (options.get("tf32"), options.get("optimizer.decay_norms")) == (tf32, norms)
