"""One's own data and network: arguments, the preset own, and that a result belongs to the code that made it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from signal import SIGTERM

import pytest

import ima_dist
from ima_dist import audit, evaluate, train
from ima_dist.launch.signals import Stopped
from ima_dist.rundir.directory import RunDir
from tests.support.inline import without_ray
from tests.support.own_images import write_folder

MODULE = """
import numpy as np
from torch import nn

from {helper} import scale


def load(config, seed, *, classes=3, shift=0.0):
    draw = np.random.default_rng(seed)
    def part(n):
        y = np.arange(n) % classes
        x = draw.normal(size=(n, 2)) * 0.2 + np.stack([np.cos(y), np.sin(y)], 1) * scale + shift
        return x.astype(np.float32), y
    return {{"train": part(90), "test": part(60)}}


def build(num_classes, input_shape, width=16):
    return nn.Sequential(nn.Linear(2, width), nn.{layer}(), nn.Linear(width, num_classes))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory that is the current one, and on the path; the names of its modules are its own."""
    without_ray(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


class Code:
    """``mine.py`` and what it imports, under names that no other test uses."""

    def __init__(self, place: Path) -> None:
        self.place, self.name = place, f"mine_{os.getpid()}_{abs(hash(place))}"
        (place / f"{self.name}_helper.py").write_text("scale = 2.0\n")
        self.write("ReLU")

    def write(self, layer: str, end: str = "") -> None:
        (self.place / f"{self.name}.py").write_text(MODULE.format(helper=f"{self.name}_helper", layer=layer) + end)
        self.reload()

    def reload(self) -> None:
        for name in (self.name, f"{self.name}_helper"):
            sys.modules.pop(name, None)
        sys.path_importer_cache.clear()

    def train(self, *options: str, out: str = "run") -> int:
        return train.main([
            "own", "--name", "blobs", "--data.source", f"{self.name}:load", "--model.factory", f"{self.name}:build",
            "--eps-max", "1/5", "--eval.noise", "0,1/10,2/10", "--epochs", "2", "--batch-size", "16", "--device", "cpu",
            "--eval.steps", "2", "--attack.steps", "2", "--optimizer.lr", "0.05", *options, "--out", out,
        ])  # fmt: skip


@pytest.fixture
def code(place, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return Code(place)


def test_arguments_reach_the_functions_and_the_files(code, capsys):
    assert code.train("--data.args.classes", "4", "--model.args.width=8", "--data.args.shift", "1e-1") == 0
    run = RunDir("run")
    config = run.config()
    assert (config.data.args, config.model.args) == ({"classes": 4, "shift": 0.1}, {"width": 8})
    assert run.summary()["parameters"] == 8 * 3 + 4 * 9
    assert (config.eps_max, config.eval.noise) == (0.2, (0.0, 0.1, 0.2))
    printed = capsys.readouterr().out
    assert printed.startswith("blobs, ima, linf: 2 epochs")
    assert "paper" not in printed
    assert code.train("--model.args.widht", "8", out="other") == 2
    assert f"{code.name}:build has no argument widht (did you mean width?); it takes width." in capsys.readouterr().err
    assert not Path("other").exists()


def test_a_run_keeps_the_users_modules(code):
    assert code.train() == 0
    kept = RunDir("run").code_dir
    names = {f"{code.name}.py", f"{code.name}_helper.py"}
    assert set(json.loads((kept / "checksums.json").read_text())) == names
    for name in names:
        assert (kept / name).read_bytes() == Path(name).read_bytes()


@pytest.mark.parametrize("command", ["evaluate", "audit", "resume"])
def test_another_network_adds_nothing_to_a_run(code, command, capsys):
    assert code.train() == 0
    run = RunDir("run")
    if command == "resume":
        run.summary_path.write_text(json.dumps({**run.summary(), "status": "interrupted"}))
    before = run.summary_path.read_bytes()
    words = {
        "evaluate": (evaluate, ["run", "--attack", "worst", "--device", "cpu"]),
        "audit": (audit, ["run", "--device", "cpu"]),
        "resume": (train, ["--resume", "run", "--device", "cpu"]),
    }
    module, arguments = words[command]
    code.write("Tanh")
    capsys.readouterr()
    assert module.main(arguments) == 2
    error = capsys.readouterr().err
    assert "does not give the answers that it gave in the training" in error
    assert f"{code.name}.py changed since the run began; the run keeps a copy in {run.code_dir}" in error
    assert run.summary_path.read_bytes() == before

    code.write("ReLU", "\n# a remark\n")
    assert module.main(arguments) == 0
    assert f"warning: {code.name}.py changed since the run began" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_found_before_anything_starts(code, capsys):
    assert code.train() == 0
    path = code.place / f"{code.name}.py"
    path.write_text(path.read_text().replace("width=16", "width=17"))
    code.reload()
    capsys.readouterr()
    assert evaluate.main(["run", "--attack", "worst", "--device", "cpu"]) == 2
    assert "do not fit the network of" in capsys.readouterr().err


def test_a_random_network_is_not_compared(code):
    path = code.place / f"{code.name}.py"
    path.write_text(
        path.read_text() + "\n\nimport torch\nclass Drops(nn.Module):\n"
        "    def forward(self, x):\n        return nn.functional.dropout(x, 0.5)\n\n"
        "def random(num_classes, input_shape):\n    return nn.Sequential(build(num_classes, input_shape), Drops())\n"
    )
    code.reload()
    from ima_dist.config.presets import make_config
    from ima_dist.data.load import load
    from ima_dist.data.types import Resident
    from ima_dist.training.answers import read_answers, same_answers, write_answers
    from ima_dist.training.network import DTYPES, make_network

    options = {"data.source": f"{code.name}:load", "model.factory": f"{code.name}:random"}
    config = make_config("moons", options)
    data = load(config.data, 0)
    train_set = Resident(data.train, "cpu", DTYPES["float32"], None)
    network, run = make_network(config, data), RunDir("random")
    write_answers(run, network, train_set, 1)
    kept = read_answers(run)
    assert kept is not None
    assert same_answers(kept, network, train_set)


def test_noise_levels_as_shares_of_the_range(code, capsys, monkeypatch):
    from ima_dist.config.presets import make_config
    from ima_dist.data.load import load

    loads = []
    with monkeypatch.context() as patch:
        patch.setattr("ima_dist.data.load.load", lambda *given: loads.append(given) or load(*given))
        assert code.train("--eps-unit", "range", "--delta-eps", "1/20") == 0
    assert len(loads) == 1  # and once more by the worker, which has its own name for it
    config = RunDir("run").config()
    x = load(config.data, 0).train.x
    width = float(x.max() - x.min())
    assert width > 2
    assert config.eps_max == pytest.approx(width / 5)
    assert config.delta_eps == pytest.approx(width / 20)
    assert config.eval.noise == pytest.approx((0.0, width / 10, width / 5))
    assert f"ε 0.2 of it is {width / 5:g}." in capsys.readouterr().out
    words = ["run", "--attack", "worst", "--device", "cpu", "--eval.noise", "0,1/2", "--eps-unit", "range"]
    assert evaluate.main(words) == 0
    levels = {point.noise for point in RunDir("run").points() if point.attack == "worst"}
    assert max(levels) == pytest.approx(width / 2)
    assert make_config("moons").eps_max == 0.3


def test_a_second_signal_leaves_the_command_that_continues(code, capsys, monkeypatch):
    def stopped(*_):
        raise Stopped

    monkeypatch.setattr(train, "on_workers", lambda *_: (75, None))
    monkeypatch.setattr(train, "_record_end", stopped)
    assert code.train() == 75
    assert capsys.readouterr().err.endswith("Stopped. Continue with: python -m ima_dist.train --resume run\n")


def test_a_signal_leaves_nothing_to_continue_before_a_run_and_after_it(code, capsys, monkeypatch):
    def stopped(*_, **__):
        raise Stopped(SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train, "check_inputs", stopped)
        assert code.train() == 128 + SIGTERM
    assert not Path("run").exists()
    assert capsys.readouterr().err == "Stopped before anything was written: give the same command again.\n"
    monkeypatch.setattr(train, "show_results", stopped)
    assert code.train() == 128 + SIGTERM
    assert capsys.readouterr().err.endswith("Stopped; the run has finished. Results: run\n")
    assert RunDir("run").status == "finished"


def test_images_in_folders_need_no_code(place, capsys):
    write_folder(place / "photos", 12)
    options = [
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--attack.steps",
        "1",
        "--eval.steps",
        "1",
        "--eval.noise",
        "0,8/255",
    ]
    assert train.main(["own", "--data.dir", "photos", "--data.size", "9", *options, "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "Chosen, since not given: --name photos, --data.source folder, --model.factory" in out
    run = RunDir("run")
    assert run.status == "finished"
    assert run.config().data.dir == str(place / "photos")
    assert ima_dist.load("run").predict("photos").labels.shape == (24,)
    assert train.main(["--resume", "run"]) == 0
