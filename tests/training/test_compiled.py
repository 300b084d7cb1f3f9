"""Steps of PGD as programs of torch.compile: the same attack, for any batch, norm and number of steps."""

from __future__ import annotations

import copy
import os
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from ima_dist.attacks import anpgd, bpgd, pgd, shapes
from ima_dist.attacks.compiled import STEPS, Compiled
from ima_dist.attacks.counting import Counted, Tally
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.data.load import load
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training
from ima_dist.worker.watchdog import watched


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4)).double()


def bpgd_x(*given, **options):
    return bpgd(*given, **options).x


def anpgd_x(*given, **options):
    return anpgd(*given, **options, max_eps=2.0).x


# Compiling is torch's work: without it the same Python runs, which these tests are about.
@pytest.mark.parametrize("steps", [0, 3, STEPS, 2 * STEPS + 2])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [pgd, bpgd_x, anpgd_x])
def test_the_attack_and_its_counts_are_those_of_single_steps(attack, norm, steps):
    plain = network()
    torch.manual_seed(1)
    x = torch.rand(9, 3).double()
    y, eps = plain(x).argmax(1), torch.rand(9).double()
    options = {"norm": norm, "steps": steps, "start": 0.1 * eps[:, None] * x, "box": (0.0, 1.0)}
    with torch.compiler.set_stance("force_eager"):
        tallies, found = [], []
        for model in (plain, Compiled(copy.deepcopy(plain))):
            shapes.passed(model, x)
            counted = Counted(model, Tally("cpu"))
            found.append(attack(counted, x, y, eps, **options))
            tallies.append(counted.tally.totals().tolist())
    assert torch.equal(*found)
    assert tallies[0] == tallies[1]
    assert tallies[0][0] >= steps


def test_single_steps_are_taken_where_there_is_no_program_for_them(monkeypatch):
    def steps(*_):
        raise AssertionError("not for this")

    plain = network()
    x = torch.rand(4, 3).double()
    y = plain(x).argmax(1)
    monkeypatch.setattr(Compiled, "steps", steps)
    model = Compiled(plain)
    pgd(model, x, y, 0.2, norm="linf")  # its operations have not been counted: it may be large
    shapes.passed(model, x)
    assert torch.equal(pgd(model, x[:1], y[:1], 0.0, norm="linf"), x[:1])
    found = [pgd(m, x, y, 0.2, norm="linf", loss="margin", start=0 * x) for m in (model, plain)]
    assert torch.equal(*found)
    with pytest.raises(AssertionError, match="not for this"):
        pgd(model, x, y, 0.2, norm="linf")


# Under CI a missing compiler is a failure of the set-up, not a reason to skip.
@pytest.mark.skipif(
    not (shutil.which("g++") and (Path(sysconfig.get_path("include")) / "Python.h").exists())
    and os.environ.get("CI") != "true",
    reason="g++ or Python's headers are missing",
)
def test_a_compiled_training_is_the_one_without(tmp_path):
    """By the compiler itself, with a last batch of another size."""
    options = {"data.subset": 150, "batch_size": 64, "epochs": 2, "dtype": "float64", "eps_max": 0.3, "delta_eps": 0.1}
    torch.compiler.reset()
    counters.clear()
    weights, margins = [], []
    for name in ("plain", "compiled"):
        config = make_config("moons", {**options, "margin_update": "online", "compile": name == "compiled"})
        run = RunDir.create(config, tmp_path / name)
        training = Training(config, run, load(config.data, config.seed), torch.device("cpu"))
        with watched(run, training.network, 600):  # as in a worker
            weights.append(training.fit().state_dict())
        margins.append(training.history[-1]["margin_mean"])
    assert max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0]) < 1e-12
    assert margins[0] == pytest.approx(margins[1], abs=1e-12)
    assert list(weights[0]) == list(weights[1])
    assert counters["stats"]["unique_graphs"] == 1


def test_more_kinds_of_networks_than_torch_keeps_programs_for(monkeypatch):
    program = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *given, **options: program(*given, **options, backend="eager"))
    torch.compiler.reset()
    x = torch.rand(8, 3).double()
    for width in range(4, 16):
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 4)).double()
        model = Compiled(copy.deepcopy(plain))
        shapes.passed(model, x)
        y = plain(x).argmax(1)
        found = [pgd(m, x, y, 0.1, norm="linf", steps=STEPS, start=0 * x) for m in (plain, model)]
        assert torch.allclose(*found, atol=1e-12)
        assert model.used


class Opaque(torch.autograd.Function):
    """Of the old form, which torch.func refuses."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class WithOpaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return self.inner(Opaque.apply(x))


def test_a_network_that_cannot_be_compiled_is_refused_in_a_sentence():
    x, y, model = torch.rand(4, 3).double(), torch.zeros(4, dtype=torch.int64), Compiled(WithOpaque())
    shapes.passed(model, x)
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(ConfigError, match="--compile: torch cannot compile the attack on this network") as refused,
    ):
        pgd(model, x, y, 0.1, norm="linf")
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith("Leave the option out; on resuming, give --no-compile.")
    assert "autograd.Function" in str(refused.value)


def test_the_option_does_not_alter_what_a_run_is():
    assert make_config("moons", {"compile": True}).fingerprint() == make_config("moons", {}).fingerprint()
