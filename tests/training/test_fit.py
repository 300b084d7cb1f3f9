"""``ima_dist.fit``: the command's results, directory and statuses, from Python."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

import ima_dist
from ima_dist import evaluate, train
from ima_dist.config.errors import ConfigError
from ima_dist.data.load import load
from ima_dist.rundir.directory import RunDir
from tests.support import notebooks, user_code, workers

QUICK = {"dtype": "float64", "epochs": 2, "eval.steps": 2, "eval.noise": (0.0, 0.1), "eval.attacks": ("pgd100",)}
FLAGS = ["--dtype", "float64", "--epochs", "2", "--eval.steps", "2", "--eval.noise", "0,0.1"]
FLAGS += ["--eval.attacks", "pgd100"]
OWN = {**QUICK, "name": "clouds", "eps_max": 0.2, "batch_size": 32}
NETWORK = """
from torch import nn

def build(num_classes, input_shape):
    return nn.Sequential(nn.Linear(input_shape[0], 8), nn.Tanh(), nn.Linear(8, num_classes))
"""


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])


def clouds() -> dict[str, object]:
    found = user_code.blobs(None, 0)
    return {**found, "class_names": ("a", "b", "c"), "box": (-4.0, 4.0)}


def process_state() -> list[object]:
    """What a notebook would miss if a training left it changed."""
    of_numpy = np.random.get_state()[1].tolist()
    return [torch.get_rng_state().tolist(), of_numpy, random.getstate(), torch.get_num_threads()]


def forget_code(run) -> None:
    """In another process the code of a notebook is not there."""
    del sys.modules[run.config.model.factory.split(":")[0]]
    sys.path[:] = [place for place in sys.path if not place.endswith("code")]


def set_back(run: RunDir) -> RunDir:
    run.write_json(run.summary_path, {**run.summary(), "status": "interrupted"})
    return run


def same_result(one: RunDir, other: RunDir) -> None:
    (weights, margins), (weights_2, margins_2) = (workers.final_state(run.config(), run.path) for run in (one, other))
    assert workers.largest_difference(weights, weights_2) == 0
    assert torch.equal(margins, margins_2)
    assert one.summary()["curves"] == other.summary()["curves"]


def test_the_same_as_the_command(tmp_path):
    before = process_state()
    run = ima_dist.fit("moons", out="python", **QUICK, **{"data.subset": 400})
    assert process_state() == before
    assert run.status == "finished"
    assert run.dir.path == tmp_path / "python"
    assert train.main(["moons", "--local", "--out", "command", *FLAGS, "--data.subset", "400"]) == 0
    command = RunDir(tmp_path / "command")
    same_result(run.dir, command)
    assert run.config == command.config()
    names = {file.relative_to(run.dir.path) for file in run.dir.path.rglob("*")}
    assert names == {file.relative_to(command.path) for file in command.path.rglob("*")}
    assert "pgd100" in run._repr_html_()
    assert ima_dist.fit(resume="python").points == run.points


def test_arrays_and_a_function_of_a_notebook_are_kept(tmp_path, monkeypatch, capsys):
    with notebooks.as_main() as names:
        notebooks.run_cell(NETWORK, "<cell of the test>", names)
        build = names["build"]
    run = ima_dist.fit("own", data=clouds(), network=build, out="here", **OWN)
    source = ["--data.source", "tests.support.user_code:blobs", "--model.factory", "tests.support.user_code:three_way"]
    assert train.main(["own", "--local", "--name", "clouds", "--eps-max", "0.2", *source, *FLAGS, "--out", "c"]) == 0
    assert RunDir(tmp_path / "c").summary()["data_digest"] == run.summary["data_digest"]
    again = ima_dist.fit("own", data=clouds(), network=build, out="again", **OWN)
    assert again.config.fingerprint() == run.config.fingerprint()
    changed = clouds() | {"box": (-5.0, 4.0)}
    assert ima_dist.fit("own", data=changed, network=build, out="box", **OWN).config.fingerprint() != (
        run.config.fingerprint()
    )

    shutil.move(run.dir.path, tmp_path / "moved")
    assert evaluate.main(["moved", "--local", "--attack", "worst"]) == 0
    classifier = ima_dist.load("moved")
    assert classifier.class_names == ("a", "b", "c")
    assert classifier.box == (-4.0, 4.0)

    forget_code(run)
    capsys.readouterr()
    assert evaluate.main(["moved", "--local", "--attack", "worst"]) == 2
    assert set_back(RunDir("moved")).status == "interrupted"
    assert ima_dist.fit(resume="moved", network=build).status == "finished"
    assert "changed" not in capsys.readouterr().err
    set_back(RunDir("moved"))
    with notebooks.as_main() as names:
        notebooks.run_cell(NETWORK.replace("nn.Tanh", "nn.ReLU"), "<other cell>", names)
        with pytest.raises(ConfigError, match=r"was started with another --model\.factory"):
            ima_dist.fit(resume="moved", network=names["build"])

    forget_code(run)
    code = tmp_path / "moved" / "code"
    assert evaluate.main(["moved", "--local", "--attack", "worst"]) == 2
    assert f"PYTHONPATH={code} lets Python find" in capsys.readouterr().err
    monkeypatch.syspath_prepend(str(code))
    assert evaluate.main(["moved", "--local", "--attack", "worst"]) == 0
    assert "changed" not in capsys.readouterr().err

    data = tmp_path / "moved" / "given" / "data.safetensors"
    whole = data.read_bytes()
    for content, why in ((whole[:-8], "is damaged ("), (whole[:-1] + b"\xff", "holds other data (checksum)")):
        data.write_bytes(content)
        assert evaluate.main(["moved", "--local", "--attack", "worst"]) == 2
        assert why in capsys.readouterr().err
    data.unlink()
    assert evaluate.main(["moved", "--local", "--attack", "worst"]) == 2
    assert "does not exist: restore it from a copy" in capsys.readouterr().err


def test_groups_are_kept(tmp_path):
    x, y = clouds()["train"]
    groups = [f"patient {number // 2}" for number in range(len(y))]
    data = {"train": (x[:200], y[:200], groups[:200]), "test": (x[200:], y[200:], groups[200:])}
    run = ima_dist.fit("own", data=data, network=user_code.three_way, out="groups", **OWN)
    found = load(run.config.data, 0)
    assert list(found.test.groups) == groups[200:]
    assert found.digest() == run.summary["data_digest"]
    assert found.split_level == run.summary["split_level"]
    data["test"] = (x[200:], y[200:], groups[:100])
    with pytest.raises(ConfigError, match=r"data cannot be used: .*patient"):
        ima_dist.fit("own", data=data, network=user_code.three_way, out="leak", **OWN)
    assert not RunDir("leak").path.exists()


class Signalled(nn.Sequential):
    """Gets a signal in its twentieth training pass outside of the checks before a run."""

    signum, passes = 0, 0

    def forward(self, x):
        if self.training and Signalled.signum:
            Signalled.passes += 1
            if Signalled.passes == 20:
                os.kill(os.getpid(), Signalled.signum)
        return super().forward(x)


def signalled(num_classes, input_shape):
    return Signalled(nn.Linear(input_shape[0], 8), nn.Tanh(), nn.Linear(8, num_classes))


@pytest.mark.parametrize(("signum", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_a_checkpoint_and_the_run_goes_on_later(monkeypatch, capsys, signum, raised):
    monkeypatch.setattr("ima_dist.fitting.check_inputs", _then_signal(monkeypatch, signum))
    options = {**OWN, "epochs": 4, "network": signalled, "data": clouds(), "checkpoint_every": 3}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)]
    with pytest.raises(raised) as caught:
        ima_dist.fit("own", out="stopped", **options)
    assert raised is not SystemExit or caught.value.code == 75
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)]
    assert "Continue with: python -m ima_dist.train --resume stopped" in capsys.readouterr().out
    stopped = RunDir("stopped")
    assert stopped.status == "interrupted"
    Signalled.signum = 0
    run = ima_dist.fit(resume="stopped")
    assert run.status == "finished"
    whole = ima_dist.fit("own", out="whole", **options)
    same_result(run.dir, whole.dir)


def _then_signal(monkeypatch, signum):
    """``check_inputs``, after which the network of this file waits for its twentieth pass."""
    from ima_dist.fitting import check_inputs

    def checked(*arguments, **named):
        found = check_inputs(*arguments, **named)
        Signalled.signum, Signalled.passes = (signum, 0) if not RunDir("stopped").config_path.exists() else (0, 0)
        return found

    return checked


def test_what_fails_is_an_exception(capsys):
    with pytest.raises(RuntimeError, match=r"KeyError: 'a mistake'\. To continue from the last checkpoint: python -m"):
        ima_dist.fit("own", data=clouds(), network=user_code.raises, out="failed", **{**OWN, "epochs": 40})
    assert RunDir("failed").status == "failed"
    assert "error:" not in capsys.readouterr().err


def test_mistakes_are_said_before_anything_is_written(tmp_path):
    x, y = clouds()["train"]
    for arguments, message in (
        ({}, "Give a preset"),
        ({"preset": "moon"}, r"Unknown preset 'moon' \(did you mean moons\?\)"),
        ({"preset": "moons", "beta": 3.0}, "beta"),
        ({"preset": "moons", "epoch": 3}, "epoch"),
        ({"preset": "own", "data": clouds(), "network": user_code.three_way}, "The preset own needs --name"),
        ({"preset": "own", "data": {"train": (x, y)}, **OWN}, "data cannot be used: it lacks the entry 'test'"),
        (
            {"preset": "own", "data": (x, y), **OWN},
            "data cannot be used: it must be a DataSet or a dictionary, not tuple",
        ),
        (
            {"preset": "own", "data": {"train": (x, y), "test": (x, y[1:])}, **OWN},
            "data cannot be used: test has 300 samples",
        ),
        ({"preset": "own", "data": {}, **OWN, "epoch": 3}, "epoch"),  # before the data are looked at
        ({"preset": "own", "data": clouds(), "data.source": "mine:load"}, "Give either data or the options"),
        ({"preset": "moons", "network": "__main__:build"}, "name a function of a module .*, not of __main__"),
        ({"preset": "moons", "data.source": "__main__:load"}, "name a function of a module .*, not of __main__"),
        ({"preset": "moons", "network": nn.Linear(2, 2)}, "must be a function that builds the network"),
        ({"preset": "moons", "network": "mine:build", "model.factory": "mine:build"}, "Give either network or"),
        ({"preset": "own", "data": clouds(), "network": user_code.three_way, **OWN, "batch_size": 0}, "batch-size"),
        ({"resume": tmp_path}, "is not a run directory"),
        ({"resume": tmp_path, "out": "x"}, "leave out and data out"),
    ):
        with pytest.raises(ConfigError, match=message):
            ima_dist.fit(**arguments)
    assert not [*tmp_path.iterdir()]


def test_in_another_thread():
    found: list[object] = []

    def act() -> None:
        found.append(ima_dist.fit("own", data=clouds(), network=user_code.three_way, out="thread", **OWN))
        try:
            ima_dist.fit("own", data=clouds(), network=user_code.three_way, out="ray", **OWN, workers=2)
        except ConfigError as error:
            found.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    run, error = found
    assert run.status == "finished"
    assert "can only be started from the main thread" in str(error)
    assert not RunDir("ray").path.exists()


def test_a_second_signal_ends_it_at_once(tmp_path):
    from ima_dist.launch import signals

    def twice(pause: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(pause)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    with signals.heeding_signals(tmp_path / "stop"):
        twice(0.0)  # as one that was sent to several processes of a job
    assert (tmp_path / "stop").exists()
    assert signals.received == [signal.SIGINT] * 2
    with pytest.raises(KeyboardInterrupt), signals.heeding_signals(tmp_path / "stop"):
        twice(signals._IMPATIENT_AFTER + 0.1)
    with pytest.raises(KeyboardInterrupt), signals.heeding_signals(tmp_path / "stop", lambda: True):
        twice(0.0)
